import functools

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

import qcompile
from qcompile import LSH, PassError, TraceError
from qcompile.errors import QCompileWarning
from qcompile.nn.lsh import LSHLinear
from qcompile.passes.fx.sparse_layers import ALREADY

X = torch.randn(3, 8, generator=torch.Generator().manual_seed(1))
WIDE = LSH(tables=2, min_outputs=50)


class Net(nn.Module):
    """``finish`` decides what happens to the scores, ``branch`` makes it hard to trace."""

    def __init__(self, finish=None, branch=False):
        super().__init__()
        self.body, self.head = nn.Linear(8, 60), nn.Linear(60, 50)
        self.finish, self.branch = finish or (lambda scores: scores), branch

    def forward(self, x):
        if self.branch and x.shape[0] < 1:
            return x
        return self.finish(self.head(self.body(x).relu()))


def transform(model, lsh=WIDE, **options):
    return qcompile.transform(model, sparse_output=lsh, **options)


FINISHES = {
    "nothing": lambda y: y,
    "softmax": lambda y: y.softmax(-1),
    "log_softmax": functools.partial(F.log_softmax, dim=-1),
    "dict": lambda y: {"scores": y, "best": y.argmax(-1)},
    "tuple": lambda y: (y / 2, y.topk(3)),
    "reshape": lambda y: y.view(-1, 1, 50).squeeze(1),
    "module": nn.LogSoftmax(-1),
    "flatten": nn.Flatten(),
}


@pytest.mark.parametrize("finish", FINISHES.values(), ids=FINISHES)
@pytest.mark.parametrize("branch", [False, True])
def test_the_output_layer_is_found_behind_operations_without_weights(finish, branch):
    model = Net(finish, branch)
    new = transform(model, example_inputs=X, strict=True)
    assert type(new.head) is LSHLinear
    assert type(new.body) is nn.Linear
    assert new.head.weight.shape == (50, 60)
    torch.testing.assert_close(new(X), model(X), rtol=0, atol=0)


def test_weights_are_the_same_objects_under_the_same_names():
    model = Net()
    before = dict(model.named_parameters())
    new = transform(model, inplace=True)
    assert {id(p) for p in new.parameters()} == {id(p) for p in before.values()}
    assert [name for name, _ in new.named_parameters()] == list(before)


def test_quadratic_leaves_the_output_layer_of_the_same_call_alone():
    new = qcompile.transform(Net(), "Quadra", WIDE)
    assert type(new.head) is LSHLinear
    names = [(entry.name, entry.status) for entry in new.qcompile_report.entries]
    assert names == [("head", "rewritten"), ("body", "rewritten")]


def test_a_second_run_changes_nothing_and_says_so():
    once = qcompile.transform(Net(), "Quadra", WIDE)
    twice = qcompile.transform(once, "Quadra", WIDE, strict=True)
    report = twice.qcompile_report
    assert not report.modified
    assert report.summary() == "0 rewritten: already LSH-sparse (1); already quadratic (1)"
    assert len(twice.head._forward_hooks) == 1


@pytest.mark.parametrize(
    "finish",
    [nn.BatchNorm1d(50), nn.Linear(50, 2), lambda y: y @ torch.ones(50, 2)],
    ids=["norm", "linear", "matmul"],
)
def test_a_layer_before_further_weights_is_not_the_output_layer(finish):
    with pytest.warns(
        QCompileWarning, match=r"sparse_output: (0 rewritten: 2 outputs|no Linear computes)"
    ):
        new = transform(Net(finish))
    assert type(new.head) is nn.Linear
    with pytest.raises(
        PassError, match=r"sparse_output: (0 rewritten: 2 outputs|no Linear computes)"
    ):
        transform(Net(finish), strict=True)


def test_a_small_output_layer_is_named_with_the_way_to_take_it():
    reason = r"50 outputs, fewer than LSH.min_outputs=4,096; LSH\(where='head'\) takes it"
    with pytest.warns(QCompileWarning, match=reason):
        new = transform(Net(), True)
    assert type(new.head) is nn.Linear
    assert type(transform(Net(), LSH(tables=1, where="head")).head) is LSHLinear


class TwoHeads(Net):
    def __init__(self):
        super().__init__()
        self.other = nn.Linear(60, 70)

    def forward(self, x):
        h = self.body(x)
        return self.head(h), self.other(h)


def test_several_candidates_are_an_error_that_names_them():
    with pytest.raises(
        PassError, match=r"'head', 'other' all compute an output.*LSH\(where='head'"
    ):
        transform(TwoHeads())
    new = transform(TwoHeads(), LSH(tables=1, where="other"))
    assert (type(new.head), type(new.other)) == (nn.Linear, LSHLinear)
    both = transform(TwoHeads(), LSH(tables=1, where=["head", "other"]))
    assert (type(both.head), type(both.other)) == (LSHLinear, LSHLinear)


def test_the_last_axis_tells_scores_from_what_else_a_model_returns():
    class WithKeys(Net):
        def forward(self, x):
            keys = self.body(x) if x.shape[0] else x
            return keys.view(-1, 6, 10), self.head(keys)

    new = transform(WithKeys(), example_inputs=X)
    assert type(new.head) is LSHLinear
    assert type(new.body) is nn.Linear


def test_of_a_broad_selection_only_what_computes_an_output_is_taken():
    new = transform(Net(), LSH(tables=1, where="*"))
    assert (type(new.body), type(new.head)) == (nn.Linear, LSHLinear)
    (skipped,) = new.qcompile_report.skipped
    assert (skipped.name, skipped.reason) == ("body", "it does not compute an output")


@pytest.mark.parametrize("where", ["nowhere", nn.Conv2d])
def test_a_selector_that_matches_nothing_is_loud(where):
    with pytest.warns(QCompileWarning, match="matches no layer"):
        transform(Net(), LSH(where=where))
    with pytest.raises(PassError, match="matches no layer"):
        transform(Net(), LSH(where=where), strict=True)


def test_an_untraceable_model_is_an_error_with_module_line_cause_and_way_round():
    with pytest.raises(TraceError) as caught:
        transform(Net(branch=True))
    message = str(caught.value)
    assert "the model's own forward" in message
    assert "test_fx_sparse_output.py:" in message
    assert "control flow" in message
    assert "example_inputs=" in message
    assert "LSH(where=...); large enough are 'body', 'head'" in message
    assert isinstance(caught.value.__cause__, torch.fx.proxy.TraceError)
    assert type(transform(Net(branch=True), LSH(tables=1, where="head")).head) is LSHLinear


def test_without_a_large_layer_no_trace_is_needed():
    with pytest.warns(QCompileWarning, match="no Linear has 4,096 outputs or more"):
        transform(Net(branch=True), True)


def test_a_second_run_without_a_trace_changes_nothing_and_says_so():
    first = transform(Net(branch=True), LSH(tables=1, where="head"))
    report = transform(first, strict=True).qcompile_report
    assert [(entry.name, entry.reason) for entry in report.entries] == [("head", ALREADY)]


def test_an_output_layer_that_is_called_step_by_step_is_loud():
    class Stepwise(Net):
        def forward(self, x):
            return torch.stack([self.head(h) for h in self.body(x).unbind(0)])

    with pytest.warns(QCompileWarning, match="calls 'head' 3 times"):
        new = transform(Stepwise(), example_inputs=X)
    assert type(new.head) is LSHLinear


def test_an_output_layer_with_a_hook_is_left_alone():
    model = Net()
    model.head.register_forward_hook(lambda *_: None)
    with pytest.warns(QCompileWarning, match="it has forward hooks"):
        assert type(transform(model).head) is nn.Linear


def test_a_quadratic_output_layer_is_left_alone():
    model = qcompile.transform(Net(), "Quadra")
    with pytest.warns(QCompileWarning, match="ask for sparse_output in the same call"):
        transform(model)


def test_the_model_itself_may_be_the_layer():
    new = transform(nn.Linear(8, 50))
    assert type(new) is LSHLinear
    output, loss = new.eval()(X, target=torch.tensor([0, 1, 2]))
    assert torch.isclose(loss, -output.mean())


def test_a_tie_to_the_embedding_is_kept():
    class Language(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.head = nn.Embedding(60, 8), nn.Linear(8, 60, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, tokens):
            return self.head(self.embed(tokens))

    new = transform(Language())
    assert type(new.head) is LSHLinear
    assert new.head.weight is new.embed.weight
