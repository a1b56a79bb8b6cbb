"""Deciding what goes: goals, exact selection, the plans for units and for single weights."""

from prunekit.plan.allocate import PrunableGroups as PrunableGroups
from prunekit.plan.allocate import allocate as allocate
from prunekit.plan.by_sensitivity import BySensitivity as BySensitivity
from prunekit.plan.goal import GOAL_KINDS as GOAL_KINDS
from prunekit.plan.goal import Goal as Goal
from prunekit.plan.limits import Limits as Limits
from prunekit.plan.mask_file import load_mask_plan as load_mask_plan
from prunekit.plan.mask_file import save_mask_plan as save_mask_plan
from prunekit.plan.mask_plan import MaskPlan as MaskPlan
from prunekit.plan.mask_plan import PackedMask as PackedMask
from prunekit.plan.pattern import Block as Block
from prunekit.plan.pattern import Element as Element
from prunekit.plan.pattern import NOfM as NOfM
from prunekit.plan.pattern import Pattern as Pattern
from prunekit.plan.pruning_plan import SCOPES as SCOPES
from prunekit.plan.pruning_plan import PruningPlan as PruningPlan
from prunekit.plan.scope import WEIGHT_SCOPES as WEIGHT_SCOPES
from prunekit.plan.scope import OutlierWeighted as OutlierWeighted
from prunekit.plan.scope import Scope as Scope
from prunekit.plan.select_weights import Asked as Asked
from prunekit.plan.select_weights import check_selection as check_selection
from prunekit.plan.select_weights import choose_weights as choose_weights
from prunekit.plan.select_weights import select_weights as select_weights

__all__ = [
    "GOAL_KINDS",
    "SCOPES",
    "WEIGHT_SCOPES",
    "Asked",
    "Block",
    "BySensitivity",
    "Element",
    "Goal",
    "Limits",
    "MaskPlan",
    "NOfM",
    "OutlierWeighted",
    "PackedMask",
    "Pattern",
    "PrunableGroups",
    "PruningPlan",
    "Scope",
    "allocate",
    "check_selection",
    "choose_weights",
    "load_mask_plan",
    "save_mask_plan",
    "select_weights",
]
