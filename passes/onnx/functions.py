"""ONNX function bodies of the operators: what runs where the plugin is not registered.

Each body computes the operator exactly, in fp32, with standard operators; where the file has the
rows in another form, as ``runtime.index.store`` makes them, exactly for those. onnxruntime prefers
a registered kernel of the same domain and name, so one file serves with and without the plugin.
"""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

from qcompile import ops

MIN_OPSET = 9
"""Oldest standard operator set that the bodies can be written in."""

_K_IS_INPUT = 10  # TopK takes k as a tensor
_AXES_ARE_INPUT = 18  # so do reductions with their axes
_CONSTANT_REFERS = 12  # Constant takes an integer, which may refer to the function's attribute
MIN_OPSET_OF_STORED = 13
"""The same for rows that are not float32: Cast takes bfloat16, Slice and Reshape what they need."""


def _node(op_type: str, inputs: list[ir.Value], name: str, **attributes: object) -> ir.Node:
    node = ir.node(op_type, inputs, attributes or None)  # type: ignore[arg-type]
    node.outputs[0].name = name
    return node


def _scores(inputs: list[ir.Value], rescore: str = "fp32") -> list[ir.Node]:
    hidden, weight, bias = inputs[:3]
    nodes: list[ir.Node] = []
    if rescore == "bf16":
        nodes.append(_node("Cast", [weight], "rows", to=int(ir.DataType.FLOAT)))
    elif rescore == "none":
        nodes += _merged(inputs)
    rows = nodes[-1].outputs[0] if nodes else weight
    transposed = _node("Transpose", [rows], "weight_t", perm=[1, 0])
    product = _node("MatMul", [hidden, transposed.outputs[0]], "product")
    return [*nodes, transposed, product, _node("Add", [product.outputs[0], bias], "all_scores")]


def _merged(inputs: list[ir.Value]) -> list[ir.Node]:
    """Compute the rows [N, d] that packed ones stand for; see ``runtime/reference/index.py``.

    A byte of the first plane is 16 high' + high, one of the second 16 low' + low, of the latter
    step and the former: values are 16 high + low - 128.
    """
    _, weight, bias, packed, scale = inputs[:5]
    nodes: list[ir.Node] = []

    def add(op_type: str, inputs: list[ir.Value], name: str, **attributes: object) -> ir.Value:
        nodes.append(_node(op_type, inputs, f"unpacked_{name}", **attributes))
        return nodes[-1].outputs[0]

    def number(value: float | list[int], name: str) -> ir.Value:
        kind = ir.DataType.INT64 if isinstance(value, list) else ir.DataType.FLOAT
        return add("Constant", [], name, value=ir.tensor(value, kind))

    sixteen, first, second = number(16.0, "sixteen"), number([0], "first"), number([1], "second")
    halves = add("Cast", [packed], "bytes", to=int(ir.DataType.FLOAT))
    latter = add("Floor", [add("Div", [halves, sixteen], "shifted")], "latter")
    former = add("Sub", [halves, add("Mul", [latter, sixteen], "above")], "former")
    end = number([2], "third")
    values = []
    for step, planes in (("former", former), ("latter", latter)):
        high = add("Slice", [planes, first, second, first], f"{step}_high")
        low = add("Slice", [planes, second, end, first], f"{step}_low")
        sixteens = add("Mul", [high, sixteen], f"{step}_sixteens")
        values.append(add("Add", [sixteens, low], f"{step}_value"))
    # [1, B, P, 16, 4] each; a row's steps side by side: [B, 16, P, 2, 4].
    both = add("Concat", values, "both", axis=0)
    turned = add("Transpose", [both], "turned", perm=[1, 3, 2, 0, 4])
    depth = add("Slice", [add("Shape", [weight], "shape"), second, end, first], "depth")
    rows = add("Shape", [bias], "rows")
    flat = add("Flatten", [turned], "flat", axis=2)
    axes = number([0, 1], "axes")
    starts = number([0, 0], "starts")
    ends = add("Concat", [rows, depth], "ends", axis=0)
    whole = add("Slice", [flat, starts, ends, axes], "whole")
    centred = add("Sub", [whole, number(128.0, "offset")], "centred")
    column = add("Reshape", [scale, number([-1, 1], "column")], "scale")
    add("Mul", [centred, column], "weight")
    return nodes


def _linear_softmax(inputs: list[ir.Value]) -> list[ir.Node]:
    nodes = _scores(inputs)
    return [*nodes, _node("Softmax", [nodes[-1].outputs[0]], "all_probabilities", axis=-1)]


def _linear_top_k(
    inputs: list[ir.Value], opset: int, k: int | None, log_sum: bool, rescore: str
) -> tuple[list[ir.Node], list[ir.Value]]:
    nodes = _scores(inputs, rescore)
    sums = _log_sum(nodes[-1].outputs[0], opset) if log_sum else []
    attributes = [ir.AttrInt64("axis", -1)]
    top_inputs = [nodes[-1].outputs[0]]
    if opset < _K_IS_INPUT:
        attributes.append(ir.RefAttr("k", "k", ir.AttributeType.INT))
    else:
        nodes += _k_tensor(opset, k)
        top_inputs.append(nodes[-1].outputs[0])
    top = ir.Node("", "TopK", top_inputs, attributes, num_outputs=2)
    top.outputs[0].name, top.outputs[1].name = "top_scores", "top_ids"
    outputs = [*top.outputs, *(node.outputs[0] for node in sums[-1:])]
    return [*nodes, top, *sums], outputs


def _log_sum(scores: ir.Value, opset: int) -> list[ir.Node]:
    if opset < _AXES_ARE_INPUT:
        return [_node("ReduceLogSumExp", [scores], "all_log_sum", axes=[-1], keepdims=1)]
    last = _node("Constant", [], "last_axis", value_ints=[-1])
    inputs = [scores, last.outputs[0]]
    return [last, _node("ReduceLogSumExp", inputs, "all_log_sum", keepdims=1)]


def _k_tensor(opset: int, k: int | None) -> list[ir.Node]:
    if opset < _CONSTANT_REFERS:
        if k is None:
            raise ValueError(f"opset {opset} cannot refer to the attribute k: pass its value.")
        return [_node("Constant", [], "k_tensor", value=ir.tensor([k], ir.DataType.INT64))]
    scalar = ir.Node("", "Constant", [], [ir.RefAttr("value_int", "k", ir.AttributeType.INT)])
    scalar.outputs[0].name = "k_scalar"
    shape = _node("Constant", [], "k_shape", value_ints=[1])
    inputs = [scalar.outputs[0], shape.outputs[0]]
    return [scalar, shape, _node("Reshape", inputs, "k_tensor")]


def function_for(
    operator: ops.Operator,
    opset: int = 18,
    k: int | None = None,
    log_sum: bool = False,
    rescore: str = "fp32",
) -> ir.Function:
    """Return the local function that computes ``operator`` with standard operators.

    Args:
        operator: one of :data:`qcompile.ops.OPERATORS`.
        opset: version of the standard operator set; must be the model's, as onnx requires.
        k: value of ``LinearTopK``'s attribute, needed for opset 10 and 11 alone: there the body
            cannot refer to the attribute, so a model may use one value of ``k`` only.
        log_sum: whether a node of ``LinearTopK`` has that output. A body without it is valid for
            nodes that leave it out, and computes no sum for them.
        rescore: form of the rows that ``LinearTopK`` gets, one of :data:`qcompile.ops.RESCORE`. The
            body for ``bf16`` does for ``fp32`` as well.

    Raises:
        ValueError: ``opset`` is below :data:`MIN_OPSET`, or below :data:`MIN_OPSET_OF_STORED` for
            another ``rescore`` than ``fp32``, or ``k`` is needed and missing.
    """
    if rescore != "fp32" and opset < MIN_OPSET_OF_STORED:
        raise ValueError(
            f"rescore {rescore!r} needs opset {MIN_OPSET_OF_STORED} or later, got {opset}."
        )
    if opset < MIN_OPSET:
        raise ValueError(f"function bodies need opset {MIN_OPSET} or later, got {opset}.")
    inputs = [ir.Value(name=name) for name in operator.inputs]
    if operator is ops.LINEAR_TOP_K:
        nodes, outputs = _linear_top_k(inputs, opset, k, log_sum, rescore)
    elif operator is ops.LINEAR_SOFTMAX:
        nodes = _linear_softmax(inputs)
        outputs = list(nodes[-1].outputs)
    elif operator is ops.LINEAR:
        nodes = _scores(inputs)
        outputs = list(nodes[-1].outputs)
    else:
        raise ValueError(f"no function body for operator {operator.name!r}.")
    graph = ir.Graph(inputs, outputs, nodes=nodes, opset_imports={"": opset}, name=operator.name)
    return ir.Function(
        ops.DOMAIN, operator.name, "", graph=graph, attributes=make_attributes(operator.attributes)
    )


def make_attributes(values: Iterable[tuple[str, int | float | str]]) -> list[ir.Attr]:
    """Return ONNX attributes of these names and values; the Python type is the attribute's."""
    return [_attribute(name, value) for name, value in values]


def _attribute(name: str, value: int | float | str) -> ir.Attr:
    if isinstance(value, str):
        return ir.AttrString(name, value)
    return ir.AttrInt64(name, value) if isinstance(value, int) else ir.AttrFloat32(name, value)
