"""An ONNX file without a trace of the machine it was made on: the same bytes for the same model."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import onnx_ir as ir

from prunekit.errors import StorageError
from prunekit.files import put_in_place

SINGLE_FILE_BYTES = 1_900_000_000
"""Above this many bytes of weights they go to a file of their own: a protobuf message ends at 2 GiB."""


def clean(model: ir.Model, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """Name inputs and outputs, give weights their own names back, and take out what is of this machine.

    The exporter stores stack traces with absolute paths in every node's metadata.

    Args:
        model: changed in place.
        inputs: names of its inputs, in order.
        outputs: names of its outputs, in order.
    """
    graph = model.graph
    ends = {id(value) for value in (*graph.inputs, *graph.outputs)}
    inner = [value for value in _values(model) if id(value) not in ends]
    for value in inner:
        if value.name is not None and value.name.startswith("model.") and value.is_initializer():
            value.name = value.name.removeprefix("model.")
    taken = {value.name for value in inner} | {*inputs, *outputs}
    for value in inner:
        if value.name in (*inputs, *outputs):
            value.name = next(
                name for n in range(len(taken) + 1) if (name := f"{value.name}_inner_{n}") not in taken
            )
            taken.add(value.name)
    for value, name in (
        *zip(graph.inputs, inputs, strict=True),
        *zip(graph.outputs, outputs, strict=True),
    ):
        value.name = name
    for thing in (model, graph, *model.functions.values(), *_values(model), *_nodes(model)):
        thing.metadata_props.clear()
        thing.doc_string = None


def write(model: ir.Model, path: Path) -> tuple[Path, Path | None]:
    """Write to a directory beside ``path``, flush to disk, rename: the weights first, then the graph.

    Returns:
        The file, and the file of weights or None where everything is in one.

    Raises:
        StorageError: the disk or the directory refused.
    """
    size = sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value)
    weights = path.with_name(f"{path.name}.data") if size > SINGLE_FILE_BYTES else None
    try:
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as directory:
            if weights is None:
                proto = ir.to_proto(model)
                data = proto.SerializeToString(deterministic=True)
                _store(Path(directory) / path.name, data)
            else:
                ir.save(model, Path(directory) / path.name, external_data=weights.name)
            for target in (weights, path):
                if target is not None:
                    put_in_place(Path(directory) / target.name, target)
    except OSError as error:
        raise StorageError(
            f"The ONNX file could not be written: {error}",
            where=str(path),
            remedy="Check that the directory exists, is writable and has space",
        ) from error
    return path, weights


def _nodes(model: ir.Model) -> list[ir.Node]:
    graphs = (model.graph, *model.functions.values())
    return [node for graph in graphs for node in ir.traversal.RecursiveGraphIterator(graph)]


def _values(model: ir.Model) -> list[ir.Value]:
    inside = [value for node in _nodes(model) for value in node.outputs]
    return [*model.graph.inputs, *model.graph.initializers.values(), *inside]


def _store(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
