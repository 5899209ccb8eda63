"""Gated layers of real models: fused, with equal outputs and gradients, saved and loaded."""

import copy

import pytest
import torch

import qcompile
from qcompile.fused import fusion_of

TOKENS = torch.tensor([[1, 5, 7, 2]])
SIZE = {
    "vocab_size": 60,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "pad_token_id": 0,
}


def fused_modules(model):
    return [module for module in model.modules() if fusion_of(module)]


def forbid(*_, **__):
    raise AssertionError("the original forward runs")


def run(model, inputs):
    """Return the main output and the gradient of every parameter."""
    model.zero_grad()
    output = model(**inputs)
    output = output if torch.is_tensor(output) else output.logits
    output.float().square().mean().backward()
    return output.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def check(model, inputs, count, monkeypatch, exact=True, reason="T4, silu gate"):
    """Fuse, compare with the model, and make sure that the operator is what has run."""
    model.eval()
    wanted, gradients = run(model, inputs)
    fused = qcompile.transform(model, fuse=True, example_inputs=inputs)
    report = fused.qcompile_report
    assert len(report.rewritten) == len(fused_modules(fused)) == count
    assert all(reason in entry.reason for entry in report.rewritten)
    assert list(fused.state_dict()) == list(model.state_dict())
    with monkeypatch.context() as patch:
        for kind in {type(module)._qcompile_unfused for module in fused_modules(fused)}:
            patch.setattr(kind, "forward", forbid)
        found, found_gradients = run(fused, inputs)
    tolerance = {"rtol": 0, "atol": 0} if exact else {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(found, wanted, **tolerance)
    for name, gradient in gradients.items():
        torch.testing.assert_close(found_gradients[name], gradient, **tolerance, msg=name)
    again = qcompile.transform(fused, fuse=True, inplace=True).qcompile_report
    assert not again.modified
    assert again.summary() == f"0 rewritten: already fused ({count})"
    return fused


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("Llama", "gate_proj, up_proj fused: T4, silu gate"),
        ("Qwen2", "gate_proj, up_proj fused: T4, silu gate"),
        ("Gemma", "gate_proj, up_proj fused: T4, gelu_tanh gate"),
        ("Phi3", "gate_up_proj fused: T4, silu gate"),
    ],
)
def test_language_models(torchvision, monkeypatch, name, reason):
    import transformers

    extra = {"head_dim": 16} if name == "Gemma" else {}
    config = getattr(transformers, f"{name}Config")(**SIZE, **extra, eos_token_id=1)
    model = getattr(transformers, f"{name}ForCausalLM")(config)
    packed = name == "Phi3"  # one product of twice the width may round otherwise
    check(model, {"input_ids": TOKENS}, 2, monkeypatch, not packed, reason)


def test_a_language_model_generates_and_is_saved_as_before(torchvision, monkeypatch, tmp_path):
    import transformers

    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZE, eos_token_id=1))
    fused = check(model, {"input_ids": TOKENS}, 2, monkeypatch)
    options = {"max_new_tokens": 5, "do_sample": False}
    assert torch.equal(fused.generate(TOKENS, **options), model.generate(TOKENS, **options))
    fused.save_pretrained(tmp_path)
    loaded = transformers.LlamaForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(loaded(TOKENS).logits, model(TOKENS).logits)
    copied = copy.deepcopy(fused)
    assert torch.equal(copied(TOKENS).logits, model(TOKENS).logits)
    assert len(fused_modules(copied)) == 2


def t5(projection):
    import transformers

    sizes = {"vocab_size": 60, "d_model": 32, "d_kv": 16, "d_ff": 48, "num_heads": 2}
    config = transformers.T5Config(
        **sizes, num_layers=1, feed_forward_proj=projection, decoder_start_token_id=0
    )
    return transformers.T5ForConditionalGeneration(config)


def test_t5(torchvision, monkeypatch):
    inputs = {"input_ids": TOKENS, "decoder_input_ids": TOKENS}
    check(t5("gated-silu"), inputs, 2, monkeypatch)
    # Its own gated GELU is spelled out, step by step.
    model = t5("gated-gelu")
    fused = check(model, inputs, 2, monkeypatch, exact=False, reason="wi_0, wi_1 fused: T4, gelu_t")
    with torch.autocast("cpu", torch.bfloat16):  # its forward looks at types
        assert torch.equal(fused(**inputs).logits, model(**inputs).logits)


def test_t5_with_one_layer_kept_in_float32(torchvision, monkeypatch):
    inputs = {"input_ids": TOKENS, "decoder_input_ids": TOKENS}
    model = t5("gated-silu").bfloat16().eval()
    for name, module in model.named_modules():
        if name.endswith(".wo"):
            module.float()
    fused = check(model, inputs, 2, monkeypatch)
    plain = fused.float()
    assert all("types" in fusion_of(m).misfit(m) for m in fused_modules(plain))
    assert torch.equal(plain(**inputs).logits, model.float()(**inputs).logits)


@pytest.mark.parametrize("name", ["GluMlp", "SwiGLU", "SwiGLUPacked"])
def test_timm_layers(torchvision, monkeypatch, name):
    from timm.layers import mlp

    layer = getattr(mlp, name)(16, 32, norm_layer=torch.nn.LayerNorm, drop=0.1)
    reason = "fc1 fused: T4, sigmoid" if name == "GluMlp" else "fused: T4, silu gate"
    inputs = {"x": torch.randn(2, 3, 16)}
    fused = check(layer, inputs, 1, monkeypatch, name == "SwiGLU", reason)
    if name != "SwiGLU":
        fused.gate_last = layer.gate_last = not layer.gate_last
        assert torch.equal(fused(**inputs), layer(**inputs))


def test_timm_eva(torchvision, monkeypatch):
    import timm

    options = {"img_size": 28, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 10}
    model = timm.create_model("eva02_tiny_patch14_224", **options)
    image = torch.randn(1, 3, 28, 28)
    check(model, {"x": image}, 2, monkeypatch, exact=False)
