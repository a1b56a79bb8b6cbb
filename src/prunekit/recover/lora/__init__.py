"""Low-rank updates beside the weights of pruned layers."""

from prunekit.recover.lora.adapters import Adapters, add_lora, merge_lora, pruned_layers

__all__ = ["Adapters", "add_lora", "merge_lora", "pruned_layers"]
