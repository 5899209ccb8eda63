"""A model repository for Triton Inference Server around an exported model.

    DIR/NAME/config.pbtxt
    DIR/NAME/libqcompile_ort.so
    DIR/NAME/1/model.onnx          and model.onnx.data, where weights are apart

Fields are those that the server publishes in its ``model_config.proto``.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from qcompile.errors import ExportError
from qcompile.exporter.result import ExportResult
from qcompile.plugin import LIBRARY, get_library_path
from qcompile.running.sessions import Session

__all__ = ["export_to_triton"]

_TYPES = {
    "bool": "TYPE_BOOL",
    "uint8": "TYPE_UINT8",
    "uint16": "TYPE_UINT16",
    "uint32": "TYPE_UINT32",
    "uint64": "TYPE_UINT64",
    "int8": "TYPE_INT8",
    "int16": "TYPE_INT16",
    "int32": "TYPE_INT32",
    "int64": "TYPE_INT64",
    "float16": "TYPE_FP16",
    "float": "TYPE_FP32",
    "double": "TYPE_FP64",
    "string": "TYPE_STRING",
    "bfloat16": "TYPE_BF16",
}
_LARGEST_BATCH = 64
_QUEUE_DELAY = 200  # microseconds that a request may wait for others; the batch pays from two on


def export_to_triton(
    export: Callable[[Path], ExportResult],
    repository: str | Path,
    name: str,
    *,
    root: str | Path | None = None,
) -> ExportResult:
    """Export a model into a repository for Triton Inference Server.

    The model's folder appears whole or not at all. Where the first axis of every input and output
    is dynamic, it is the batch, and the server forms batches of requests.

    Args:
        export: writes the model to the path that it is given, such as
            :func:`qcompile.export_onnx`.
        repository: the folder of the server's models; made where it is missing.
        name: of the model, and of its folder.
        root: what the server calls ``repository``, where that is another path (in a container,
            for instance): the plugin has to be named by its whole path there.

    Raises:
        ExportError: the name is none, such a model exists, or what the model takes and gives
            cannot be described.
        PluginError: the plugin is not installed.
    """
    if re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name) is None:
        raise ExportError(
            f"{name!r} cannot be the name of a model: use letters, digits, '_', '-' and '.'."
        )
    repository = Path(repository)
    place = repository / name
    if place.exists():
        raise ExportError(f"{place} exists already; remove it, or choose another repository.")
    library = Path(get_library_path())
    try:
        repository.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{name}.", dir=repository))
    except OSError as error:
        raise ExportError(f"{repository}: cannot be written to: {error.strerror}.") from error
    try:
        whole = folder / name
        (whole / "1").mkdir(parents=True)
        result = export(whole / "1" / "model.onnx")
        seen = Path(root) if root is not None else repository.absolute()
        text = _configuration(result.path, name, (seen / name / LIBRARY).as_posix())
        (whole / "config.pbtxt").write_text(text)
        shutil.copyfile(library, whole / LIBRARY)
        whole.replace(place)
    except OSError as error:
        raise ExportError(f"{place}: cannot be written: {error.strerror or error}.") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    result.path = place / "1" / result.path.name
    if result.data_path is not None:
        result.data_path = result.path.with_name(result.data_path.name)
    return result


def _configuration(model: Path, name: str, library: str) -> str:
    """Return the text of config.pbtxt."""
    session = Session(model, plugin=True)
    inputs, outputs = session.inputs, session.outputs
    batched = all(
        tensor.shape and not isinstance(tensor.shape[0], int) for tensor in (*inputs, *outputs)
    )
    lines = [
        f"name: {json.dumps(name)}",
        'platform: "onnxruntime_onnx"',
        'backend: "onnxruntime"',
        f"max_batch_size: {_LARGEST_BATCH if batched else 0}",
        _tensors("input", inputs, batched),
        _tensors("output", outputs, batched),
        "instance_group [ { kind: KIND_CPU count: 1 } ]",
    ]
    if batched:
        lines.append(f"dynamic_batching {{ max_queue_delay_microseconds: {_QUEUE_DELAY} }}")
    lines.append(f"model_operations {{ op_library_filename: {json.dumps(library)} }}")
    return "\n".join(lines) + "\n"


def _tensors(field: str, tensors: Sequence[Any], batched: bool) -> str:
    return f"{field} [\n" + ",\n".join(_tensor(tensor, batched) for tensor in tensors) + "\n]"


def _tensor(tensor: Any, batched: bool) -> str:
    found = re.fullmatch(r"tensor\((\w+)\)", tensor.type)
    if found is None or found[1] not in _TYPES:
        raise ExportError(
            f"{tensor.name}: Triton Inference Server has no type for {tensor.type}; it takes and "
            "gives tensors alone."
        )
    shape = [size if isinstance(size, int) else -1 for size in tensor.shape[batched:]]
    # There is no tensor of rank 0: it goes over the wire as one number.
    dims, reshape = (shape, "") if shape else ([1], " reshape: { shape: [ ] }")
    return (
        f"  {{ name: {json.dumps(tensor.name)} data_type: {_TYPES[found[1]]} "
        f"dims: [ {', '.join(map(str, dims))} ]{reshape} }}"
    )
