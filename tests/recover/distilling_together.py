"""What each process of the test with several processes computes."""

import torch
from torch import nn

import prunekit as pk
from prunekit.workload import Batch


def gradients(ranks):
    """The gradients of a student that is wrapped for several processes, each with its part of the batch."""
    inputs = torch.randn(8, 6, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    teacher, student = (
        nn.Sequential(nn.Linear(6, width), nn.GELU(), nn.Linear(width, 3)) for width in (9, 5)
    )
    settings = pk.DistillationSettings(hidden=1, hidden_modules=["1"], projection="linear")
    objective = pk.Distillation(teacher, settings, student=student, example=Batch(args=(inputs,)))
    part = inputs.chunk(ranks.size)[ranks.rank]
    model = student
    if ranks.size > 1:
        model = nn.parallel.DistributedDataParallel(student, process_group=ranks.group)
    objective(model, Batch(args=(part,))).backward()
    return [parameter.grad for parameter in student.parameters()]
