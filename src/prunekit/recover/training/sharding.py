"""Spreading a model over processes layer by layer, for those who have no way of their own."""

from __future__ import annotations

from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from prunekit.ranks import Ranks
from prunekit.workload import device_of


def shard_layers(model: nn.Module, ranks: Ranks) -> nn.Module:
    """Shard a model in place with FSDP2: every repeated layer by itself, and the rest as one.

    A repeated layer is a child of a ``ModuleList`` or ``Sequential`` that has parameters. While it computes,
    a process holds one layer whole, and of all others its own part.

    Args:
        model: on the device of this process.
        ranks: all processes of the run.

    Returns:
        The same model.
    """
    mesh = init_device_mesh(device_of(model).type, (ranks.size,))
    tied = _shared_by_several(model)
    for parent in list(model.modules()):
        if isinstance(parent, nn.ModuleList | nn.Sequential):
            for child in parent:
                own = set(child.parameters())
                if own and not own & tied and child is not model:
                    fully_shard(child, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def _shared_by_several(model: nn.Module) -> set[nn.Parameter]:
    """Parameters that lie in more than one place: they belong to the model as a whole."""
    places: dict[nn.Parameter, int] = {}
    for _, parameter in model.named_parameters(remove_duplicate=False):
        places[parameter] = places.get(parameter, 0) + 1
    return {parameter for parameter, count in places.items() if count > 1}
