"""Doing what a plan says, and proving that it was done."""

from prunekit.surgery.laws import LawResult as LawResult
from prunekit.surgery.mask_weights import Masked as Masked
from prunekit.surgery.mask_weights import mask_weights as mask_weights
from prunekit.surgery.one_call import Pruned as Pruned
from prunekit.surgery.one_call import prune as prune
from prunekit.surgery.proof import Proof as Proof
from prunekit.surgery.proof import check_mask as check_mask
from prunekit.surgery.proof import check_permutation as check_permutation
from prunekit.surgery.proof import verify as verify
from prunekit.surgery.remove import Removal as Removal
from prunekit.surgery.remove import mask as mask
from prunekit.surgery.remove import reduced_graph as reduced_graph
from prunekit.surgery.remove import remove as remove
from prunekit.surgery.sensitivity import measure_sensitivity as measure_sensitivity
from prunekit.surgery.sharded import remove_sharded as remove_sharded
from prunekit.surgery.sharded_proof import verify_sharded as verify_sharded
from prunekit.surgery.soundness import sound as sound
from prunekit.surgery.unit_sensitivity import measure_unit_sensitivity as measure_unit_sensitivity
from prunekit.surgery.weight_mask import WeightMask as WeightMask
from prunekit.surgery.weight_masks import attach_masks as attach_masks
from prunekit.surgery.weight_masks import fold_masks as fold_masks
from prunekit.surgery.weight_masks import mask_on as mask_on
from prunekit.surgery.weight_masks import zero_under_masks as zero_under_masks

__all__ = [
    "LawResult",
    "Masked",
    "Proof",
    "Pruned",
    "Removal",
    "WeightMask",
    "attach_masks",
    "check_mask",
    "check_permutation",
    "fold_masks",
    "mask",
    "mask_on",
    "mask_weights",
    "measure_sensitivity",
    "measure_unit_sensitivity",
    "prune",
    "reduced_graph",
    "remove",
    "remove_sharded",
    "sound",
    "verify",
    "verify_sharded",
    "zero_under_masks",
]
