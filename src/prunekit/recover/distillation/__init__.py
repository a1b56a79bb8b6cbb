"""Learning from the dense parent."""

from prunekit.recover.distillation.lineage import Lineage
from prunekit.recover.distillation.objective import Distillation
from prunekit.recover.distillation.remembered import Remembered
from prunekit.recover.distillation.settings import DistillationSettings

__all__ = ["Distillation", "DistillationSettings", "Lineage", "Remembered"]
