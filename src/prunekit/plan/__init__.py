"""Deciding which units go: goals, exact selection, the pruning plan."""

from prunekit.plan.allocate import PrunableGroups as PrunableGroups
from prunekit.plan.allocate import allocate as allocate
from prunekit.plan.goal import GOAL_KINDS as GOAL_KINDS
from prunekit.plan.goal import Goal as Goal
from prunekit.plan.limits import Limits as Limits
from prunekit.plan.pruning_plan import SCOPES as SCOPES
from prunekit.plan.pruning_plan import PruningPlan as PruningPlan

__all__ = ["GOAL_KINDS", "SCOPES", "Goal", "Limits", "PrunableGroups", "PruningPlan", "allocate"]
