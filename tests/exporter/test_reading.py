"""Files that nobody vouches for: an error that says what is wrong, and never a partial file."""

from __future__ import annotations

import os
import random

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from qcompile.errors import ExportError, QCompileError
from qcompile.exporter import export_onnx
from qcompile.exporter.reading import load_source, read_onnx


def external(tensor: onnx.TensorProto, **entries: object) -> None:
    """Say that a tensor's data lies in another file."""
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=str(value))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"\x00" * 100, "no ONNX"),
        (b"not a model at all", "no ONNX"),
        (random.Random(0).randbytes(5000), "no ONNX"),
        (onnx.ModelProto(ir_version=8).SerializeToString(), "holds no graph"),
    ],
)
def test_garbage(write, files, content, message):
    path = write(content)
    with pytest.raises(ExportError, match=message):
        export_onnx(path)
    assert files() == ["model.onnx"]


def test_a_missing_file(tmp_path):
    with pytest.raises(ExportError, match="no such file"):
        export_onnx(tmp_path / "model.onnx")
    with pytest.raises(ExportError, match="no such file"):
        load_source(tmp_path / "model.onnx")
    with pytest.raises(ExportError, match="no such file"):
        read_onnx(tmp_path)


def damage(content: bytes, seed: int) -> bytes:
    rng = random.Random(seed)
    if seed % 3 == 0:
        return content[: rng.randrange(len(content))]
    # Most bytes are weights; the structure stands in the first few hundred.
    reach = len(content) if seed % 3 == 1 else 400
    broken = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 6))):
        broken[rng.randrange(reach)] ^= 1 << rng.randrange(8)
    return bytes(broken)


def test_damaged_files_are_refused_or_exported_whole(proto, write, files):
    content = proto.SerializeToString()
    outcomes = set()
    for seed in range(240):
        path = write(damage(content, seed))
        try:
            result = export_onnx(path, min_outputs=1, measure=False)
        except QCompileError as error:
            outcomes.add("refused")
            assert (
                str(path) in str(error)
                or "model.onnx" in str(error)
                or "verification" in str(error)
            )
            assert files() == ["model.onnx"]
        else:
            outcomes.add("exported")
            onnx.checker.check_model(str(result.path))
            result.path.unlink()
    assert outcomes == {"refused", "exported"}


@pytest.mark.parametrize(
    ("dims", "message"),
    [((1 << 40, 1 << 20), "needs .* bytes but brings"), ((-1, 4), "negative"), ((7,), "needs 28")],
)
def test_a_tensor_that_claims_what_it_does_not_hold(proto, write, dims, message):
    del proto.graph.initializer[0].dims[:]
    proto.graph.initializer[0].dims.extend(dims)
    with pytest.raises(ExportError, match=message) as caught:
        read_onnx(write(proto))
    assert "'w1'" in str(caught.value)


def test_a_tensor_inside_a_branch_is_held_to_its_size_too(write):
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 17]>
        g (bool c) => (float[2] y) {
            y = If(c) <
                then_branch = t () => (float[2] a) { a = Constant<value_floats=[1.0, 2.0]>() },
                else_branch = e () => (float[2] b) { b = Constant<value_floats=[1.0, 2.0]>() }
            >
        }"""
    )
    branch = model.graph.node[0].attribute[0].g
    branch.initializer.append(
        onnx.TensorProto(name="lies", dims=[9], data_type=1, raw_data=b"1234")
    )
    with pytest.raises(ExportError, match="'lies'"):
        read_onnx(write(model))


@pytest.mark.parametrize("kind", [0, 999])
def test_a_tensor_of_no_known_type(proto, write, kind):
    proto.graph.initializer[0].data_type = kind
    with pytest.raises(ExportError, match="element type"):
        read_onnx(write(proto))


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"location": "weights.bin"}, "missing"),
        ({"location": "../weights.bin"}, "outside the model's folder"),
        ({"location": "/etc/passwd"}, "outside the model's folder"),
        ({}, "outside the model's folder"),
        ({"location": "short.bin"}, "claims bytes 0 to 384"),
        ({"location": "short.bin", "offset": 1 << 60, "length": 384}, "claims bytes"),
        ({"location": "short.bin", "offset": -4, "length": 4}, "claims bytes"),
        ({"location": "short.bin", "length": 8}, "needs 384 bytes but brings 8"),
        ({"location": "short.bin", "length": "many"}, "no number"),
        ({"location": "link.bin"}, "link to outside"),
    ],
)
def test_external_data_that_is_not_there(
    proto, write, tmp_path, tmp_path_factory, entries, message
):
    (tmp_path / "short.bin").write_bytes(b"\x00" * 100)
    outside = tmp_path_factory.mktemp("outside") / "weights.bin"
    outside.write_bytes(b"\x00" * 384)
    (tmp_path / "link.bin").symlink_to(outside)
    external(proto.graph.initializer[0], **entries)
    with pytest.raises(ExportError, match=message):
        export_onnx(write(proto), min_outputs=1)
    assert not list(tmp_path.glob("*qcompile*"))


def test_a_linked_model_with_linked_data_is_read(proto, tmp_path):
    """As the caches of model hubs lay them out: links to one folder of contents."""
    store, face = tmp_path / "store", tmp_path / "face"
    store.mkdir()
    face.mkdir()
    tensor = proto.graph.initializer[0]
    expected = onnx.numpy_helper.to_array(tensor)
    (store / "weights.bin").write_bytes(tensor.raw_data)
    external(tensor, location="weights.bin")
    (store / "model").write_bytes(proto.SerializeToString())
    (face / "model.onnx").symlink_to(store / "model")
    (face / "weights.bin").symlink_to(store / "weights.bin")
    model = read_onnx(face / "model.onnx")
    np.testing.assert_array_equal(model.graph.initializers["w1"].const_value.numpy(), expected)


def test_a_value_that_nothing_produces(proto, write):
    proto.graph.node[2].input[0] = "nowhere"
    with pytest.raises(ExportError, match=r"MatMul 'node_2' reads 'nowhere'"):
        read_onnx(write(proto))
    proto.graph.node[2].input[0] = "h"
    proto.graph.output[0].name = "nowhere"
    with pytest.raises(ExportError, match="output 'nowhere'"):
        read_onnx(write(proto))


def test_what_would_be_lost_is_refused(proto, write):
    proto.graph.sparse_initializer.add().values.name = "sparse"
    with pytest.raises(ExportError, match="sparse initializer 'sparse'"):
        read_onnx(write(proto))
    del proto.graph.sparse_initializer[:]
    proto.training_info.add()
    with pytest.raises(ExportError, match="training information"):
        read_onnx(write(proto))


def test_initializers_of_old_files_are_constants(proto, write):
    """Before IR version 4 they had to be listed among the inputs."""
    proto.ir_version = 3
    proto.opset_import[0].version = 9
    proto.graph.node[4].attribute.add(name="axis", i=1, type=onnx.AttributeProto.INT)
    for tensor in proto.graph.initializer:
        dims = list(tensor.dims)
        proto.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, 1, dims))
    result = export_onnx(write(proto), min_outputs=1)
    assert [value.name for value in onnx.load(result.path).graph.input] == ["x"]


def test_the_long_name_of_the_standard_domain(proto, write):
    proto.opset_import[0].domain = "ai.onnx"
    assert export_onnx(write(proto), min_outputs=1).opset == 17


def test_a_layer_inside_a_local_function_is_found(write):
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 17, "lib" : 1]>
        g (float[b, 8] x) => (float[b, 40] y) { s = lib.dense(x, w, c) y = Softmax(s) }
        <domain: "lib", opset_import: ["" : 17]>
        dense (h, w, c) => (s) { m = MatMul(h, w) s = Add(m, c) }"""
    )
    rng = np.random.default_rng(0)
    for name, shape in (("w", (8, 40)), ("c", (40,))):
        array = rng.standard_normal(shape).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    result = export_onnx(write(model), min_outputs=1)
    assert result.heads[0].became == "LinearSoftmax"
    assert "expanded" in result.report.notes[0]


def test_a_cycle(proto, write):
    proto.graph.node[0].input[0] = "h"
    with pytest.raises(QCompileError):
        export_onnx(write(proto), min_outputs=1)


def test_every_way_to_store_numbers_is_counted(write):
    kinds = [
        (onnx.TensorProto.FLOAT, "float_data", [1.0] * 6),
        (onnx.TensorProto.INT8, "int32_data", [1] * 6),
        (onnx.TensorProto.INT64, "int64_data", [1] * 6),
        (onnx.TensorProto.UINT64, "uint64_data", [1] * 6),
        (onnx.TensorProto.DOUBLE, "double_data", [1.0] * 6),
        (onnx.TensorProto.COMPLEX64, "float_data", [1.0] * 12),
        (onnx.TensorProto.STRING, "string_data", [b"a"] * 6),
        (onnx.TensorProto.INT4, "int32_data", [1] * 3),
        (onnx.TensorProto.BFLOAT16, "int32_data", [1] * 6),
    ]
    for kind, field, numbers in kinds:
        tensor = onnx.TensorProto(name="t", dims=[2, 3], data_type=kind, **{field: numbers})
        model = onnx.parser.parse_model(
            '<ir_version: 10, opset_import: ["" : 21]>'
            "g (float[1] x) => (float[1] y) { y = Relu(x) }"
        )
        model.graph.initializer.append(tensor)
        assert isinstance(read_onnx(write(model)), ir.Model)
        getattr(tensor, field).pop()
        model.graph.initializer[0].CopyFrom(tensor)
        with pytest.raises(ExportError, match="needs"):
            read_onnx(write(model))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read anything")
def test_a_file_that_may_not_be_read(proto, write):
    path = write(proto)
    path.chmod(0)
    with pytest.raises(ExportError, match="cannot be read"):
        read_onnx(path)
