"""The model repository is one that Triton Inference Server's published configuration describes."""

from __future__ import annotations

from functools import partial

import numpy as np
import onnx
import onnxruntime
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format
from onnx import TensorProto, helper

from qcompile.cli import main
from qcompile.errors import ExportError
from qcompile.exporter import export_onnx
from qcompile.exporter.triton import export_to_triton

# Names and types of the fields of model_config.proto that a repository of ours uses.
FIELDS = {
    "ModelConfig": {
        "name": "string",
        "platform": "string",
        "backend": "string",
        "max_batch_size": "int32",
        "input": ["ModelInput"],
        "output": ["ModelOutput"],
        "dynamic_batching": "ModelDynamicBatching",
        "instance_group": ["ModelInstanceGroup"],
        "model_operations": "ModelOperations",
    },
    "ModelInput": {
        "name": "string",
        "data_type": "DataType",
        "dims": ["int64"],
        "reshape": "ModelTensorReshape",
    },
    "ModelOutput": {
        "name": "string",
        "data_type": "DataType",
        "dims": ["int64"],
        "reshape": "ModelTensorReshape",
    },
    "ModelTensorReshape": {"shape": ["int64"]},
    "ModelDynamicBatching": {
        "preferred_batch_size": ["int32"],
        "max_queue_delay_microseconds": "uint64",
    },
    "ModelInstanceGroup": {"name": "string", "kind": "Kind", "count": "int32"},
    "ModelOperations": {"op_library_filename": ["string"]},
}
ENUMS = {
    "DataType": [
        "TYPE_INVALID",
        *(f"TYPE_{kind}" for kind in ("BOOL", "UINT8", "UINT16", "UINT32", "UINT64")),
        *(f"TYPE_{kind}" for kind in ("INT8", "INT16", "INT32", "INT64")),
        *(f"TYPE_{kind}" for kind in ("FP16", "FP32", "FP64", "STRING", "BF16")),
    ],
    "Kind": ["KIND_AUTO", "KIND_GPU", "KIND_CPU", "KIND_MODEL"],
}


def configuration_type():
    file = descriptor_pb2.FileDescriptorProto(name="model_config.proto", syntax="proto3")
    field_type = descriptor_pb2.FieldDescriptorProto
    for name, values in ENUMS.items():
        enum = file.enum_type.add(name=name)
        for number, value in enumerate(values):
            enum.value.add(name=value, number=number)
    for name, fields in FIELDS.items():
        message = file.message_type.add(name=name)
        for number, (field, kind) in enumerate(fields.items(), 1):
            repeated = isinstance(kind, list)
            single = kind[0] if repeated else kind
            added = message.field.add(name=field, number=number)
            added.label = field_type.LABEL_REPEATED if repeated else field_type.LABEL_OPTIONAL
            if single in FIELDS or single in ENUMS:
                added.type_name = f".{single}"
                added.type = field_type.TYPE_ENUM if single in ENUMS else field_type.TYPE_MESSAGE
            else:
                added.type = getattr(field_type, f"TYPE_{single.upper()}")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("ModelConfig"))


def parse(path):
    """Read a configuration; an unknown field or value is an error."""
    return text_format.Parse(path.read_text(), configuration_type()())


def classifier(path, batch="batch", classes=5000, width=6):
    weight = np.random.default_rng(0).normal(size=(width, classes)).astype(np.float32)
    tensor = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["hidden", "weight"], ["all"])],
        "classifier",
        [tensor("hidden", TensorProto.FLOAT, [batch, width])],
        [tensor("all", TensorProto.FLOAT, [batch, classes])],
        [onnx.numpy_helper.from_array(weight, "weight")],
    )
    imports = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(graph, opset_imports=imports, ir_version=9), path)
    return path


def exporter(source, **options):
    return partial(export_onnx, source, measure=False, **options)


def test_a_repository_is_what_the_server_asks_for(tmp_path):
    source = classifier(tmp_path / "names.onnx")
    repository = tmp_path / "models"
    result = export_to_triton(exporter(source, top_k=3), repository, "names")
    found = sorted(path.relative_to(repository).as_posix() for path in repository.rglob("*.*"))
    assert found == ["names/1/model.onnx", "names/config.pbtxt", "names/libqcompile_ort.so"]
    assert result.path == repository / "names" / "1" / "model.onnx"

    config = parse(repository / "names" / "config.pbtxt")
    assert (config.name, config.platform, config.backend) == (
        "names",
        "onnxruntime_onnx",
        "onnxruntime",
    )
    assert config.max_batch_size == 64
    assert config.dynamic_batching.max_queue_delay_microseconds > 0
    types = ENUMS["DataType"]
    described = [
        (tensor.name, types[tensor.data_type], list(tensor.dims))
        for tensor in (*config.input, *config.output)
    ]
    assert described == [
        ("hidden", "TYPE_FP32", [6]),
        ("scores", "TYPE_FP32", [3]),
        ("ids", "TYPE_INT64", [3]),
    ]


def test_what_it_names_is_enough_to_serve(tmp_path):
    source = classifier(tmp_path / "names.onnx")
    place = tmp_path / "models" / "names"
    export_to_triton(exporter(source, top_k=3, external_above=0), place.parent, "names")
    config = parse(place / "config.pbtxt")
    options = onnxruntime.SessionOptions()
    options.register_custom_ops_library(config.model_operations.op_library_filename[0])
    session = onnxruntime.InferenceSession(str(place / "1" / "model.onnx"), options)
    hidden = np.random.default_rng(1).normal(size=(4, 6)).astype(np.float32)
    scores, ids = session.run([o.name for o in config.output], {config.input[0].name: hidden})
    dense = onnxruntime.InferenceSession(str(source)).run(None, {"hidden": hidden})[0]
    assert np.array_equal(ids, np.argsort(-dense, axis=1, kind="stable")[:, :3])
    assert np.allclose(scores, np.take_along_axis(dense, ids, axis=1), atol=1e-5)


def test_a_fixed_first_axis_is_no_batch(tmp_path):
    source = classifier(tmp_path / "names.onnx", batch=2)
    export_to_triton(exporter(source), tmp_path / "models", "names")
    config = parse(tmp_path / "models" / "names" / "config.pbtxt")
    assert config.max_batch_size == 0
    assert not config.HasField("dynamic_batching")
    assert [list(tensor.dims) for tensor in (*config.input, *config.output)] == [[2, 6], [2, 5000]]


def test_the_server_may_see_another_path(tmp_path):
    source = classifier(tmp_path / "names.onnx")
    export_to_triton(exporter(source), tmp_path / "models", "names", root="/models")
    config = parse(tmp_path / "models" / "names" / "config.pbtxt")
    assert config.model_operations.op_library_filename == ["/models/names/libqcompile_ort.so"]


@pytest.mark.parametrize("name", ["", "a/b", "..", ".hidden", "a b"])
def test_a_name_that_is_none_is_refused(tmp_path, name):
    with pytest.raises(ExportError, match="name of a model"):
        export_to_triton(exporter(tmp_path / "no.onnx"), tmp_path / "models", name)
    assert not (tmp_path / "models").exists()


def test_nothing_is_overwritten_and_a_failure_leaves_nothing(tmp_path):
    source = classifier(tmp_path / "names.onnx")
    repository = tmp_path / "models"
    with pytest.raises(ExportError, match=r"no\.onnx"):
        export_to_triton(exporter(tmp_path / "no.onnx"), repository, "names")
    assert list(repository.iterdir()) == []
    export_to_triton(exporter(source), repository, "names")
    before = (repository / "names" / "1" / "model.onnx").read_bytes()
    with pytest.raises(ExportError, match="exists already"):
        export_to_triton(exporter(source, top_k=2), repository, "names")
    assert (repository / "names" / "1" / "model.onnx").read_bytes() == before


def test_the_command(tmp_path, capsys):
    source = classifier(tmp_path / "names.onnx")
    place = tmp_path / "models"
    arguments = ["export", str(source), "--top-k", "2", "--triton-repository", str(place)]
    assert main([*arguments, "--triton-root", "/models"]) == 0
    assert str(place / "names" / "1" / "model.onnx") in capsys.readouterr().out.replace("\n", "")
    config = parse(place / "names" / "config.pbtxt")
    assert config.model_operations.op_library_filename == ["/models/names/libqcompile_ort.so"]
    assert main([*arguments, "-o", str(tmp_path / "other.onnx")]) != 0
    assert "two places" in capsys.readouterr().err
