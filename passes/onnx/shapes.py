"""Shapes and types of the values of an ONNX graph, inferred without touching the model."""

from __future__ import annotations

import contextlib

import onnx
import onnx_ir as ir

_LARGE = 1024
"""Bytes above which an initializer takes part with its shape alone."""


class Shapes:
    """Shapes and types by value name, from shape inference over a copy of the model's structure.

    Dimensions are numbers, or ``None`` where unknown or symbolic.
    """

    def __init__(self, model: ir.Model) -> None:
        skeleton = _skeleton(model)
        # Custom operators and oddities stop inference; what the file says itself remains.
        with contextlib.suppress(Exception):
            skeleton = onnx.shape_inference.infer_shapes(skeleton, data_prop=True)
        graph = skeleton.graph
        known = (*graph.value_info, *graph.input, *graph.output)
        self._types = {info.name: info.type.tensor_type.elem_type for info in known}
        self._shapes = {
            info.name: _dimensions(info.type.tensor_type.shape)
            for info in known
            if info.type.tensor_type.HasField("shape")
        }

    def dtype(self, value: ir.Value) -> ir.DataType:
        """Return the element type; float where it is unknown."""
        return ir.DataType(self._types.get(value.name) or ir.DataType.FLOAT)

    def rank(self, value: ir.Value) -> int | None:
        """Return the number of dimensions, ``None`` where unknown."""
        shape = self._shapes.get(value.name)
        return None if shape is None else len(shape)

    def dimensions(self, value: ir.Value) -> tuple[int | None, ...] | None:
        """Return all dimensions, ``None`` where even their number is unknown."""
        return self._shapes.get(value.name)

    def last(self, value: ir.Value) -> int | None:
        """Return the size of the last axis, ``None`` where unknown."""
        shape = self._shapes.get(value.name)
        return shape[-1] if shape else None

    def is_last_axis(self, value: ir.Value, axis: int) -> bool:
        """Return whether ``axis``, which may be negative, is known to be the last one."""
        rank = self.rank(value)
        return axis == -1 or (rank is not None and axis == rank - 1)


def _skeleton(model: ir.Model) -> onnx.ModelProto:
    copy = model.clone()
    graph = copy.graph
    inputs = {value.name for value in graph.inputs}
    for name, value in list(graph.initializers.items()):
        tensor = value.const_value
        if tensor is not None and tensor.nbytes <= _LARGE:
            continue
        del graph.initializers[name]
        if tensor is not None:
            value.shape, value.dtype = ir.Shape(tensor.shape.numpy()), tensor.dtype
        if name not in inputs:
            graph.inputs.append(value)
    return ir.to_proto(copy)


def _dimensions(shape: onnx.TensorShapeProto) -> tuple[int | None, ...]:
    return tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in shape.dim)
