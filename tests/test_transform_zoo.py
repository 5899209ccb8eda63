"""Real architectures, small: what ``benchmarks/transform_table.py`` shows at full size."""

import copy

import pytest
import torch

import qcompile
from qcompile import LSH, Quadratic
from qcompile.rewrite import explain

IMAGE = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))
TOKENS = {"input_ids": torch.tensor([[1, 5, 7, 2]])}
SMALL_VIT = {"img_size": 32, "patch_size": 16, "embed_dim": 32, "depth": 2, "num_heads": 2}


def torchvision_model(models, name):
    special = {
        "vit": lambda: models.VisionTransformer(32, 16, 2, 2, 32, 64, num_classes=10),
        "densenet": lambda: models.DenseNet(8, (2, 2), 16, num_classes=10),
        "convnext": lambda: models.convnext.ConvNeXt(
            [models.convnext.CNBlockConfig(16, 32, 2), models.convnext.CNBlockConfig(32, None, 2)],
            num_classes=10,
        ),
    }
    return special[name]() if name in special else getattr(models, name)(num_classes=10)


def check(model, inputs, head, tracer, exclude=None, classes=10):
    """Transform fully, compare, transform again, and let every new layer learn."""

    def call(module, **options):
        named = isinstance(inputs, dict)
        return module(**inputs, **options) if named else module(*inputs, **options)

    model.eval()
    for parameter in model.parameters():
        if not parameter.any():  # zeros, as in a fresh ViT head, would hide a difference
            torch.nn.init.normal_(parameter, std=0.1)
    before = scores(call(model))
    new = qcompile.transform(
        model,
        Quadratic("Quadra", init="preserve", exclude=exclude),
        LSH(tables=1, min_outputs=classes),
        example_inputs=inputs,
        strict=True,
    )
    report = new.qcompile_report
    assert f"traced by {tracer}" in report.notes
    assert report.entries[0].name == head
    assert torch.equal(scores(call(new)), before)
    assert type(copy.deepcopy(new)) is type(new)
    again = qcompile.transform(new, "Quadra", True, example_inputs=inputs, inplace=True)
    assert not again.qcompile_report.modified

    quadratic = [m for m in new.modules() if hasattr(m, "weight_a")]
    assert len(quadratic) == len(report.rewritten) - 1
    labels = torch.zeros(before.shape[:-1], dtype=torch.long)
    output, loss = call(new, target=labels)
    torch.testing.assert_close(output, before.log_softmax(-1)[..., 0])
    loss.backward()
    assert all(torch.isfinite(m.weight_a.grad).all() for m in quadratic)
    with torch.no_grad():
        for module in quadratic:
            module.weight_a.normal_()
    assert not torch.allclose(scores(call(new)), before)
    return report


def scores(output):
    return output if torch.is_tensor(output) else output.logits


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("resnet18", "fc"),
        ("mobilenet_v2", "classifier.1"),
        ("densenet", "classifier"),
        ("vit", "heads.head"),
        ("convnext", "classifier.2"),
    ],
)
def test_torchvision(torchvision, name, head):
    model = torchvision_model(torchvision.models, name)
    report = check(model, (IMAGE,), head, "torch.fx.symbolic_trace")
    assert {entry.kind for entry in report.skipped} <= {"NonDynamicallyQuantizableLinear"}


def test_torchvision_vgg(torchvision):
    layers = torchvision.models.vgg.make_layers([8, "M", 512, "M"])
    model = torchvision.models.VGG(layers, num_classes=10)
    model.classifier = torch.nn.Sequential(torch.nn.Linear(512 * 49, 10), torch.nn.Identity())
    check(model, (IMAGE,), "classifier.0", "torch.fx.symbolic_trace")


@pytest.mark.parametrize(
    ("name", "options", "head", "tracer"),
    [
        ("resnet18", {}, "fc", "torch.fx.symbolic_trace"),
        ("mobilenetv3_small_050", {}, "classifier", "torch.fx.symbolic_trace"),
        (
            "densenet121",
            {"growth_rate": 8, "block_config": (2, 2)},
            "classifier",
            "torch.fx.symbolic_trace",
        ),
        ("vit_tiny_patch16_224", SMALL_VIT, "head", "torch.fx.symbolic_trace"),
        (
            "convnext_atto",
            {"depths": (1, 1, 1, 1), "dims": (8, 16, 16, 32)},
            "head.fc",
            "torch.fx.symbolic_trace",
        ),
    ],
)
def test_timm(torchvision, name, options, head, tracer):
    import timm

    check(timm.create_model(name, num_classes=10, **options), (IMAGE,), head, tracer)


def test_timm_vgg_needs_export(torchvision):
    import timm
    from timm.models.vgg import VGG

    model = VGG(cfg=[8, "M", 16, "M"], num_classes=10, in_chans=3, mlp_ratio=0.01)
    assert isinstance(model.pre_logits, timm.models.vgg.ConvMlp)
    check(model, (torch.randn(1, 3, 32, 32),), "head.fc", "torch.export")


def test_weight_standardised_layers_are_named(torchvision):
    from timm.layers import StdConv2d
    from timm.models.resnetv2 import ResNetV2

    size = {"layers": (1, 1), "channels": (128, 128), "stem_chs": 32}
    model = ResNetV2(**size, num_classes=10, conv_layer=StdConv2d)
    report = explain(model, "Quadra")
    refused = [entry for entry in report.skipped if entry.kind == "StdConv2d"]
    assert refused
    assert all("StdConv2d overrides forward of Conv2d" in entry.reason for entry in refused)


def language_config(kind):
    import transformers

    return getattr(transformers, kind)(
        vocab_size=60,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
    )


def test_bert(torchvision):
    import transformers

    model = transformers.BertForMaskedLM(language_config("BertConfig"))
    embedding = model.bert.embeddings.word_embeddings.weight
    assert model.cls.predictions.decoder.weight is embedding
    report = check(model, TOKENS, "cls.predictions.decoder", "torch.export", classes=60)
    assert len(report.rewritten) == 8


def test_llama(torchvision):
    import transformers

    model = transformers.LlamaForCausalLM(language_config("LlamaConfig"))
    report = check(model, TOKENS, "lm_head", "torch.export", classes=60)
    assert len(report.rewritten) == 8
