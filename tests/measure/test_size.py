from __future__ import annotations

import pytest

from prunekit.errors import MeasurementError
from prunekit.measure import external_files, file_size


def test_one_file_counts_itself(perceptron):
    assert file_size(perceptron) == len(perceptron.read_bytes())
    assert external_files(perceptron) == []


def test_weights_in_a_file_of_their_own_count(tmp_path, save_perceptron):
    path = save_perceptron(tmp_path / "m.onnx", 1000, external=True)
    data = tmp_path / "m.onnx.data"
    assert external_files(path) == [data]
    assert data.stat().st_size >= 1000 * 12 * 4
    assert file_size(path) == len(path.read_bytes()) + len(data.read_bytes())
    data.unlink()
    with pytest.raises(MeasurementError, match=r"m\.onnx\.data: There is no such file"):
        file_size(path)


def test_any_other_file_is_its_bytes(tmp_path):
    path = tmp_path / "weights.safetensors"
    path.write_bytes(b"12345")
    assert file_size(path) == 5


def test_absent_and_damaged_files_are_refused(tmp_path):
    with pytest.raises(MeasurementError, match="no such file"):
        file_size(tmp_path / "absent.onnx")
    damaged = tmp_path / "damaged.onnx"
    damaged.write_bytes(b"not a model at all")
    with pytest.raises(MeasurementError, match="cannot be read"):
        file_size(damaged)
