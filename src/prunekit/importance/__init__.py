"""How much each unit matters: calibration statistics and criteria."""

from prunekit.importance.calibration import CALIBRATED as CALIBRATED
from prunekit.importance.calibration import NEEDS as NEEDS
from prunekit.importance.calibration import check_batches as check_batches
from prunekit.importance.calibration import collect as collect
from prunekit.importance.criteria import CRITERIA as CRITERIA
from prunekit.importance.criteria import Criterion as Criterion
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

__all__ = [
    "CALIBRATED",
    "CRITERIA",
    "NEEDS",
    "NORMALIZATIONS",
    "REDUCTIONS",
    "ROLES",
    "Criterion",
    "Movement",
    "Reading",
    "Statistics",
    "check_batches",
    "check_fit",
    "check_seed",
    "collect",
    "needs_of",
    "score",
]
