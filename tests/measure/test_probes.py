"""What is told about a machine follows from the figures; exact stairs and counts of zeros are the oracles."""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import pytest

from prunekit.errors import MeasurementError
from prunekit.measure import Target, describe_machine
from prunekit.measure.advice import advise
from prunekit.measure.probes import (
    PATTERNS,
    Bench,
    NoiseFloor,
    SparseFormat,
    Throughput,
    WidthSteps,
    find_step,
    judge,
    pairs_needed,
)
from prunekit.measure.probes.sparsity import probes_of
from prunekit.measure.probes.weights import random_weight
from prunekit.measure.probes.widths import WIDTHS
from prunekit.types import Speedup


def gain(median, low=None, high=None, pairs=100):
    return Speedup(median, median if low is None else low, median if high is None else high, 0.95, pairs)


@pytest.mark.parametrize(
    ("name", "zeros"), [("unstructured 90 %", 0.9), ("2:4", 0.5), ("blocks 16x16, 90 %", 0.9)]
)
def test_patterns_have_the_zeros_they_say_and_change_nothing_else(name, zeros):
    weight = random_weight((160, 160))
    before = weight.copy()
    pruned = PATTERNS[name](weight)
    assert (pruned == 0).sum() == round(zeros * weight.size)
    kept = pruned != 0
    assert np.array_equal(pruned[kept], weight[kept])
    assert np.array_equal(weight, before)


def test_patterns_lie_where_hardware_wants_them():
    weight = random_weight((160, 160))
    fours = PATTERNS["2:4"](weight).reshape(-1, 4, 160)
    assert ((fours != 0).sum(axis=1) == 2).all()
    tiles = PATTERNS["blocks 16x16, 90 %"](weight).reshape(10, 16, 10, 16)
    assert ((tiles != 0).any(axis=(1, 3)) == (tiles != 0).all(axis=(1, 3))).all()


@pytest.mark.parametrize("step", [8, 16, 32])
@pytest.mark.parametrize("noise", [0.0, 0.005])
def test_exact_stairs_are_found(step, noise):
    widths = np.array(WIDTHS)
    costs = 0.02 + step * np.ceil(widths / step) / 128
    costs *= 1 + noise * np.random.default_rng(0).standard_normal(len(widths))
    found, within = find_step(WIDTHS, costs.tolist())
    assert found == step
    assert abs(within) <= 0.3 if noise else within == 0


def test_a_straight_line_and_a_flat_one_reward_no_step():
    assert find_step(WIDTHS, [float(width) for width in WIDTHS]) == (4, 1.0)
    assert find_step(WIDTHS, [1.0] * len(WIDTHS)) == (4, 1.0)


@pytest.mark.parametrize(
    ("speedup", "verdict"),
    [
        (gain(2.0, 1.9, 2.1), "faster"),
        (gain(1.2, 1.11, 1.3), "faster"),
        (gain(1.0, 0.99, 1.01), "no gain"),
        (gain(1.05, 1.0, 1.1), "no gain"),
        (gain(0.5, 0.45, 0.55), "slower"),
        (gain(1.1, 1.0, 1.2), "unclear"),
        (gain(3.8, 2.7, 11.7), "unclear"),
        (gain(0.5, 0.1, 0.9), "unclear"),
    ],
)
def test_an_interval_says_what_it_can(speedup, verdict):
    assert judge(speedup) == verdict


def test_pairs_grow_with_the_square_of_the_interval():
    for half_width, needed in [(0.25, 100), (0.5, 400), (0.125, 25), (0.0, 2)]:
        measured = gain(1.0, 1 - half_width, 1 + half_width)
        assert pairs_needed(measured, difference=0.25) == needed
    assert pairs_needed(gain(2.0, 1.5, 2.5), difference=0.25) == 100


def zeros(runtime, speedup, stored="dense"):
    return SparseFormat(runtime, "cpu", "MatMul", "2:4", stored, speedup, speedup and judge(speedup))


def test_a_sparse_format_is_held_against_the_fastest_dense_runtime():
    found = zeros("slow", gain(2.0, 1.9, 2.1), "CSR")
    said = "Zeros (2:4) of a MatMul, stored as CSR, on slow: 2.0x of the dense operator"
    for gflops, more in [(250.0, ", and still less than fast gives without zeros."), (150.0, ".")]:
        dense = [
            Throughput("slow", "cpu", "fp32", 100.0, None),
            Throughput("fast", "cpu", "fp32", gflops, None),
        ]
        assert advise(dense, [found], [], []) == (said + more,)


def test_advice_follows_from_the_figures():
    fast, same, wide = gain(3.1, 3.0, 3.2), gain(1.0, 0.99, 1.01), gain(2.0, 0.5, 9.0)
    slow = gain(0.4, 0.39, 0.41)
    throughput = [
        Throughput("a", "cpu", "fp32", 100.0, None),
        *(Throughput("a", "cpu", "int8", 300.0, speed, judge(speed)) for speed in (fast, same, slow, wide)),
        Throughput("a", "cpu", "bf16", None, None, None, "it did not run"),
    ]
    steps = [
        WidthSteps("a", "cpu", name, (68, 72), (1.0, 1.0), step, 0.0)
        for name, step in (("Conv", 16), ("MatMul", 4))
    ]
    noise = [NoiseFloor("a", "cuda", same, needed, True) for needed in (12, 5000)]
    formats = [
        zeros("a", same),
        zeros("b", fast),
        zeros("c", wide),
        zeros("a", slow, "CSR"),
        zeros("a", None),
    ]
    assert advise(throughput, formats, steps, noise) == (
        "int8 gives 3.1x of the matrix throughput of fp32 on a.",
        "int8 gives nothing over fp32 on a (1.00x).",
        "int8 is slower than fp32 on a (0.40x): stay with fp32.",
        "int8 over fp32 on a: could not be told (0.50x to 9.00x); measure on an idle machine.",
        "Zeros without removal do not speed up a (at most 1.00x of the dense operator): "
        "use structured pruning.",
        "Zeros (2:4) of a MatMul, on b: 3.1x of the dense operator.",
        "Zeros (2:4) of a MatMul, on c: could not be told (0.50x to 9.00x); measure on an idle machine.",
        "Zeros (2:4) of a MatMul, stored as CSR, on a: no gain (0.40x).",
        "The cost of a Conv on a climbs in steps of 16 units: keep widths at multiples of 16 there.",
        "12 pairs tell 3 % apart on a (cuda).",
        "The machine is noisy now: only 5000 pairs tell 3 % apart on a (cuda); measure when it is idle.",
    )


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino", "torch_eager"])
def test_every_sparse_format_computes_what_its_dense_form_computes(tmp_path, runtime):
    bench = Bench(Target(runtime), tmp_path, pairs=2, seconds=0.1)  # pyright: ignore[reportArgumentType]
    weight = PATTERNS["blocks 16x16, 90 %"](random_weight((64, 48)))
    x = np.random.default_rng(1).standard_normal((5, 64), dtype=np.float32)  # As the bench draws it.
    (found,) = bench.matmul(weight, 5).outputs().values()
    np.testing.assert_allclose(found, x @ weight, rtol=1e-4, atol=1e-5)
    formats = {stored for _, _, stored, _ in probes_of(bench)}
    more = {
        "onnxruntime": set(),
        "openvino": {"int8, sparse weights decompression"},
        "torch_eager": {"CSR", "BSR"},
    }
    assert formats == {"dense"} | more[runtime]
    for _, _, stored, make in probes_of(bench):
        if stored in ("CSR", "BSR"):
            (sparse,) = make(bench)[1].outputs().values()
            assert np.isfinite(sparse).all()


def test_a_machine_is_not_described_with_what_it_has_not():
    with pytest.raises(MeasurementError, match="no runtime 'tensorrt'"):
        describe_machine(runtimes=["tensorrt"])
    with pytest.raises(MeasurementError, match="threads were asked for"):
        describe_machine(threads=1000)
    with pytest.raises(MeasurementError, match="No runtime was asked for"):
        describe_machine(runtimes=[])


@pytest.mark.slow
@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino", "torch_eager"])
def test_a_described_machine_has_every_part_and_is_plain(runtime):
    heard = []
    machine = describe_machine(runtimes=[runtime], quick=True, progress=lambda *said: heard.append(said))
    assert [said for said in heard if said[1] == 0] == [
        (part, 0, 1) for part in ("throughput", "sparse formats", "widths", "noise")
    ]
    record = json.loads(json.dumps(asdict(machine), allow_nan=False))
    assert {found["name"] for found in record["runtimes"] if found["measured"]} == {runtime}
    assert all(found["gflops"] > 0 for found in record["throughput"])
    assert [found["operator"] for found in record["widths"]] == ["MatMul", "Conv"]
    assert record["noise"][0]["pairs_needed"] >= 2
    assert record["advice"]
