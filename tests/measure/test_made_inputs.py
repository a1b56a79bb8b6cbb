"""Made inputs are what ONNX Runtime asks for."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from prunekit.errors import MeasurementError
from prunekit.measure import Made, make_inputs, open_onnx, read_inputs


def save(path, inputs):
    """A model with these inputs ``(name, type, shape)`` that hands them on."""
    values = [helper.make_tensor_value_info(*one) for one in inputs]
    nodes = [helper.make_node("Identity", [name], [f"{name}_out"]) for name, _, _ in inputs]
    outputs = [helper.make_tensor_value_info(f"{name}_out", kind, shape) for name, kind, shape in inputs]
    graph = helper.make_graph(nodes, "handing", values, outputs)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), str(path))
    return path


@pytest.fixture
def encoder(tmp_path):
    open_shape = ["batch", "sequence"]
    return save(
        tmp_path / "encoder.onnx",
        [
            ("input_ids", TensorProto.INT64, open_shape),
            ("attention_mask", TensorProto.INT64, open_shape),
            ("token_type_ids", TensorProto.INT64, open_shape),
            ("position_ids", TensorProto.INT32, open_shape),
            ("pixels", TensorProto.FLOAT, ["batch", 3, 4, 4]),
            ("half", TensorProto.FLOAT16, ["batch"]),
            ("raw", TensorProto.UINT8, ["batch", 50]),
            ("signed", TensorProto.INT8, ["batch", 50]),
            ("use", TensorProto.BOOL, [1, 9]),
            ("scale", TensorProto.DOUBLE, []),
        ],
    )


def test_types_shapes_and_ranges_are_those_of_the_model(encoder):
    made = make_inputs(encoder, Made(batch=2, sequence=7, high=1000))
    assert {name: array.shape for name, array in made.items()} == {
        **dict.fromkeys(["input_ids", "attention_mask", "token_type_ids", "position_ids"], (2, 7)),
        "pixels": (2, 3, 4, 4),
        "half": (2,),
        "raw": (2, 50),
        "signed": (2, 50),
        "use": (1, 9),
        "scale": (),
    }
    outputs = open_onnx(encoder, made, threads=1).outputs()
    for name, array in made.items():
        np.testing.assert_array_equal(outputs[f"{name}_out"], array)
    assert 1 < made["input_ids"].max() < 1000
    assert (made["attention_mask"] == 1).all()
    assert (made["token_type_ids"] == 0).all()
    assert (made["position_ids"] == np.arange(7)).all()
    assert made["raw"].max() > 127 > -1 > made["signed"].min()


def test_the_seed_decides_and_identities_fit_every_vocabulary_by_default(encoder):
    first, same, other = (make_inputs(encoder, Made(sequence=64, seed=seed)) for seed in (0, 0, 1))
    assert set(np.unique(first["input_ids"])) == {0, 1}
    np.testing.assert_array_equal(first["pixels"], same["pixels"])
    assert not np.array_equal(first["pixels"], other["pixels"])


def test_weights_are_no_inputs(perceptron):
    assert {name: array.shape for name, array in make_inputs(perceptron).items()} == {"x": (1, 8)}


def test_what_cannot_be_made_is_refused(tmp_path, encoder):
    with pytest.raises(MeasurementError, match=r"input 'input_ids': .*dimension 1 \(sequence\) is open"):
        make_inputs(encoder)
    words = save(tmp_path / "words.onnx", [("words", TensorProto.STRING, [1])])
    with pytest.raises(MeasurementError, match="input 'words': It has the type"):
        make_inputs(words)
    with pytest.raises(MeasurementError, match="no such file"):
        make_inputs(tmp_path / "absent.onnx")
    damaged = tmp_path / "damaged.onnx"
    damaged.write_bytes(b"junk" * 99)
    with pytest.raises(MeasurementError, match="cannot be read"):
        make_inputs(damaged)
    with pytest.raises(MeasurementError, match="batch=0"):
        make_inputs(encoder, Made(batch=0))


def test_inputs_from_a_file(tmp_path):
    path = tmp_path / "inputs.npz"
    np.savez(path, x=np.arange(3), y=np.ones((2, 2), np.float16))
    found = read_inputs(path)
    assert {name: array.dtype.name for name, array in found.items()} == {"x": "int64", "y": "float16"}
    np.save(tmp_path / "one.npy", np.arange(3))
    np.savez(tmp_path / "objects.npz", x=np.array([{}], dtype=object))
    (tmp_path / "junk.npz").write_bytes(b"PK\x03\x04junk")
    for bad in ("one.npy", "objects.npz", "junk.npz", "absent.npz"):
        with pytest.raises(MeasurementError, match=bad):
            read_inputs(tmp_path / bad)
