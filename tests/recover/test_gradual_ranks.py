"""Masks that change under DistributedDataParallel: the same on every rank, and those of one process."""

import subprocess
import sys

RANK = """
import sys
import torch
import torch.distributed as dist
from torch import nn
import prunekit as pk

rank, store = int(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
x, y = torch.randn(2, 2, 8, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
asked = dict(sparsity=0.75, initial=0.5, steps=12, every=3, regrow="gradient")


def trained(wrap, x, y):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 12)).double()
    net, masks = wrap(model)
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    for _ in range(12):
        optimizer.zero_grad()
        (net(x) - y).square().mean().backward()
        optimizer.step()
        masks.step()
    return torch.cat([value.flatten() for value in model.state_dict().values()])


def before(model):
    masks = pk.GradualMasks(model, **asked)
    return nn.parallel.DistributedDataParallel(model), masks


def after(model):
    net = nn.parallel.DistributedDataParallel(model)
    return net, pk.GradualMasks(net, **asked)


def plain(model):
    return model, pk.GradualMasks(model, **asked)


found = []
for wrap in (before, after):
    mine = trained(wrap, x[rank], y[rank])
    both = [torch.empty_like(mine) for _ in range(2)]
    dist.all_gather(both, mine)
    assert torch.equal(*both), "both ranks have the same weights and masks"
    found.append(mine)
dist.barrier()  # One that ends while another still connects may abort.
dist.destroy_process_group()
if rank == 0:
    alone = trained(plain, x.flatten(0, 1), y.flatten(0, 1))
    for each in found:
        torch.testing.assert_close(each, alone)
"""


def test_two_ranks_choose_the_masks_that_one_process_chooses(tmp_path):
    """Wrapped before or after the masks came; oracle: one process with the data of both."""
    script = tmp_path / "rank.py"
    script.write_text(RANK)
    command = [sys.executable, str(script)]
    ranks = [
        subprocess.Popen([*command, str(rank), str(tmp_path / "store")], stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    errors = [rank.communicate(timeout=300)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], "\n".join(errors)
