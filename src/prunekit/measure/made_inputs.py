"""Inputs for an ONNX file: random numbers of the right types and shapes, or the user's own file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from prunekit.errors import MeasurementError
from prunekit.measure.runtimes import check_file

_IMAGE_VALUES = 256
_FLOATS = ("float16", "float32", "float64")
_IDS = ("int32", "int64", "uint32", "uint64", "int16", "uint16")
_SMALL = ("int8", "uint8")

NPZ = "an .npz file with one array of numbers per input, as np.savez writes it"


@dataclass(frozen=True)
class Made:
    """How inputs are made.

    Attributes:
        batch: size of a first dimension that is open.
        sequence: size of every other open dimension; None = there may be none.
        high: integer identities are drawn from 0 to below this; 2 = 0 and 1, which fits every vocabulary.
        seed: of the numbers.
    """

    batch: int = 1
    sequence: int | None = None
    high: int = 2
    seed: int = 0


def make_inputs(path: Path | str, made: Made | None = None) -> dict[str, np.ndarray]:
    """Inputs for an ONNX file, by the types and shapes it states.

    Floats are standard normal, ``int8`` and ``uint8`` over their range, booleans 0 or 1. Of integers,
    inputs with "mask" in the name are all 1 (nothing is padding), with "token_type" all 0, with "position"
    counted up along the last dimension; the rest are identities below ``high``. Values hardly change how
    long dense models take; for one whose work depends on them, such as one that skips padding, give real
    inputs.

    Args:
        path: the file.
        made: sizes of open dimensions, range and seed.

    Raises:
        MeasurementError: the file cannot be read, an open dimension has no size, or an input has a type
            that cannot be made.
    """
    import onnx

    path, made = Path(path), made or Made()
    check_file(path)
    if made.batch < 1 or (made.sequence is not None and made.sequence < 1) or made.high < 1 or made.seed < 0:
        raise MeasurementError(
            f"Inputs were asked for with {made}",
            expected="sizes and a range of 1 or more, a seed of 0 or more",
        )
    try:
        graph = onnx.load(str(path), load_external_data=False).graph
    except Exception as error:  # protobuf's and onnx's errors have no common base
        raise MeasurementError(
            f"The file cannot be read: {error}", expected="a complete ONNX file", where=str(path)
        ) from error
    rng = np.random.default_rng(made.seed)
    weights = {tensor.name for tensor in graph.initializer}
    inputs = {}
    for value in graph.input:
        if value.name in weights:
            continue
        where = f"{path}, input {value.name!r}"
        tensor = value.type.tensor_type
        sizes = [_open_name(size) if not size.dim_value else size.dim_value for size in tensor.shape.dim]
        dtype = _dtype(tensor.elem_type, where)
        inputs[value.name] = _values(value.name, dtype, _shape(sizes, made, where), made, rng)
    return inputs


def read_inputs(path: Path | str) -> dict[str, np.ndarray]:
    """Inputs from an ``.npz`` file, by name; types and shapes are checked where the model is opened.

    Raises:
        MeasurementError: there is no such file, or it is not one of arrays of numbers.
    """
    path = Path(path)
    if not path.is_file():
        raise MeasurementError("There is no such file", expected=NPZ, where=str(path))
    try:
        with path.open("rb") as file:
            stored = np.load(file, allow_pickle=False)
            if not isinstance(stored, np.lib.npyio.NpzFile):
                raise ValueError("it holds one array without a name")
            return {name: stored[name] for name in stored.files}
    except (OSError, ValueError, EOFError, BadZipFile) as error:
        raise MeasurementError(
            f"The inputs cannot be read: {error}",
            expected=NPZ,
            where=str(path),
        ) from error


def _open_name(size: object) -> str:
    return getattr(size, "dim_param", "") or "?"


def _dtype(element: int, where: str) -> str:
    import onnx

    try:
        name = onnx.helper.tensor_dtype_to_np_dtype(element).name
    except (KeyError, TypeError):
        name = onnx.TensorProto.DataType.Name(element)
    if name not in (*_FLOATS, *_IDS, *_SMALL, "bool"):
        raise MeasurementError(
            f"It has the type {name}", expected="numbers or booleans", where=where, remedy="Give an .npz file"
        )
    return name


def _shape(sizes: Sequence[int | str], made: Made, where: str) -> tuple[int, ...]:
    shape = []
    for place, size in enumerate(sizes):
        if isinstance(size, int):
            shape.append(size)
        elif place == 0:
            shape.append(made.batch)
        elif made.sequence is not None:
            shape.append(made.sequence)
        else:
            raise MeasurementError(
                f"Its shape is {list(sizes)}, and dimension {place} ({size}) is open",
                expected="a size for it",
                where=where,
                remedy="Give the sequence length, or real inputs as an .npz file",
            )
    return tuple(shape)


def _values(
    name: str, dtype: str, shape: tuple[int, ...], made: Made, rng: np.random.Generator
) -> np.ndarray:
    if dtype in _FLOATS:
        return rng.standard_normal(shape).astype(dtype)
    if dtype == "bool":
        return rng.random(shape) < 0.5
    if dtype in _SMALL:
        lowest = int(np.iinfo(dtype).min)
        return rng.integers(lowest, lowest + _IMAGE_VALUES, size=shape).astype(dtype)
    if "mask" in name:
        return np.ones(shape, dtype)
    if "token_type" in name:
        return np.zeros(shape, dtype)
    if "position" in name and shape:
        return np.broadcast_to(np.arange(shape[-1], dtype=dtype), shape).copy()
    return rng.integers(made.high, size=shape).astype(dtype)
