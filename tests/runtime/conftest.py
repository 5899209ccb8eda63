"""Models of a single output layer, as ``qcompile.export`` writes them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from qcompile import ops
from qcompile.passes.onnx.functions import function_for
from qcompile.runtime.reference.index import pack

HeadModel = Callable[..., str]


def make_inputs(
    operator: ops.Operator, weight: np.ndarray, bias: np.ndarray
) -> dict[str, np.ndarray]:
    packed = pack(weight)
    known = {"weight": weight, "bias": bias, **packed._asdict()}
    return {name: known[name] for name in operator.required[1:]}


def make_model(
    operator: ops.Operator,
    arrays: dict[str, np.ndarray],
    *,
    shape: tuple[int | str, ...],
    k: int = 1,
    opset: int = 18,
    function: bool = True,
    declare: bool = True,
    log_sum: bool = False,
    variable: dict[str, tuple[int | str, ...]] | None = None,
) -> ir.Model:
    """Build ``operator`` over ``arrays``.

    They are constant but for those that ``variable`` makes inputs of the graph, with a shape each.
    ``shape`` is that of the input ``hidden``; ``declare`` gives the outputs a shape; ``log_sum``
    asks for the output that a node may leave out.
    """
    variable = variable or {}
    hidden = ir.Value(
        name="hidden", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(list(shape))
    )
    values = []
    for name, array in arrays.items():
        tensor = ir.tensor(array, name=name)
        value = ir.Value(
            name=name,
            type=ir.TensorType(tensor.dtype),
            shape=ir.Shape(variable.get(name, array.shape)),
            const_value=None if name in variable else tensor,
        )
        values.append(value)
    attributes = [ir.AttrInt64("k", k)] if operator.attributes else []
    names = operator.outputs if log_sum else operator.required_outputs
    node = ir.Node(
        ops.DOMAIN,
        operator.name,
        [hidden, *values],
        attributes,
        num_outputs=len(names),
        name="head",
    )
    for value, name in zip(node.outputs, names, strict=True):
        value.name = name
        value.type = ir.TensorType(ir.DataType.INT64 if name == "ids" else ir.DataType.FLOAT)
        if declare:
            last = k if operator.attributes else len(arrays["weight"])
            last = 1 if name == "log_sum" else last
            value.shape = ir.Shape([*shape[:-1], last])
    graph = ir.Graph(
        [hidden, *(value for value in values if value.const_value is None)],
        node.outputs,
        nodes=[node],
        initializers=[value for value in values if value.const_value is not None],
        opset_imports={"": opset, ops.DOMAIN: ops.VERSION},
        name="head",
    )
    functions = [function_for(operator, opset, k, log_sum)] if function else []
    return ir.Model(graph, ir_version=8, functions=functions)


@pytest.fixture
def head_model(tmp_path: Path) -> HeadModel:
    """Write a model of one operator and return its path."""

    def build(
        operator: ops.Operator,
        weight: np.ndarray,
        bias: np.ndarray,
        *,
        shape: tuple[int | str, ...] | None = None,
        replace: dict[str, np.ndarray] | None = None,
        **options: object,
    ) -> str:
        arrays = {**make_inputs(operator, weight, bias), **(replace or {})}
        shape = shape or ("batch", weight.shape[1])
        path = tmp_path / f"{operator.name}.onnx"
        ir.save(make_model(operator, arrays, shape=shape, **options), path)  # type: ignore[arg-type]
        return str(path)

    return build
