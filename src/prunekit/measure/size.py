"""How many bytes a model takes on disk."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from google.protobuf.message import DecodeError, Message

from prunekit.errors import MeasurementError
from prunekit.measure.runtimes import check_file


def file_size(path: Path | str) -> int:
    """Bytes of a model file; for an ONNX file with the files its tensors are stored in.

    Raises:
        MeasurementError: a file is absent, or the ONNX file is damaged.
    """
    path = Path(path)
    check_file(path)
    files = [path, *(external_files(path) if path.suffix == ".onnx" else ())]
    for file in files:
        check_file(file)
    return sum(file.stat().st_size for file in files)


def external_files(path: Path) -> list[Path]:
    """The files in which an ONNX file keeps tensors, each once, in the order of their names.

    Raises:
        MeasurementError: the file is damaged.
    """
    import onnx  # Loaded by whoever measures a file, and by nobody who prunes.

    try:
        model = onnx.load(str(path), load_external_data=False)
    except (DecodeError, OSError) as error:
        raise MeasurementError(
            f"The ONNX file cannot be read: {error}", where=str(path), remedy="Export the model again"
        ) from error
    return sorted({path.parent / location for location in _locations(model)})


def _locations(message: Message) -> Iterator[str]:
    """Tensors lie in graphs, attributes, subgraphs and functions: every message is looked through."""
    import onnx

    if isinstance(message, onnx.TensorProto):
        if message.data_location == onnx.TensorProto.EXTERNAL:
            yield from (entry.value for entry in message.external_data if entry.key == "location")
        return
    for field, value in message.ListFields():
        if field.type == field.TYPE_MESSAGE:
            for part in value if not isinstance(value, Message) else (value,):
                yield from _locations(part)
