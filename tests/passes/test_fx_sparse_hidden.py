"""Which hidden layers become sparse, and what the report says of the others."""

import copy

import numpy as np
import pytest
import torch
from scipy import sparse
from torch import nn

import qcompile
from qcompile import LSH
from qcompile.errors import ConfigurationError, PassError, QCompileWarning
from qcompile.nn import LSHConv2d, LSHHidden, LSHLinear, SparseLinear
from qcompile.passes.fx.sparse_layers import ALREADY

X = torch.randn(3, 2, 9, 8, generator=torch.Generator().manual_seed(1))
FEW = {"tables": 2, "active": 5}


class Net(nn.Module):
    def __init__(self, branch=False, groups=1):
        super().__init__()
        self.first = nn.Conv2d(2, 8, 3)
        self.conv = nn.Conv2d(8, 30, 3, groups=groups)
        self.middle, self.wide, self.head = nn.Linear(30, 20), nn.Linear(20, 70), nn.Linear(70, 50)
        self.branch = branch

    def forward(self, x):
        if self.branch and x.sum() == 0:  # cannot be traced
            return x
        x = self.conv(self.first(x).relu()).relu().mean(dim=(2, 3))
        return self.head(self.wide(self.middle(x).relu()).relu()).softmax(-1)


def transform(model, where, **options):
    return qcompile.transform(model, sparse_output=LSH(where=where, **FEW), **options)


def kinds(model):
    return {
        name: type(m) for name, m in model.named_children() if type(m) not in (nn.Linear, nn.Conv2d)
    }


@pytest.mark.parametrize("example", [None, X])
def test_a_hidden_layer_that_is_named_becomes_sparse(example):
    model = Net()
    new = transform(model, "wide", example_inputs=example, strict=True)
    assert kinds(new) == {"wide": LSHHidden}
    assert new.wide.config == LSH(**FEW)
    assert torch.equal(new.wide.weight, model.wide.weight)
    (entry,) = new.qcompile_report.rewritten
    assert (entry.pass_name, entry.name) == ("sparse_hidden", "wide")
    assert entry.reason == "LSH dwta, 5 of 70 neurons an example, same weights"
    assert entry.parameters == (70 * 21, 70 * 21)
    if example is not None:
        assert entry.flops == (2 * 3 * 20 * 70, 2 * 3 * 20 * 5)
    assert ((new.wide(torch.randn(4, 20)) != 0).sum(1) <= 5).all()
    new.eval()
    torch.testing.assert_close(new(X), model.eval()(X), rtol=0, atol=0)


def test_output_hidden_layers_and_convolutions_together():
    new = transform(Net(), ["head", "wide", "conv"], example_inputs=X, strict=True)
    assert kinds(new) == {"head": LSHLinear, "wide": LSHHidden, "conv": LSHConv2d}
    output, loss = new(X, target=torch.arange(3))
    loss.backward()
    assert output.shape == (3,)
    assert all(p.grad is not None for p in new.parameters())
    again = transform(new, ["head", "wide", "conv"], strict=True).qcompile_report
    assert not again.modified
    assert {entry.reason for entry in again.entries} == {ALREADY}
    assert kinds(copy.deepcopy(new)) == kinds(new)


def test_with_everything_active_nothing_changes_in_training():
    model = Net()
    where = ["wide", "conv", "first"]
    new = qcompile.transform(model, sparse_output=LSH(where=where, active=70))
    assert kinds(new) == {"wide": LSHHidden, "conv": LSHConv2d, "first": LSHConv2d}
    scale = torch.randn(3, 50)
    (model(X) * scale).sum().backward()
    (new(X) * scale).sum().backward()
    for old, changed in zip(model.parameters(), new.parameters(), strict=True):
        assert torch.allclose(changed.grad.to_dense(), old.grad, atol=1e-6)


def test_each_layer_may_have_settings_of_its_own():
    request = [LSH(where="head", **FEW), LSH(where="w*", tables=3, active=7), LSH(where=nn.Conv2d)]
    new = qcompile.transform(Net(), sparse_output=request)
    convolutions = {"first": LSHConv2d, "conv": LSHConv2d}
    assert kinds(new) == {"head": LSHLinear, "wide": LSHHidden, **convolutions}
    assert (new.head.config.active, new.wide.config.active, new.conv.config.active) == (
        5,
        7,
        LSH().active,
    )
    with pytest.raises(ConfigurationError, match="or several of them, got str"):
        qcompile.transform(Net(), sparse_output=[LSH(), "head"])


def test_a_selector_that_takes_the_output_layer_means_it_alone():
    for where in ("*", nn.Linear, lambda name, module: type(module) is nn.Linear):
        new = transform(Net(), where)
        assert kinds(new) == {"head": LSHLinear}
        assert not transform(new, where, strict=True).qcompile_report.modified
    both = transform(Net(), ["*", "wide"])
    assert kinds(both) == {"head": LSHLinear, "wide": LSHHidden}
    reasons = {entry.name: entry.reason for entry in both.qcompile_report.skipped}
    assert reasons == dict.fromkeys(["first", "conv", "middle"], "it does not compute an output")


def test_without_a_trace_a_named_linear_is_the_output_layer_and_a_convolution_is_not():
    new = transform(Net(branch=True), ["conv", "head"])
    assert kinds(new) == {"head": LSHLinear, "conv": LSHConv2d}


def test_sparse_layers_do_not_become_quadratic():
    new = qcompile.transform(Net(), "Quadra", LSH(where=["wide", "head"], **FEW))
    assert type(new.wide) is LSHHidden
    assert type(new.middle).__name__ == "QuadraticLinear"
    names = [entry.name for entry in new.qcompile_report.entries]
    assert sorted(names) == ["conv", "first", "head", "middle", "wide"]


def test_layers_that_cannot_become_sparse_are_named_with_the_reason():
    grouped = Net(groups=2)
    with pytest.warns(QCompileWarning, match="its 2 groups have no patches"):
        assert kinds(transform(grouped, "conv")) == {}
    hooked = Net()
    hooked.wide.register_forward_hook(lambda *_: None)
    with pytest.raises(PassError, match="it has forward hooks"):
        transform(hooked, "wide", strict=True)
    with pytest.raises(ConfigurationError, match="hidden layer 'wide': LSHHidden"):
        qcompile.transform(Net(), sparse_output=LSH(where="wide", active=1))
    with pytest.warns(QCompileWarning, match="where='missing' matches no layer"):
        transform(Net(), ["wide", "missing"])
    quadratic = qcompile.transform(Net(), qcompile.Quadratic(where="wide"))
    with pytest.warns(QCompileWarning, match="exclude the layer there"):
        transform(quadratic, "wide")


def test_a_transformed_model_is_exported_as_dense():
    new = transform(Net(), ["wide", "conv"]).eval()
    program = torch.onnx.export(new, (X,), dynamo=True, verbose=False)
    operators = [node.op_type for node in program.model.graph]
    assert operators.count("Conv") == 2
    assert operators.count("Gemm") == 3


@pytest.mark.parametrize("example", [False, True])
def test_a_model_of_sparse_examples(example):
    features = sparse.random(4, 300, 0.1, "csr", "float32", np.random.default_rng(0))
    model = nn.Sequential(SparseLinear(300, 20), nn.ReLU(), nn.Linear(20, 70), nn.ReLU())
    model.append(nn.Linear(70, 50))
    request = [LSH(min_outputs=50, **FEW), LSH(where="2", **FEW)]
    inputs = {"example_inputs": (features,)} if example else {}
    new = qcompile.transform(model, sparse_output=request, strict=True, **inputs)
    assert [type(new[i]) for i in (0, 2, 4)] == [SparseLinear, LSHHidden, LSHLinear]
    new(features, target=torch.arange(4)).loss.backward()
    assert all(p.grad is not None for p in new.parameters())
    traced = torch.fx.symbolic_trace(new.eval())
    assert torch.allclose(traced(torch.from_numpy(features.toarray())), new(features), atol=1e-6)
