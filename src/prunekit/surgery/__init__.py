"""Doing what a plan says, and proving that it was done."""

from prunekit.surgery.laws import LawResult as LawResult
from prunekit.surgery.one_call import Pruned as Pruned
from prunekit.surgery.one_call import prune as prune
from prunekit.surgery.proof import Proof as Proof
from prunekit.surgery.proof import check_mask as check_mask
from prunekit.surgery.proof import check_permutation as check_permutation
from prunekit.surgery.proof import verify as verify
from prunekit.surgery.remove import Removal as Removal
from prunekit.surgery.remove import mask as mask
from prunekit.surgery.remove import remove as remove
from prunekit.surgery.soundness import sound as sound

__all__ = [
    "LawResult",
    "Proof",
    "Pruned",
    "Removal",
    "check_mask",
    "check_permutation",
    "mask",
    "prune",
    "remove",
    "sound",
    "verify",
]
