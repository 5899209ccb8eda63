"""ONNX files made to do harm: each ends in an error that names the file, or in a whole export."""

from __future__ import annotations

import contextlib
import json
import random
from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import AttributeProto, helper
from onnx_graphs import D, N, model, weight

from qcompile.cli.inspect_command import inspect_onnx
from qcompile.errors import ExportError, QCompileError
from qcompile.exporter import export_onnx

pytestmark = pytest.mark.timeout(120)

NUMBERS = (0, -1, 1, 7, 255, -(1 << 31), 1 << 31, 1 << 40, -(1 << 62), (1 << 63) - 1)

SOURCES: dict[str, dict] = {
    "gemm": {
        "body": "g = Gemm<transB=1, alpha=0.5>(h, w, b) r = Reshape(g, s) y = Softmax<axis=-1>(r)",
        "outputs": f"float[5, 1, {N}] y",
        "inputs": f"float[5, {D}] h",
        "w": weight(),
        "b": weight(1, N)[0],
        "s": np.int64([5, 1, -1]),
    },
    "conv": {
        "body": "c = Conv<strides=[1], pads=[0, 0]>(h, w) t = Transpose<perm=[0, 2, 1]>(c) "
        "y = ArgMax<axis=2>(t)",
        "inputs": f"float[2, {D}, 3] h",
        "outputs": "int64[2, 3, 1] y",
        "w": weight().reshape(N, D, 1),
    },
    "integers": {
        "body": "w = DequantizeLinear<axis=0, block_size=5>(q, s, z) m = MatMul(h, w) "
        "v, y = TopK<axis=-1>(m, k)",
        "opset": 21,
        "inputs": "float[B, 15] h",
        "outputs": "float[B, 3] v, int64[B, 3] y",
        "q": np.arange(15 * N, dtype=np.uint8).reshape(15, N),
        "s": np.ones((3, N), np.float32),
        "z": np.zeros((3, N), np.uint8),
        "k": np.int64([3]),
    },
    "bits": {
        "body": f"y = com.microsoft.MatMulNBits<K=32, N={N}, bits=4, block_size=16>(h, w, s, z)",
        "inputs": "float[B, 32] h",
        "domains": ', "com.microsoft" : 1',
        "w": np.arange(N * 16, dtype=np.uint8).reshape(N, 2, 8),
        "s": np.full(2 * N, 0.05, np.float32),
        "z": np.full(N, 0x88, np.uint8),
    },
    "static": {
        "body": "q = QuantizeLinear(h, c, z) p = QLinearMatMul(q, c, z, w, c, a, c, z) "
        "d = DequantizeLinear(p, c, z) x = Slice(d, b, e, b) "
        'y = Einsum<equation="bd,nd->bn">(x, u)',
        "outputs": f"float[X, {N}] y",
        "w": np.arange(D * N, dtype=np.int8).reshape(D, N),
        "u": weight(N, N),
        "c": np.float32(0.05),
        "z": np.uint8(128),
        "a": np.int8(0),
        "b": np.int64([0]),
        "e": np.int64([1 << 40]),
    },
}


def attributes(proto: onnx.ModelProto) -> list[AttributeProto]:
    return [attribute for node in proto.graph.node for attribute in node.attribute]


def change_a_number(proto: onnx.ModelProto, rng: random.Random) -> None:
    held = [a for a in attributes(proto) if a.type in (AttributeProto.INT, AttributeProto.INTS)]
    if not held:
        return
    chosen = rng.choice(held)
    if chosen.type == AttributeProto.INT:
        chosen.i = rng.choice(NUMBERS)
    elif chosen.ints and rng.random() < 0.7:
        chosen.ints[rng.randrange(len(chosen.ints))] = rng.choice(NUMBERS)
    else:
        chosen.ints.extend(rng.choices(NUMBERS, k=rng.randrange(5)))


def change_a_type(proto: onnx.ModelProto, rng: random.Random) -> None:
    held = attributes(proto)
    if held:
        rng.choice(held).type = rng.choice(range(15))


def change_a_shape(proto: onnx.ModelProto, rng: random.Random) -> None:
    graph = proto.graph
    value = rng.choice([*graph.input, *graph.output])
    dims = value.type.tensor_type.shape.dim
    if dims:
        rng.choice(dims).dim_value = rng.choice(NUMBERS)


def change_a_tensor(proto: onnx.ModelProto, rng: random.Random) -> None:
    tensor = rng.choice(proto.graph.initializer)
    action = rng.randrange(5)
    if action == 0:
        tensor.data_type = rng.randrange(30)
    elif action == 1 and tensor.dims:
        tensor.dims[rng.randrange(len(tensor.dims))] = rng.choice(NUMBERS)
    elif action == 2:
        tensor.dims.extend([0, 1 << 62])
        tensor.raw_data = b""
    elif action == 3:
        tensor.dims[:] = list(reversed(tensor.dims))
    else:
        tensor.raw_data = rng.randbytes(len(tensor.raw_data))


def change_a_link(proto: onnx.ModelProto, rng: random.Random) -> None:
    names = [name for node in proto.graph.node for name in (*node.input, *node.output)]
    node = rng.choice(proto.graph.node)
    side = rng.choice([node.input, node.output])
    if side:
        side[rng.randrange(len(side))] = rng.choice([*names, "", "\x00", "../../x"])


def change_an_operator(proto: onnx.ModelProto, rng: random.Random) -> None:
    node = rng.choice(proto.graph.node)
    node.op_type = rng.choice(["MatMul", "Gemm", "TopK", "QLinearMatMul", "Loop", "Nothing", ""])


def change_a_version(proto: onnx.ModelProto, rng: random.Random) -> None:
    if rng.random() < 0.5:
        proto.opset_import[0].version = rng.choice([0, 8, 9, 12, 25, 999, (1 << 62)])
    else:
        proto.ir_version = rng.choice([0, 3, 12, 99, 1 << 40])


def lose_something(proto: onnx.ModelProto, rng: random.Random) -> None:
    graph = proto.graph
    part = rng.choice(
        [graph.node, graph.input, graph.output, graph.initializer, proto.opset_import]
    )
    if part:
        del part[rng.randrange(len(part))]


def repeat_something(proto: onnx.ModelProto, rng: random.Random) -> None:
    graph = proto.graph
    part = rng.choice([graph.node, graph.input, graph.output, graph.initializer])
    if part:
        part.append(rng.choice(part))


MUTATIONS: list[Callable[[onnx.ModelProto, random.Random], None]] = [
    change_a_number,
    change_a_type,
    change_a_shape,
    change_a_tensor,
    change_a_link,
    change_an_operator,
    change_a_version,
    lose_something,
    repeat_something,
]


def damage(proto: onnx.ModelProto, rng: random.Random) -> None:
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        with contextlib.suppress(IndexError):  # there is nothing left to choose from
            rng.choice(MUTATIONS)(proto, rng)


@pytest.mark.parametrize("name", SOURCES)
def test_mutated_graphs_are_refused_or_exported_whole(name, write, files):
    content = ir.to_proto(model(**SOURCES[name])).SerializeToString()
    outcomes = {"refused": 0, "exported": 0}
    for seed in range(90):
        rng = random.Random(f"{name} {seed}")
        proto = onnx.ModelProto.FromString(content)
        damage(proto, rng)
        path = write(proto)
        try:
            inspect_onnx(str(path), 1)
        except QCompileError as error:
            assert str(error)
        try:
            result = export_onnx(path, min_outputs=1, measure=False)
        except QCompileError as error:
            outcomes["refused"] += 1
            assert len(str(error)) > 20
            assert files() == ["model.onnx"], (seed, files())
        else:
            outcomes["exported"] += 1
            assert result.differences
            result.path.unlink()
    assert min(outcomes.values()) > 0, outcomes


def test_functions_that_call_each_other_for_ever(write, files):
    for calls in ("lib.one(h)", "lib.two(h)"):
        proto = onnx.parser.parse_model(
            f"""<ir_version: 8, opset_import: ["" : 17, "lib" : 1]>
            g (float[2, 8] x) => (float[2, 8] y) {{ y = lib.one(x) }}
            <domain: "lib", opset_import: ["" : 17, "lib" : 1]>
            one (h) => (s) {{ s = {calls} }}
            <domain: "lib", opset_import: ["" : 17, "lib" : 1]>
            two (h) => (s) {{ s = lib.one(h) }}"""
        )
        path = write(proto)
        with pytest.raises(ExportError, match=r"model\.onnx"):
            export_onnx(path, min_outputs=1)
        assert files() == ["model.onnx"]


def test_functions_that_multiply(write, files):
    """Each calls the next twice: 2⁴⁰ nodes, if they were expanded."""
    functions = "".join(
        f"""<domain: "lib", opset_import: ["" : 17, "lib" : 1]>
        f{n} (h) => (s) {{ a = lib.f{n + 1}(h) s = lib.f{n + 1}(a) }}\n"""
        for n in range(40)
    )
    proto = onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: ["" : 17, "lib" : 1]>
        g (float[2, 8] x) => (float[2, 8] y) {{ y = lib.f0(x) }}
        {functions}<domain: "lib", opset_import: ["" : 17]>
        f40 (h) => (s) {{ s = Relu(h) }}"""
    )
    with pytest.raises(ExportError, match=r"model\.onnx: .* takes for ever"):
        export_onnx(write(proto), min_outputs=1)
    assert files() == ["model.onnx"]


def test_a_loop_without_end(proto, write, files, monkeypatch):
    monkeypatch.setattr("qcompile.running.sessions.LONGEST_RUN", 1.0)
    body = onnx.parser.parse_graph(
        "b (int64 i, bool c, float[n, 8] v) => (bool d, float[n, 8] u) "
        "{ d = Identity(c) u = Relu(v) }"
    )
    loop = helper.make_node("Loop", ["trips", "go", "x"], ["looped"], name="loop", body=body)
    proto.graph.node.insert(0, loop)
    proto.graph.node[1].input[0] = "looped"
    for name, value in (("trips", np.int64(1 << 62)), ("go", np.bool_(True))):
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(value), name))
    with pytest.raises(ExportError, match="longer than 1 second"):
        export_onnx(write(proto), min_outputs=1, measure=False)
    assert files() == ["model.onnx"]


def test_numbers_nobody_can_hold(write, files):
    """A scale for each of 2⁴⁰ claimed blocks, in a file of a few bytes."""
    proto = ir.to_proto(model(**SOURCES["integers"]))
    proto.graph.node[0].attribute[1].i = 1 << 40
    with pytest.raises(ExportError, match=r"model\.onnx"):
        export_onnx(write(proto), min_outputs=1)
    assert files() == ["model.onnx"]


def test_metadata_of_a_stranger_is_shown_and_not_believed(proto, write):
    for key, text in (("mode", "cells"), ("recall", "2.0"), ("calibration", "{" * 5000)):
        proto.metadata_props.add(key=f"qcompile.{key}", value=text)
    facts, _ = inspect_onnx(str(write(proto)), 1)
    assert facts["qcompile.mode"] == "cells"
    assert json.loads(json.dumps(facts))
