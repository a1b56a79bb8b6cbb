"""Calibration within a memory limit, on data of several shapes, and what it refuses."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from prunekit.errors import CalibrationError, SelectionError, ShapeError
from prunekit.graph import find_groups, trace
from prunekit.importance import collect
from prunekit.importance.observe import AT_ONCE
from prunekit.importance.replay import Ledger

WORKING = 3 * 8 * AT_ONCE
"""Bytes that turning values into float64 takes, whatever the batch."""


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 3)
    ).eval()


def batch(examples, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return SimpleNamespace(args=(torch.randn(examples, 64, generator=draw),), kwargs={})


def groups_of(model, batch):
    return find_groups(trace(model, batch.args))


def loss(outputs, batch):
    return outputs.square().mean()


def test_a_limit_changes_no_statistic_and_is_kept():
    """Oracle: the same pass without a limit, which holds several times as much."""
    model, data = network(), batch(3000)
    groups = groups_of(model, batch(4))
    free = collect(model, [data], groups=groups, needs={"readings"})
    limit = WORKING + 1_000_000
    held = collect(model, [data], groups=groups, needs={"readings"}, memory_bytes=limit)
    assert free.peak_bytes > 2 * 1_000_000 + WORKING
    assert WORKING < held.peak_bytes <= limit
    for group in groups:
        for one, other in zip(free.readings[group.name], held.readings[group.name], strict=True):
            assert (one.count == other.count).all()
            np.testing.assert_allclose(one.squares, other.squares, rtol=1e-5)
            np.testing.assert_array_equal(one.weight_squares, other.weight_squares)


def test_the_peak_is_what_is_alive_between_operators():
    """Oracle: by hand, 256 floats go into the second layer and 256 come out, and what is read is copied."""
    model, data = network(), batch(10)
    groups = groups_of(model, batch(4))
    sums = 2 * 7 * 256 * 8
    found = collect(model, [data], groups=groups, needs={"readings"})
    assert found.peak_bytes == WORKING + sums + 3 * 10 * 256 * 4


def test_what_does_not_fit_is_refused():
    model = network()
    groups = groups_of(model, batch(4))
    with pytest.raises(
        CalibrationError, match=r"memory_bytes: Calibration holds \d+ bytes at .*at most 5000 bytes"
    ):
        collect(model, [batch(4)], groups=groups, needs={"readings"}, memory_bytes=5000)
    enough = collect(model, [batch(1000)], groups=groups, needs={"first_order"}, loss=loss).peak_bytes
    with pytest.raises(CalibrationError, match=r"what autograd saves.*fewer examples in each batch"):
        collect(
            model,
            [batch(1000)],
            groups=groups,
            needs={"first_order"},
            loss=loss,
            memory_bytes=enough + 500_000,
        )
    small = collect(
        model,
        [batch(100)],
        groups=groups,
        needs={"first_order"},
        loss=loss,
        memory_bytes=enough + 500_000,
    )
    assert enough < small.peak_bytes <= enough + 500_000


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(64), nn.Linear(64, 64)

    def forward(self, x):
        return x + self.linear(self.norm(x))


def test_copies_for_layers_are_counted_as_long_as_they_are_held():
    """Oracle: by hand; a layer holds its input, a copy of it and two results, and what others have added."""
    torch.manual_seed(0)
    layers = 4
    model, data = nn.Sequential(*[Residual() for _ in range(layers)]).eval(), batch(1000)
    activation = 1000 * 64 * 4
    groups = groups_of(model, batch(4)).select(granularity="layer")

    def peak(*needs):
        return collect(model, [data], groups=groups, needs=set(needs), loss=loss).peak_bytes

    assert peak("block_influence") == WORKING + 4 * activation
    assert peak("bypass_loss") >= WORKING + 4 * activation
    added = peak("first_order", "layer_gate") - peak("first_order", "block_influence")
    assert added == (layers - 1) * activation


def test_a_storage_counts_once_however_often_it_is_held():
    ledger = Ledger(None)
    ledger.start(100)
    value = torch.zeros(10)
    ledger.add(value, "a")
    ledger.add(value.view(2, 5), "b")
    ledger.remove(value)
    assert ledger.peak == 140
    ledger.add(torch.zeros(5), "c")
    assert ledger.peak == 160
    ledger.remove(value)
    ledger.charge(10, "d")
    assert ledger.peak == 160


class Sequence(nn.Module):
    """Any number of positions, and a mask by keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 8), nn.Linear(8, 2)

    def forward(self, x, mask=None):
        x = torch.relu(self.up(x))
        if mask is not None:
            x = x * mask[..., None]
        return self.down(x.sum(1))


def sequences(*lengths, mask=False):
    torch.manual_seed(0)
    return [
        SimpleNamespace(
            args=(torch.randn(3, length, 6),), kwargs={"mask": torch.ones(3, length)} if mask else {}
        )
        for length in lengths
    ]


@pytest.mark.parametrize("mask", [False, True])
def test_batches_of_other_shapes_are_traced_again(mask):
    """Oracle: a hook on the layer that reads, over all positions of all batches."""
    torch.manual_seed(0)
    model = Sequence().eval()
    data = sequences(5, 9, 5, 2, mask=mask)
    groups = find_groups(trace(model, (torch.randn(2, 5, 6),)))
    seen = []
    hook = model.up.register_forward_hook(lambda module, args, output: seen.append(output.reshape(-1, 8)))
    with torch.no_grad():
        for item in data:
            model(*item.args, **item.kwargs)
    hook.remove()
    # Summed before it is read: one value per example and channel.
    (reading,) = collect(model, data, groups=groups, needs={"readings"}).readings["up:neuron"]
    assert reading.count.tolist() == [12] * 8
    expected = torch.relu(torch.cat(seen)).double().sum(0)
    np.testing.assert_allclose(reading.total, expected, rtol=1e-5)


class Switch(nn.Module):
    """Long inputs go through a residual, which ties the width to the input's."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x):
        return self.down(self.up(x) + x if x.shape[1] > 5 else self.up(x))


def test_another_shape_with_other_groups_is_refused():
    model = Switch().eval()
    groups = find_groups(trace(model, sequences(5)[0].args))
    with pytest.raises(CalibrationError, match=r"shapes \[\(3, 9, 6\)\] leads to other groups"):
        collect(model, sequences(5, 9), groups=groups, needs={"readings"})


def test_activations_that_are_not_finite_name_the_layer():
    model, data = network(), batch(4)
    groups = groups_of(model, data)
    with torch.no_grad():
        model[2].bias[7] = float("inf")
    with pytest.raises(
        CalibrationError, match=r"4\.weight: The activations that it reads hold NaN or infinity"
    ):
        collect(model, [data], groups=groups, needs={"readings"})


def test_a_batch_of_one_that_loses_its_batch_is_explained():
    class Squeezing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 5)

        def forward(self, x):
            return self.head(self.conv(x).mean((2, 3), keepdim=True).squeeze())

    model = Squeezing().eval()
    groups = find_groups(trace(model, (torch.randn(2, 3, 5, 5),)))
    one = SimpleNamespace(args=(torch.randn(1, 3, 5, 5),), kwargs={})
    with pytest.raises(CalibrationError, match=r"head\.weight: With one example.*two or more examples"):
        collect(model, [one], groups=groups, needs={"readings"})


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"memory_bytes": 0}, SelectionError, "The limit is 0"),
        ({"memory_bytes": True}, SelectionError, "The limit is True"),
        ({"needs": {"hessian"}}, SelectionError, "There is no statistic"),
        ({"batches": []}, CalibrationError, "no calibration batches"),
        ({"batches": torch.zeros(3)}, CalibrationError, "an iterable of batches"),
        ({"needs": {"readings", "gate"}}, CalibrationError, "need a loss and none was given"),
        ({"groups": []}, SelectionError, "with the graph they were found in"),
        ({"model": nn.Sequential(nn.Linear(64, 2))}, ShapeError, r"0\.weight.*found on another model"),
    ],
)
def test_bad_input_is_refused_before_the_data_is_read(arguments, error, message):
    def never():
        raise AssertionError
        yield

    model = network()
    groups = groups_of(model, batch(4))
    given = {"model": model, "batches": never(), "groups": groups, "needs": {"readings"}} | arguments
    with pytest.raises(error, match=message):
        collect(given.pop("model"), given.pop("batches"), **given)


MAPPED = """
import sys, threading
import torch
import prunekit as pk
from prunekit.importance import needs_of
from torch import nn

def build():
    wide = [nn.Sequential(nn.Linear(512, 4096), nn.ReLU(), nn.Linear(4096, 512)) for _ in range(12)]
    return nn.Sequential(*wide, nn.Linear(512, 8)).eval()

def own():
    with open("/proc/self/status") as status:
        return next(1024 * int(line.split()[1]) for line in status if line.startswith("RssAnon"))

def watch():
    while not done.wait(0.002):
        most[0] = max(most[0], own())

path = sys.argv[1]
torch.save(build().state_dict(), path)
with torch.device("meta"):
    model = build()
model.load_state_dict(torch.load(path, mmap=True), assign=True)
x = torch.randn(2, 512)
groups = pk.find_groups(pk.trace(model, x)).select(granularity="neuron")
most, done = [own()], threading.Event()
before = most[0]
thread = threading.Thread(target=watch, daemon=True)
thread.start()
pk.collect(model, [pk.Batch(args=(x,))], groups=groups, needs=needs_of("wanda", "flap", "apoz"))
done.set()
thread.join()
size = sum(tensor.numel() * tensor.element_size() for tensor in model.parameters())
print((most[0] - before) / size)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory of its own is read from /proc")
def test_a_mapped_model_is_never_copied(tmp_path):
    """Oracle: the kernel's count of what belongs to the process alone, while 200 MB of weights are read."""
    command = [sys.executable, "-c", MAPPED, str(tmp_path / "model.pt")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert float(done.stdout) < 0.5
