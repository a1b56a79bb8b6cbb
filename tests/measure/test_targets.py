"""Laws over the table of runtimes; NumPy says what the perceptron computes."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from prunekit.errors import MeasurementError
from prunekit.measure import (
    RUNTIMES,
    Target,
    available_cores,
    check_target,
    compare_latency,
    environment,
    open_openvino,
    open_target,
)
from prunekit.measure.probes.graphs import save_quantized_matmul
from prunekit.measure.runtimes import openvino_cpu
from prunekit.measure.runtimes.torch_eager import threads_of

TOLERANCE = {"fp32": 1e-5, "bf16": 0.05}
OPENED = [
    pytest.param(name, precision, marks=[pytest.mark.slow] if name == "torch_compile" else [])
    for name, runtime in RUNTIMES.items()
    for precision in runtime.precisions["cpu"]
    if precision in TOLERANCE
]


class Perceptron(nn.Module):
    """The perceptron of the ONNX file as a module."""

    def __init__(self, path, width=None):
        super().__init__()
        w1, w2 = (numpy_helper.to_array(tensor).copy() for tensor in onnx.load(str(path)).graph.initializer)
        w1, w2 = w1[:, :width], w2[:width]
        self.w1, self.w2 = nn.Parameter(torch.from_numpy(w1)), nn.Parameter(torch.from_numpy(w2))

    def forward(self, x):
        return torch.relu(x @ self.w1) @ self.w2


def in_numpy(path, x):
    w1, w2 = (numpy_helper.to_array(tensor) for tensor in onnx.load(str(path)).graph.initializer)
    return np.maximum(x.astype(np.float64) @ w1, 0) @ w2


@pytest.fixture
def opened(perceptron, x):
    """Opens the perceptron on a target, in the form that its runtime takes."""

    def on(target):
        if RUNTIMES[target.runtime].takes == "file":
            return open_target(target, perceptron, x)
        return open_target(target, Perceptron(perceptron).eval(), ((torch.from_numpy(x["x"]),), {}))

    return on


@pytest.mark.parametrize(("runtime", "precision"), OPENED)
def test_every_runtime_computes_what_the_model_computes(opened, perceptron, x, runtime, precision):
    target = Target(runtime, batch=3, precision=precision)
    before = torch.get_num_threads()
    runner = opened(target)
    exact = in_numpy(perceptron, x["x"])
    for _ in range(2):  # A call changes nothing about the next.
        (found,) = runner.outputs().values()
        assert found.dtype == np.float32
        assert np.abs(found - exact).max() <= TOLERANCE[precision] * np.abs(exact).max()
        assert runner() is None
    record = json.loads(json.dumps(runner.options))
    assert (
        record["version"].split("+")[0].split("-")[0] in environment()["packages"][RUNTIMES[runtime].package]
    )
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("runtime", [name for name, row in RUNTIMES.items() if name != "torch_compile"])
def test_runners_that_are_open_at_once_keep_to_their_own(opened, perceptron, x, runtime):
    threads = available_cores()
    one, many = opened(Target(runtime, batch=3)), opened(Target(runtime, batch=3, threads=threads))
    exact = in_numpy(perceptron, x["x"])
    timed = compare_latency(one, many, pairs=3, min_pairs=2, warmup=1)
    assert timed.speedup.pairs == 3
    for runner in (one, many):
        np.testing.assert_allclose(next(iter(runner.outputs().values())), exact, rtol=1e-4, atol=1e-4)
    said = {"onnxruntime": "intra_op_num_threads", "openvino": "INFERENCE_NUM_THREADS"}
    key = said.get(runtime, "num_threads")
    assert [int(runner.options[key]) for runner in (one, many)] == [1, threads]


@pytest.mark.parametrize(("precision", "hint"), [("fp32", "f32"), ("bf16", "bf16"), ("int8", "f32")])
def test_what_openvino_really_does_is_recorded(perceptron, x, precision, hint):
    options = open_openvino(perceptron, x, threads=1, precision=precision).options
    assert options["INFERENCE_PRECISION_HINT"] == hint
    assert options["INFERENCE_NUM_THREADS"] == options["NUM_STREAMS"] == "1"
    assert options["PERFORMANCE_HINT"] == "LATENCY"
    assert options["ENABLE_CPU_PINNING"] == "False"
    more = open_openvino(perceptron, x, threads=1, properties={"ENABLE_HYPER_THREADING": "NO"})
    assert more.options["ENABLE_HYPER_THREADING"] == "False"


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino", "torch_eager"])
def test_other_inputs_leave_its_own_as_they_are(opened, perceptron, x, runtime):
    runner = opened(Target(runtime, batch=3))
    other = {"x": x["x"] + 1}
    given = other if RUNTIMES[runtime].takes == "file" else ((torch.from_numpy(other["x"]),), {})
    for inputs, values in ((given, other), (None, x), (given, other)):
        found = next(iter(runner.outputs(inputs).values()))
        np.testing.assert_allclose(found, in_numpy(perceptron, values["x"]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_a_quantized_file_is_opened_as_it_is(tmp_path, runtime):
    weight = np.random.default_rng(0).uniform(-1, 1, (16, 4)).astype(np.float32)
    path = save_quantized_matmul(tmp_path / "quantized.onnx", weight)
    x = np.random.default_rng(1).uniform(-1, 1, (3, 16)).astype(np.float32)
    runner = open_target(Target(runtime, batch=3, precision="int8"), path, {"x": x})
    # Half a step of the output (1/32), and those of inputs and weights over 16 terms.
    assert np.abs(runner.outputs()["y"] - x @ weight).max() < 1 / 64 + 16 * (1 / 64 + 1 / 254)


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_int8_wants_a_quantized_file(perceptron, x, runtime):
    with pytest.raises(MeasurementError, match="no quantized operator"):
        open_target(Target(runtime, batch=3, precision="int8"), perceptron, x)


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_a_graph_that_the_runtime_rejects_is_quoted(tmp_path, x, runtime):
    path = tmp_path / "strange.onnx"
    graph = helper.make_graph(
        [helper.make_node("Wobble", ["x"], ["y"], domain="strange.example")],
        "strange",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 8])],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("strange.example", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), str(path))
    with pytest.raises(
        MeasurementError, match=r"strange\.onnx: .*could not open .*\. Expected .*Export it again"
    ):
        open_target(Target(runtime, batch=3), path, x)
    damaged = tmp_path / "damaged.onnx"
    damaged.write_bytes(b"not a model")
    with pytest.raises(MeasurementError, match=r"damaged\.onnx"):
        open_target(Target(runtime, batch=3), damaged, x)


def test_openvino_names_the_operator_that_it_does_not_know(tmp_path, perceptron):
    for inputs, said in [
        ({}, r"inputs \['x'\]"),
        ({"x": np.zeros((1, 8))}, "'x' has the type float64. Expected float32"),
        ({"x": np.zeros((1, 7), np.float32)}, r"'x' has the shape \[1, 7\]"),
        ({"x": np.zeros(8, np.float32)}, r"'x' has the shape \[8\]"),
    ]:
        with pytest.raises(MeasurementError, match=said):
            open_openvino(perceptron, inputs, threads=1)
    runner = open_openvino(perceptron, {"x": np.zeros((1, 8), np.float32)}, threads=1)
    with pytest.raises(MeasurementError, match=r"'x' has the shape \[2, 8\]"):
        runner.outputs({"x": np.zeros((2, 8), np.float32)})


def test_a_module_that_cannot_run_is_refused(perceptron, x):
    class Broken(nn.Module):
        def forward(self, x):
            raise ValueError("this module is broken")

    inputs = ((torch.from_numpy(x["x"]),), {})
    with pytest.raises(MeasurementError, match="ValueError: this module is broken"):
        open_target(Target("torch_eager", batch=3), Broken().eval(), inputs)
    with pytest.raises(MeasurementError, match=r"training mode.*eval\(\)"):
        open_target(Target("torch_eager", batch=3), Perceptron(perceptron).train(), inputs)


def test_the_module_that_was_given_is_left_as_it_is(perceptron, x):
    model = Perceptron(perceptron).eval()
    open_target(Target("torch_eager", batch=3, precision="bf16"), model, ((torch.from_numpy(x["x"]),), {}))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_threads_of_a_call_are_those_of_the_call_alone():
    before = torch.get_num_threads()
    with threads_of(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before
    with pytest.raises(RuntimeError, match="inside"), threads_of(before + 1):
        raise RuntimeError("inside")
    assert torch.get_num_threads() == before


def test_threads_are_set_once_while_runners_take_turns(opened, monkeypatch):
    before = torch.get_num_threads()
    other = 1 if before > 1 else 2
    if other > available_cores():
        pytest.skip("one core leaves no other number of threads")
    runner, plain = opened(Target("torch_eager", batch=3, threads=other)), opened(Target(batch=3))
    real, changes = torch.set_num_threads, []
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: (changes.append(threads), real(threads)))
    compare_latency(plain, runner, pairs=5, min_pairs=2, warmup=2)
    assert changes == [other, before]
    assert torch.get_num_threads() == before


@pytest.mark.slow
def test_many_modules_of_one_class_are_all_compiled(perceptron, x):
    inputs = ((torch.from_numpy(x["x"]),), {})
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    for width in range(2, 14):  # PyTorch gives up after eight unless it is told not to.
        open_target(Target("torch_compile", batch=3), Perceptron(perceptron, width).eval(), inputs)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 12


BAD = [
    (Target("tensorrt"), r"no runtime 'tensorrt'\. Expected one of onnxruntime, openvino, torch_eager"),
    (Target(device="tpu"), r"no device 'tpu'\. Expected one of cpu, cuda"),
    (Target(precision="fp8"), r"no precision 'fp8'\. Expected one of fp32, bf16, int8"),
    (Target(precision="bf16"), "does not compute in bf16 on cpu. Expected one of fp32, int8"),
    (Target(device="cuda"), "onnxruntime is measured on cpu and not on cuda"),
    (Target("openvino", "cuda"), "openvino is measured on cpu and not on cuda"),
    (Target(threads=available_cores() + 1), "threads were asked for"),
    (Target(threads=0), "0 threads were asked for"),
    (Target(batch=0), "A batch of 0"),
    (Target(sequence=0), "A sequence of 0"),
]


@pytest.mark.parametrize(("target", "said"), BAD, ids=lambda part: str(part)[:40])
def test_a_target_that_is_not_there_is_refused(target, said):
    with pytest.raises(MeasurementError, match=said):
        check_target(target)


@pytest.mark.parametrize("runtime", ["torch_eager", "torch_compile"])
def test_without_a_gpu_cuda_is_refused(monkeypatch, runtime):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(MeasurementError, match=r"no GPU.*machine that will serve"):
        check_target(Target(runtime, "cuda"))


def test_a_runtime_that_is_not_installed_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MeasurementError, match=r'not installed.*pip install "prunekit\[openvino\]"'):
        check_target(Target("openvino"))


def test_a_processor_without_bfloat16_is_refused(monkeypatch):
    class Core:
        def get_property(self, device, name):
            assert (device, name) == ("CPU", "OPTIMIZATION_CAPABILITIES")
            return ["FP32", "INT8"]

    monkeypatch.setattr(openvino_cpu, "openvino_core", Core)
    check_target(Target("openvino", precision="int8"))
    with pytest.raises(MeasurementError, match="lists FP32, INT8 for this processor"):
        check_target(Target("openvino", precision="bf16"))


SIGNALLED = """
import faulthandler, os, signal, sys
import numpy as np
from pathlib import Path
from prunekit.measure import open_openvino
faulthandler.enable()
signal.signal(signal.SIGUSR1, lambda *_: print("alive"))
name, rows, width = sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
given = {name: np.zeros((rows, width), np.float32)}
first, second = (open_openvino(Path(sys.argv[1]), given, threads=1) for _ in range(2))
first()
second()
del first
del second
os.kill(os.getpid(), signal.SIGUSR1)
"""


def test_a_process_takes_signals_after_two_models_were_open_at_once(perceptron, x):
    """The oracle is Python's own handler."""
    [(name, array)] = x.items()
    command = [sys.executable, "-c", SIGNALLED, str(perceptron), name, *map(str, array.shape)]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (found.returncode, found.stdout) == (0, "alive\n"), found.stderr


def test_model_and_inputs_are_those_of_the_target(perceptron, x):
    with pytest.raises(MeasurementError, match=r"was given a Perceptron. Expected the path of an ONNX file"):
        open_target(Target(batch=3), Perceptron(perceptron), x)
    with pytest.raises(MeasurementError, match=r"was given a file. Expected a torch.nn.Module"):
        open_target(Target("torch_eager", batch=3), perceptron, x)
    with pytest.raises(MeasurementError, match="dimension of 5, the batch"):
        open_target(Target(batch=5), perceptron, x)
    with pytest.raises(MeasurementError, match="dimension of 128, the sequence"):
        open_target(Target(batch=3, sequence=128), perceptron, x)
    with pytest.raises(MeasurementError, match="no such file"):
        open_target(Target(batch=3), perceptron.with_name("absent.onnx"), x)


def test_a_target_reads_as_one_line():
    assert str(Target()) == "onnxruntime on cpu, 1 thread, batch 1, fp32"
    target = Target("openvino", threads=2, batch=8, sequence=128, precision="bf16")
    assert str(target) == "openvino on cpu, 2 threads, batch 8, sequence 128, bf16"


def test_a_digest_follows_what_decides_speed_and_nothing_else():
    target, record = Target(), environment(1)
    digest = target.digest(record)
    assert len(digest) == 16
    assert int(digest, 16) >= 0
    packages = record["packages"]
    same = [{"date": "1970"}, {"load_1m": 9.0}, {"memory_bytes": 1}, {"gpus": ["another"]}]
    same += [{"packages": packages | {"openvino": "0"}}]
    assert {target.digest(record | change) for change in same} == {digest}
    others = [
        {"packages": packages | {"onnxruntime": "0"}},
        *({"cpu": record["cpu"] | {key: value}} for key, value in CPUS.items()),
    ]
    changed = [target.digest(record | change) for change in others]
    changed += [
        replace(target, **{key: value}).digest(record)
        for key, value in {
            "runtime": "openvino",
            "device": "cuda",
            "threads": 2,
            "batch": 2,
            "sequence": 2,
            "precision": "int8",
        }.items()
    ]
    assert len({digest, *changed}) == 1 + len(changed)
    on_gpu = Target("torch_eager", "cuda")
    assert on_gpu.digest(record) != on_gpu.digest(record | {"gpus": ["another"]})


CPUS = {"model": "another", "isa": [], "available_cores": 99}
