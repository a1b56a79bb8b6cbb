"""Pruning to a measured target: time what there is to choose from, choose, export, measure, correct."""

from prunekit.targeting.attempts import Attempt as Attempt
from prunekit.targeting.attempts import Reached as Reached
from prunekit.targeting.costs import Costs as Costs
from prunekit.targeting.front import MeasuredFront as MeasuredFront
from prunekit.targeting.front import MeasuredPoint as MeasuredPoint
from prunekit.targeting.front import Point as Point
from prunekit.targeting.front import measured_front as measured_front
from prunekit.targeting.front import predicted_front as predicted_front
from prunekit.targeting.latency_model import LatencyModel as LatencyModel
from prunekit.targeting.planner import Planner as Planner
from prunekit.targeting.planner import measure_target as measure_target
from prunekit.targeting.rig import Rig as Rig
from prunekit.targeting.search import Refined as Refined
from prunekit.targeting.search import refine as refine
from prunekit.targeting.space import Space as Space
from prunekit.targeting.stored import restore_planner as restore_planner
from prunekit.targeting.stored import stored_planner as stored_planner
from prunekit.targeting.subgoals import dense_figures as dense_figures
from prunekit.targeting.subgoals import goals_of_cycle as goals_of_cycle
from prunekit.targeting.timing import Timing as Timing
from prunekit.targeting.widths import rewarded_widths as rewarded_widths

__all__ = [
    "Attempt",
    "Costs",
    "LatencyModel",
    "MeasuredFront",
    "MeasuredPoint",
    "Planner",
    "Point",
    "Reached",
    "Refined",
    "Rig",
    "Space",
    "Timing",
    "dense_figures",
    "goals_of_cycle",
    "measure_target",
    "measured_front",
    "predicted_front",
    "refine",
    "restore_planner",
    "rewarded_widths",
    "stored_planner",
]
