"""What analyze finds, against NumPy."""

import json
import math

import numpy as np
import pytest
import torch
from torch import nn

import qcompile
from qcompile.analysis import analyze
from qcompile.analysis.tally import EDGES, Tally
from qcompile.analysis.terms import term_values
from qcompile.config import FORMS
from qcompile.errors import ConfigurationError, DataError
from qcompile.nn import QuadraticBlock, QuadraticConv2d, QuadraticLinear


def images(count=6, seed=0):
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        QuadraticConv2d(3, 4, 3, padding=1, padding_mode="reflect"),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Flatten(),
        QuadraticLinear(256, 5, form="T4"),
    )


def test_a_tally_counts_as_numpy_does():
    rng = np.random.default_rng(0)
    parts = [np.float32(10.0 ** rng.uniform(-8, 8, n)) * rng.choice([-1, 1], n) for n in (7, 1, 90)]
    parts.append(np.float32([0, 0, np.nan, np.inf, -np.inf]))
    tally = Tally()
    for part in parts:
        tally.add(torch.from_numpy(part))
    every = np.concatenate(parts).astype(np.float64)
    finite = every[np.isfinite(every)]
    found = tally.result()
    assert (found.count, found.not_finite) == (100, 3)
    np.testing.assert_allclose(found.mean, finite.mean())
    np.testing.assert_allclose(found.std, finite.std())
    assert (found.least, found.greatest) == (finite.min(), finite.max())
    assert found.zeros == 0.02
    counts, _ = np.histogram(finite, [-np.inf, *EDGES.tolist(), np.inf])
    assert found.bins == counts.tolist()


@pytest.mark.parametrize("form", FORMS)
def test_terms_add_up_to_the_layer(form):
    torch.manual_seed(1)
    layer = QuadraticConv2d(3, 4, 2, stride=2, form=form).double()
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    x = images().double()
    found = term_values(layer, x)
    torch.testing.assert_close(sum(found.values()), layer(x).detach())
    assert set(found) == {"quadratic"} | ({"first-order"} if form in ("T1L", "Quadra") else set())


def test_shares_units_and_distributions():
    model = network()
    with torch.no_grad():
        model[1].bias[2] = -1e3  # dead behind the ReLU
        model[4].bias_a[1] = 1e6  # explodes
    batches = [images(seed=seed) for seed in range(3)]
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    found = analyze(model, batches, limit=1e3)
    assert all(torch.equal(before[name], buffer) for name, buffer in model.named_buffers())
    assert [layer.name for layer in found.layers] == ["0", "1", "2", "3", "4"]
    convolution = found.layer("0")
    x = model[0].geometry.pad_by_mode(torch.cat(batches))
    with torch.no_grad():
        a, b, c = (model[0].geometry.convolve(x, w, bias) for w, bias in branches(model[0]))
    share = float((a * b).norm() / c.norm())
    assert convolution.quadratic_share == pytest.approx(share, rel=1e-4)
    assert convolution.terms["first-order"].std == pytest.approx(float(c.std()), rel=1e-3)
    assert convolution.output.mean == pytest.approx(float((a * b + c).mean()), abs=1e-5)
    assert convolution.weights["weight_b"].count == 4 * 3 * 9
    assert not convolution.gradients
    relu, last = found.layer("2"), found.layer("4")
    assert (relu.units, relu.dead) == (4, 1)
    assert (last.units, last.exploding, last.quadratic_share) == (5, 1, None)
    assert any("1 of 4 units of 2 (ReLU) never change" in remark for remark in found.remarks)
    assert [each.layer for each in found.maps] == ["0"]
    heights = torch.tensor(found.maps[0].terms["first-order"])
    torch.testing.assert_close(heights, c[0].abs().mean(0).detach())


def branches(layer):
    return [(getattr(layer, f"weight_{x}"), getattr(layer, f"bias_{x}")) for x in "abc"]


def test_gradients_of_a_loss_and_those_that_were_there():
    model = network()
    model[4].weight_a.grad = torch.ones_like(model[4].weight_a)
    target = torch.arange(6) % 5
    found = analyze(model, [(images(), target)], loss=nn.functional.cross_entropy)
    assert torch.equal(model[4].weight_a.grad, torch.ones_like(model[4].weight_a))
    assert model[0].weight_a.grad is None
    nn.functional.cross_entropy(model(images()), target).backward()
    gradient = model[0].weight_c.grad
    assert found.layer("0").gradients["weight_c"].std == pytest.approx(
        float(gradient.std(correction=0)), rel=1e-3
    )


def test_what_is_not_finite_is_counted_and_said():
    layer = nn.Linear(2, 2)
    found = analyze(layer, [torch.tensor([[math.inf, 1.0]])])
    assert found.layer("").output.not_finite == 2
    assert "not finite" in found.remarks[0]
    json.dumps(found.to_dict(), allow_nan=False)


def test_a_nearly_first_order_layer_is_named():
    model = qcompile.transform(nn.Sequential(nn.Linear(4, 3)), quadratic="Quadra")
    found = analyze(model, [torch.randn(5, 4)])
    assert found.layer("0").quadratic_share == 0
    assert "nearly first-order" in found.remarks[-1]


def test_layers_of_other_shapes_and_inputs():
    model = nn.ModuleDict({"rnn": nn.LSTM(3, 4), "conv": nn.Conv1d(3, 5, 1)})
    model.forward = lambda x, y: (model["rnn"](x), model["conv"](y))
    found = analyze(model, [{"x": torch.randn(2, 7, 3), "y": torch.randn(2, 3, 6)}])
    assert (found.layer("rnn").units, found.layer("conv").units) == (4, 5)


def test_the_page_and_the_board_hold_everything(tmp_path):
    found = analyze(
        network(), [(images(), torch.zeros(6).long())], loss=nn.functional.cross_entropy
    )
    page = found.write_html(tmp_path / "page.html").read_text()
    assert page.count("data:image/png;base64,") == len(found.layers) + len(found.maps)
    assert "http" not in page
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]
    found.write_tensorboard(tmp_path / "board", step=3)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "board")).Reload()
    assert events.Scalars("0/quadratic share")[0].step == 3
    histogram = events.Histograms("0/gradient weight_a")[0].histogram_value
    assert histogram.num == 4 * 27
    assert sum(histogram.bucket) == 4 * 27
    assert len(histogram.bucket) == len(histogram.bucket_limit)


def test_names_in_the_page_are_text(tmp_path):
    model = nn.Sequential()
    model.add_module("<script>", nn.Linear(2, 2))
    page = analyze(model, [torch.ones(1, 2)]).write_html(tmp_path / "page.html").read_text()
    assert "<script>" not in page


@pytest.mark.parametrize(
    ("batches", "arguments", "error", "message"),
    [
        ([], {}, DataError, "no batch"),
        ([torch.ones(1, 2)], {"loss": nn.functional.mse_loss}, DataError, "pair"),
        ([torch.ones(1, 2)], {"limit": 0}, ConfigurationError, "limit"),
        ([torch.ones(1, 2)], {"maps": -1}, ConfigurationError, "maps"),
    ],
)
def test_what_makes_no_sense_is_refused(batches, arguments, error, message):
    with pytest.raises(error, match=message):
        analyze(nn.Linear(2, 2), batches, **arguments)


def test_a_page_that_cannot_be_written_is_an_error(tmp_path):
    found = analyze(nn.Linear(2, 2), [torch.ones(1, 2)])
    with pytest.raises(ConfigurationError, match="cannot be written"):
        found.write_html(tmp_path / "absent" / "page.html")


def test_a_block_counts_as_one_layer():
    torch.manual_seed(0)
    layer = QuadraticConv2d(3, 4, 3, bias=False)
    model = nn.Sequential(QuadraticBlock(layer, "branch", nn.ReLU())).eval()
    with torch.no_grad():
        model[0].norm_a.weight.fill_(0.5)
    found = analyze(model, [images()])
    block = found.layer("0")
    values = layer.branches(images())
    a, b, c = (getattr(model[0], f"norm_{x}")(values[x]) for x in "abc")
    with torch.no_grad():
        assert block.quadratic_share == pytest.approx(float((a * b).norm() / c.norm()), rel=1e-4)
    assert block.form == "Quadra"
    assert set(block.weights) == {"layer.weight_a", "layer.weight_b", "layer.weight_c"}
    assert {each.name for each in found.layers} == {
        *("0", "0.norm_a", "0.norm_b", "0.norm_c", "0.activation"),
    }
    assert [each.layer for each in found.maps] == ["0"]
