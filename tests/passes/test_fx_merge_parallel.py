"""Parallel layers of one input become one: the same function and gradients, fewer calls."""

import copy

import pytest
import torch
from torch import fx, nn

import qcompile
from qcompile.config import FORMS
from qcompile.errors import PassError
from qcompile.nn import QuadraticBlock, QuadraticConv2d, QuadraticLinear
from qcompile.passes.fx.merge_parallel import MergeParallel

MERGED = {"T1": 0, "T1L": 0, "T2": 0, "T3": 0, "T1_2": 0, "T4": 2, "T2_4": 2, "Quadra": 3}


class ByHand(nn.Module):
    """Two convolutions and their batch norms over one input, one of them without a bias."""

    def __init__(self):
        super().__init__()
        self.left = nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect")
        self.right = nn.Conv2d(3, 2, 3, padding=1, padding_mode="reflect", bias=False)
        self.norms = nn.ModuleList([nn.BatchNorm2d(4), nn.BatchNorm2d(2)])

    def forward(self, x):
        left, right = self.norms[0](self.left(x)), self.norms[1](self.right(x))
        return left.mean(1) * right.mean(1)


def agree(model, merged, x):
    """Compare outputs and gradients of the input, in training and in evaluation mode."""
    for training in (True, False):
        grads = []
        outputs = []
        for m in (model, merged):
            source = x.clone().requires_grad_()
            y = m.train(training)(source)
            y.pow(2).sum().backward()
            outputs.append(y)
            grads.append(source.grad)
        torch.testing.assert_close(outputs[1], outputs[0])
        torch.testing.assert_close(grads[1], grads[0])


def calls(model, *kinds):
    graph = model.graph if isinstance(model, fx.GraphModule) else fx.symbolic_trace(model).graph
    targets = [node.target for node in graph.nodes if node.op == "call_module"]
    return sum(isinstance(model.get_submodule(target), kinds) for target in targets)


@pytest.mark.parametrize("batch_norm", ["branch", "outer", "none"])
@pytest.mark.parametrize("form", FORMS)
def test_branches_of_blocks(form, batch_norm):
    model = nn.Sequential(
        QuadraticBlock(QuadraticConv2d(3, 4, 3, padding=1, form=form), batch_norm, nn.ReLU()),
        nn.Flatten(),
        QuadraticLinear(4 * 25, 2, form=form),
    ).double()
    x = torch.randn(3, 3, 5, 5, dtype=torch.float64)
    merged = qcompile.merge_parallel(model)
    report = merged.qcompile_report
    assert len(report.rewritten) == (2 if MERGED[form] else 0)
    if not MERGED[form]:
        assert type(merged) is nn.Sequential
    else:
        layers = [m for m in merged.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
        assert [len(layer.weight) for layer in layers] == [4 * MERGED[form], 2 * MERGED[form]]
        norms = [m.num_features for m in merged.modules() if isinstance(m, nn.BatchNorm2d)]
        left = [4] if form == "T2_4" else []
        assert norms == {"branch": [*left, 4 * MERGED[form]], "outer": [4], "none": []}[batch_norm]
    agree(model, merged, x)
    count = sum(p.numel() for p in model.parameters())
    assert sum(p.numel() for p in merged.parameters()) == count


def test_calls_by_hand():
    model = ByHand().double()
    with torch.no_grad():
        model(torch.randn(5, 3, 4, 4).double() + 1)  # the running statistics differ by branch
    merged = qcompile.merge_parallel(model)
    assert calls(model, nn.Conv2d) == calls(model, nn.BatchNorm2d) == 2
    assert calls(merged, nn.Conv2d) == calls(merged, nn.BatchNorm2d) == 1
    agree(model, merged, torch.randn(5, 3, 4, 4).double())
    joint = merged.merged_norm_0
    parts = [norm.running_var for norm in model.norms]
    torch.testing.assert_close(joint.running_var, torch.cat(parts))
    assert joint.num_batches_tracked == model.norms[0].num_batches_tracked
    assert "left, right  rewritten: one Conv2d and BatchNorm2d of 6 channels" in str(
        merged.qcompile_report
    )


def test_gradients_of_the_merged_weights_are_those_of_the_parts():
    model = ByHand().double()
    merged = qcompile.merge_parallel(model)
    x = torch.randn(5, 3, 4, 4).double()
    for m in (model, merged):
        m(x).pow(2).sum().backward()
    parts = torch.cat([model.left.weight.grad, model.right.weight.grad])
    torch.testing.assert_close(merged.merged_layer_0.weight.grad, parts)


def test_the_model_is_untouched_and_a_second_run_changes_nothing():
    model = ByHand()
    state = copy.deepcopy(model.state_dict())
    merged = qcompile.merge_parallel(model)
    assert model.state_dict().keys() == state.keys()
    again = MergeParallel()(merged)
    assert not again.modified
    assert again.model is merged


def different(name):
    model = ByHand()
    if name == "eps":
        model.norms[0].eps = 1e-3
    elif name == "mode":
        model.norms[0].eval()
    return model


@pytest.mark.parametrize("name", ["eps", "mode"])
def test_batch_norms_that_differ_stay_apart(name):
    model = different(name)
    merged = qcompile.merge_parallel(model)
    assert calls(merged, nn.Conv2d) == 1
    assert calls(merged, nn.BatchNorm2d) == 2
    x = torch.randn(5, 3, 4, 4)
    torch.testing.assert_close(merged(x), model(x))


@pytest.mark.parametrize("change", ["stride", "frozen", "hook", "tied", "groups"])
def test_layers_that_cannot_be_one_stay_apart(change):
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            groups = 2 if change == "groups" else 1
            self.a = nn.Conv2d(4, 4, 3, groups=groups)
            self.b = nn.Conv2d(4, 4, 3, groups=groups, stride=2 if change == "stride" else 1)
            if change == "frozen":
                self.a.requires_grad_(False)
            elif change == "hook":
                self.a.register_forward_hook(lambda *_: None)
            elif change == "tied":
                self.b.weight = self.a.weight

        def forward(self, x):
            return self.a(x).mean() + self.b(x).mean()

    merged = qcompile.merge_parallel(Pair())
    assert type(merged) is Pair
    reason = {"tied": "used elsewhere", "groups": "interleave"}.get(change)
    skipped = [entry.reason for entry in merged.qcompile_report.skipped]
    assert [reason in text for text in skipped] == ([True] if reason else [])


def test_what_cannot_be_traced_is_an_error():
    class Untraceable(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.raises(PassError, match="Untraceable cannot be traced"):
        qcompile.merge_parallel(Untraceable())
