"""Loads models from files that nobody vouches for.

Nothing here trusts a size, an offset or a path that a file claims: each is held against the bytes
that are there before anything uses it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError

from qcompile.errors import ExportError

_PROTOBUF_LIMIT = 1 << 31
_NESTING_LIMIT = 64
_INITIALIZERS_ARE_NO_INPUTS = 4
_BITS: dict[int, int] = {
    onnx.TensorProto.INT4: 4,
    onnx.TensorProto.UINT4: 4,
    onnx.TensorProto.FLOAT4E2M1: 4,
    getattr(onnx.TensorProto, "INT2", -1): 2,
    getattr(onnx.TensorProto, "UINT2", -1): 2,
}
_FIELDS: dict[int, str] = {
    onnx.TensorProto.FLOAT: "float_data",
    onnx.TensorProto.COMPLEX64: "float_data",
    onnx.TensorProto.DOUBLE: "double_data",
    onnx.TensorProto.COMPLEX128: "double_data",
    onnx.TensorProto.INT64: "int64_data",
    onnx.TensorProto.UINT64: "uint64_data",
    onnx.TensorProto.UINT32: "uint64_data",
    onnx.TensorProto.STRING: "string_data",
}


def read_onnx(path: str | Path) -> ir.Model:
    """Load an ONNX file; weights in external files are mapped, not read.

    Raises:
        ExportError: the file is missing, empty, truncated, no ONNX, claims what it does not hold,
            or points outside its folder.
    """
    path = Path(path)
    proto = _parse(path)
    if not proto.HasField("graph") or not (proto.graph.node or proto.graph.output):
        raise ExportError(f"{path}: this is no ONNX model: it holds no graph.")
    _check(proto, path)
    try:
        with silent("onnx_ir"):
            model = ir.from_proto(proto)
        # onnx_ir refuses data that a symbolic link takes elsewhere; caches link whole models.
        folder = path.resolve().parent if path.is_symlink() else path.parent
        ir.external_data.set_base_dir(model.graph, folder)
    except Exception as error:
        raise ExportError(
            f"{path}: the graph is broken: {_first_line(error)}. Export the model anew, or check "
            "the file with onnx.checker."
        ) from error
    _check_links(model, path)
    _tidy(model)
    return model


def external_files(model: ir.Model) -> list[Path]:
    """Return the files that hold weights of ``model`` outside the ONNX file."""
    found = {
        Path(value.const_value.path)
        for graph in model.graphs()
        for value in graph.initializers.values()
        if isinstance(value.const_value, ir.ExternalTensor)
    }
    return sorted(found)


def node_count(model: ir.Model) -> int:
    """Return how many nodes a model holds, sub-graphs and local functions included."""
    return sum(1 for graph in model.graphs() for _ in graph) + sum(
        len(function) for function in model.functions.values()
    )


def _parse(path: Path) -> onnx.ModelProto:
    try:
        if not path.is_file():
            raise ExportError(f"{path}: there is no such file.")
        size = path.stat().st_size
        if size == 0:
            raise ExportError(f"{path}: the file is empty.")
        if size >= _PROTOBUF_LIMIT:
            raise ExportError(
                f"{path}: {size:,} bytes; an ONNX file ends at 2 GB. Save the model with its "
                "weights in external data (onnx.save with save_as_external_data=True)."
            )
        proto = onnx.ModelProto()
        proto.ParseFromString(path.read_bytes())
    except DecodeError as error:
        raise ExportError(
            f"{path}: this is no ONNX model, or it is cut short: {_first_line(error)}."
        ) from error
    except OSError as error:
        raise ExportError(f"{path}: cannot be read: {error.strerror or error}.") from error
    return proto


def _check(proto: onnx.ModelProto, path: Path) -> None:
    if proto.training_info:
        raise ExportError(f"{path}: training information would be lost; remove it first.")
    for graph in _graphs(proto, path):
        if graph.sparse_initializer:
            name = graph.sparse_initializer[0].values.name
            raise ExportError(
                f"{path}: sparse initializer {name!r} is not supported; store it dense."
            )
        for tensor in graph.initializer:
            _check_tensor(tensor, path)
        for value in (*graph.input, *graph.output, *graph.value_info):
            _check_shape(value, path)
    for node in _nodes(proto, path):
        for attribute in node.attribute:
            for tensor in (attribute.t, *attribute.tensors):
                _check_tensor(tensor, path)


def _tidy(model: ir.Model) -> None:
    """Write old and other spellings of the same thing in one way."""
    if "ai.onnx" in model.opset_imports:
        model.opset_imports.setdefault("", model.opset_imports.pop("ai.onnx"))
    if model.ir_version < _INITIALIZERS_ARE_NO_INPUTS:
        # Before, every initializer was listed among the inputs, and yet was a constant.
        names = set(model.graph.initializers)
        inputs = [value for value in model.graph.inputs if value.name not in names]
        model.graph.inputs.clear()
        model.graph.inputs.extend(inputs)
        model.ir_version = _INITIALIZERS_ARE_NO_INPUTS


def _check_links(model: ir.Model, path: Path) -> None:
    """Check that every value that is read or handed out comes from somewhere."""
    graph = model.graph
    known = {id(value) for value in (*graph.inputs, *graph.initializers.values())}
    for node in graph:
        for value in node.inputs:
            if value is not None and value.producer() is None and id(value) not in known:
                raise ExportError(
                    f"{path}: node {node.op_type} {node.name!r} reads {value.name!r}, which "
                    "nothing produces."
                )
    for value in graph.outputs:
        if value.producer() is None and id(value) not in known:
            raise ExportError(f"{path}: nothing produces the output {value.name!r}.")


@contextmanager
def silent(name: str) -> Iterator[None]:
    """Keep a library from logging about what an error here says already."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def _graphs(proto: onnx.ModelProto, path: Path) -> Iterator[onnx.GraphProto]:
    pending = [(proto.graph, 0)]
    pending += [(a.g, 1) for f in proto.functions for n in f.node for a in n.attribute]
    while pending:
        graph, depth = pending.pop()
        if depth > _NESTING_LIMIT:
            raise ExportError(f"{path}: sub-graphs nest deeper than {_NESTING_LIMIT}.")
        yield graph
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.HasField("g"):
                    pending.append((attribute.g, depth + 1))
                pending.extend((inner, depth + 1) for inner in attribute.graphs)


def _nodes(proto: onnx.ModelProto, path: Path) -> Iterator[onnx.NodeProto]:
    for graph in _graphs(proto, path):
        yield from graph.node
    for function in proto.functions:
        yield from function.node


def _check_tensor(tensor: onnx.TensorProto, path: Path) -> None:
    """Hold the size that a tensor claims against the bytes that it brings."""
    where = f"{path}: tensor {tensor.name!r}"
    elements = 1
    for size in tensor.dims:
        if size < 0:
            raise ExportError(f"{where} has a negative dimension {size}.")
        elements *= size
    external = tensor.data_location == onnx.TensorProto.EXTERNAL
    if tensor.data_type == onnx.TensorProto.UNDEFINED:
        if elements > 1 or external or tensor.name:
            raise ExportError(f"{where} has no element type.")
        return
    if tensor.data_type not in onnx.TensorProto.DataType.values():
        raise ExportError(f"{where} has an unknown element type {tensor.data_type}.")
    if tensor.data_type == onnx.TensorProto.STRING:
        claimed, held = elements, len(tensor.string_data)
        unit = "strings"
    elif external:
        claimed = _bytes(tensor.data_type, elements)
        held = _external_bytes(tensor, path, claimed)
        unit = "bytes"
    elif tensor.HasField("raw_data"):
        claimed, held = _bytes(tensor.data_type, elements), len(tensor.raw_data)
        unit = "bytes"
    else:
        claimed, held = _entries(tensor, elements)
        unit = "numbers"
    if claimed != held:
        raise ExportError(
            f"{where} of shape {list(tensor.dims)} needs {claimed:,} {unit} but brings {held:,}; "
            "the file is damaged or cut short."
        )


def _check_shape(value: onnx.ValueInfoProto, path: Path) -> None:
    for dimension in value.type.tensor_type.shape.dim:
        if dimension.HasField("dim_value") and dimension.dim_value < 0:
            raise ExportError(
                f"{path}: value {value.name!r} has a negative dimension {dimension.dim_value}."
            )


def _bytes(data_type: int, elements: int) -> int:
    bits = _BITS.get(data_type)
    if bits is not None:
        return (elements * bits + 7) // 8
    return elements * onnx.helper.tensor_dtype_to_np_dtype(data_type).itemsize


def _entries(tensor: onnx.TensorProto, elements: int) -> tuple[int, int]:
    bits = _BITS.get(tensor.data_type)
    field = _FIELDS.get(tensor.data_type, "int32_data")
    held = len(getattr(tensor, field))
    if bits is not None:
        return (elements * bits + 7) // 8, held
    complex_types = (onnx.TensorProto.COMPLEX64, onnx.TensorProto.COMPLEX128)
    return elements * (2 if tensor.data_type in complex_types else 1), held


def _external_bytes(tensor: onnx.TensorProto, path: Path, claimed: int) -> int:
    """Return the bytes that an external tensor names; ``claimed`` where it gives no length."""
    where = f"{path}: tensor {tensor.name!r}"
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    relative = PurePosixPath(location)
    if not location or relative.is_absolute() or ".." in relative.parts or "\\" in location:
        raise ExportError(
            f"{where} points to {location!r}, outside the model's folder; its data must lie "
            "beside the model."
        )
    file = path.parent / relative
    folders = {path.parent.resolve(), path.resolve().parent}
    resolved = file.resolve()
    if not any(resolved.is_relative_to(folder) for folder in folders):
        raise ExportError(f"{where}: {file} is a link to outside the model's folder.")
    if not resolved.is_file():
        raise ExportError(
            f"{where} needs {file}, which is missing; keep the model and its data together."
        )
    try:
        offset, size = int(entries.get("offset", 0)), resolved.stat().st_size
        length = int(entries.get("length", claimed))
    except ValueError as error:
        raise ExportError(f"{where} has an offset or length that is no number.") from error
    if offset < 0 or length < 0 or offset + length > size:
        raise ExportError(
            f"{where} claims bytes {offset:,} to {offset + length:,} of {file}, which has {size:,}."
        )
    return length


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:300].rstrip(".")


def load_source(spec: str | Path, allow_pickle: bool = False) -> Any:
    """Return the model that the command line's SOURCE names.

    Args:
        spec: ``model.onnx``, ``model.pt2``, ``package.module:callable`` or, with
            ``allow_pickle``, a pickled module (``.pt``, ``.pth``).
        allow_pickle: load a pickled module, which can run any code.

    Returns:
        A path for an ONNX file, else a ``torch.nn.Module`` or ``torch.export.ExportedProgram``.

    Raises:
        ExportError: nothing can be loaded from ``spec``.
    """
    path = Path(spec)
    if path.suffix == ".onnx":
        if not path.is_file():
            raise ExportError(f"{path}: there is no such file.")
        return path
    from qcompile.exporter.torch_source import load

    return load(str(spec), allow_pickle)
