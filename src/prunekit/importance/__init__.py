"""How much each unit, or single weight, matters: calibration statistics and criteria."""

from prunekit.importance.batches import ModelInputs as ModelInputs
from prunekit.importance.batches import check_batches as check_batches
from prunekit.importance.calibration import CALIBRATED as CALIBRATED
from prunekit.importance.calibration import NEEDS as NEEDS
from prunekit.importance.calibration import collect as collect
from prunekit.importance.criteria import CRITERIA as CRITERIA
from prunekit.importance.criteria import Criterion as Criterion
from prunekit.importance.input_norms import input_norms as input_norms
from prunekit.importance.mean_gradients import mean_gradients as mean_gradients
from prunekit.importance.movement import Movement as Movement
from prunekit.importance.scoring import NORMALIZATIONS as NORMALIZATIONS
from prunekit.importance.scoring import REDUCTIONS as REDUCTIONS
from prunekit.importance.scoring import check_fit as check_fit
from prunekit.importance.scoring import needs_of as needs_of
from prunekit.importance.scoring import score as score
from prunekit.importance.view import ROLES as ROLES
from prunekit.importance.view import Reading as Reading
from prunekit.importance.view import Statistics as Statistics
from prunekit.importance.view import check_seed as check_seed
from prunekit.importance.weight_criteria import WEIGHT_CRITERIA as WEIGHT_CRITERIA
from prunekit.importance.weight_criteria import WeightCriterion as WeightCriterion
from prunekit.importance.weight_criteria import WeightScores as WeightScores
from prunekit.importance.weight_criteria import lamp as lamp
from prunekit.importance.weight_criteria import score_weights as score_weights
from prunekit.importance.weight_criteria import weight_criterion as weight_criterion
from prunekit.importance.weight_movement import WeightMovement as WeightMovement
from prunekit.importance.weight_tensors import MASKABLE as MASKABLE
from prunekit.importance.weight_tensors import Masking as Masking
from prunekit.importance.weight_tensors import Weights as Weights
from prunekit.importance.weight_tensors import WeightTensor as WeightTensor
from prunekit.importance.weight_tensors import every_parameter as every_parameter
from prunekit.importance.weight_tensors import find_weights as find_weights
from prunekit.importance.weight_tensors import read_weight as read_weight
from prunekit.importance.weight_tensors import stored_parameter as stored_parameter

__all__ = [
    "CALIBRATED",
    "CRITERIA",
    "MASKABLE",
    "NEEDS",
    "NORMALIZATIONS",
    "REDUCTIONS",
    "ROLES",
    "WEIGHT_CRITERIA",
    "Criterion",
    "Masking",
    "ModelInputs",
    "Movement",
    "Reading",
    "Statistics",
    "WeightCriterion",
    "WeightMovement",
    "WeightScores",
    "WeightTensor",
    "Weights",
    "check_batches",
    "check_fit",
    "check_seed",
    "collect",
    "every_parameter",
    "find_weights",
    "input_norms",
    "lamp",
    "mean_gradients",
    "needs_of",
    "read_weight",
    "score",
    "score_weights",
    "stored_parameter",
    "weight_criterion",
]
