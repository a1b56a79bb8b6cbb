"""Units that go while a model trains: the optimizer and averages follow, at once or by plan."""

from prunekit.recover.shrinking.cuts import PlannedCut, Shrinking
from prunekit.recover.shrinking.follow import Followed, check_optimizer, follow, follow_average
from prunekit.recover.shrinking.shrink import Shrunk, shrink

__all__ = [
    "Followed",
    "PlannedCut",
    "Shrinking",
    "Shrunk",
    "check_optimizer",
    "follow",
    "follow_average",
    "shrink",
]
