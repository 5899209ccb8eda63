import copy
import io
import pickle
import threading
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

import qcompile
from qcompile import LSH, DataError
from qcompile.errors import QCompileWarning

X = torch.randn(3, 8, generator=torch.Generator().manual_seed(1))
LABELS = torch.tensor([4, 0, 49])
WIDE = LSH(tables=2, min_outputs=50)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(8, 6), nn.Linear(6, 50)
        self.after_head = 0

    def forward(self, x, scale=None):
        h = self.body(x).relu()
        if scale is not None:
            h = h * scale
        scores = self.head(h)
        self.after_head += 1
        return F.log_softmax(scores, -1)


def sparse(model, **options):
    return qcompile.transform(model, sparse_output=WIDE, strict=True, **options).eval()


def expected(scores, labels):
    return F.log_softmax(scores, -1).gather(-1, labels[..., None])[..., 0]


def test_a_target_gives_output_and_loss_of_the_layer():
    model = sparse(Net())
    output, loss = model(X, target=LABELS)
    torch.testing.assert_close(output, expected(model(X), LABELS))
    torch.testing.assert_close(loss, -output.mean())
    loss.backward()
    assert model.body.weight.grad.abs().sum() > 0
    assert model.after_head == 1, "only the call without a target gets past the output layer"


def test_other_arguments_pass_through():
    model = sparse(Net())
    by_keyword = model(x=X, scale=2.0, target=LABELS)
    torch.testing.assert_close(by_keyword.output, expected(model(X, 2.0), LABELS))
    torch.testing.assert_close(model(X, 2.0, target=LABELS).output, by_keyword.output)


def test_the_report_says_what_does_not_run():
    assert "with target= the forward ends at 'head', before log_softmax" in (
        sparse(Net()).qcompile_report.notes
    )


def test_sequential():
    model = sparse(nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 50), nn.Softmax(-1)))
    output, _ = model(X, target=LABELS)
    torch.testing.assert_close(output, model(X).log().gather(-1, LABELS[:, None])[:, 0])
    assert model[:2](X).shape == (3, 6)
    with pytest.raises(DataError, match="did not reach"):
        model[:2](X, target=LABELS)


def test_distributed_over_time():
    class Tagger(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.head = nn.LSTM(8, 6, batch_first=True), nn.Linear(6, 50)

        def forward(self, x):
            return self.head(self.rnn(x)[0])

    model = sparse(Tagger())
    x, labels = torch.randn(2, 5, 8), torch.randint(50, (2, 5))
    output, _ = model(x, target=labels)
    assert output.shape == (2, 5)
    torch.testing.assert_close(output, expected(model(x), labels))


def test_a_data_class_is_returned_without_a_target_and_skipped_with_one():
    @dataclass
    class Answer:
        scores: torch.Tensor

    class Packing(Net):
        def forward(self, x):
            return Answer(super().forward(x))

    model = sparse(Packing(), example_inputs=X)
    assert isinstance(model(X), Answer)
    torch.testing.assert_close(model(X, target=LABELS).output, expected(model(X).scores, LABELS))


def clones(model):
    yield copy.deepcopy(model)
    yield pickle.loads(pickle.dumps(model))
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    yield torch.load(file, weights_only=False)


@pytest.mark.parametrize("graph", [False, True])
def test_copies_and_pickles_behave_the_same(graph):
    model = nn.Sequential(nn.Linear(8, 6), nn.Linear(6, 50))
    model = sparse(torch.fx.symbolic_trace(model) if graph else Net())
    for clone in clones(model):
        assert torch.equal(clone(X), model(X))
        assert torch.equal(clone(X, target=LABELS).output, model(X, target=LABELS).output)
        pairs = zip(clone.parameters(), model.parameters(), strict=True)
        assert all(a is not b for a, b in pairs)
    if graph:
        model.recompile()
    assert model(X, target=LABELS).loss > 0


def test_the_class_keeps_its_name_and_its_instances():
    model = sparse(Net())
    assert isinstance(model, Net)
    assert type(model).__name__ == "Net"
    assert type(copy.deepcopy(model)) is type(model)
    assert [n for n, _ in model.named_parameters()] == [n for n, _ in Net().named_parameters()]


def test_tracing_exporting_and_compiling():
    model = sparse(Net())
    reference = model(X)
    traced = torch.fx.symbolic_trace(model, {"scale": None})
    torch.testing.assert_close(traced(X), reference)
    exported = torch.export.export(model, (X,), dynamic_shapes=({0: torch.export.Dim("b")},))
    torch.testing.assert_close(exported.module()(X), reference)
    compiled = torch.compile(model, backend="eager")
    torch.testing.assert_close(compiled(X), reference)
    output, _ = compiled(X, target=LABELS)
    torch.testing.assert_close(output, expected(reference, LABELS))


def test_hooks_of_the_model_see_the_result():
    model = Net()
    seen = []
    model.body.register_forward_hook(lambda *_: seen.append("body"))
    model = qcompile.transform(model, sparse_output=WIDE)
    model(X, target=LABELS)
    assert seen == ["body"]


def test_threads_do_not_see_each_others_targets():
    model = sparse(Net())
    wrong = []

    def work(label):
        target = torch.full((3,), label)
        want = expected(model(X), target)
        for _ in range(50):
            if not torch.allclose(model(X, target=target).output, want):
                wrong.append(label)
            if isinstance(model(X), tuple):
                wrong.append(label)

    threads = [threading.Thread(target=work, args=(label,)) for label in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_an_error_in_the_forward_leaves_no_target_behind():
    model = sparse(Net())
    with pytest.raises(RuntimeError):
        model(torch.ones(3, 7), target=LABELS)
    assert torch.is_tensor(model(X))


def test_a_model_inside_another_is_called_with_its_own_target():
    class Outer(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x, labels):
            return self.inner(x, target=labels).loss * 2

    model = sparse(Net())
    torch.testing.assert_close(Outer(model)(X, LABELS), model(X, target=LABELS).loss * 2)


class OwnTarget(Net):
    def forward(self, x, target=None):
        scores = super().forward(x)
        return scores if target is None else (scores, target)


def test_a_forward_with_a_target_of_its_own_keeps_it():
    model = sparse(OwnTarget())
    assert any("sparse_target=labels" in note for note in model.qcompile_report.notes)
    scores, given = model(X, target=LABELS)
    assert given is LABELS
    torch.testing.assert_close(model(X, sparse_target=LABELS).output, expected(scores, LABELS))


def test_several_heads_take_a_mapping():
    class TwoHeads(Net):
        def __init__(self):
            super().__init__()
            self.other = nn.Linear(6, 70)

        def forward(self, x):
            h = self.body(x)
            return {"head": self.head(h), "other": self.other(h)}

    both = LSH(tables=1, where=["head", "other"])
    model = qcompile.transform(TwoHeads(), sparse_output=both).eval()
    scores = model(X)
    results = model(X, target={"other": LABELS + 20, "head": LABELS})
    assert set(results) == {"head", "other"}
    torch.testing.assert_close(results["other"].output, expected(scores["other"], LABELS + 20))
    one = model(X, target={"other": LABELS})
    torch.testing.assert_close(one["other"].output, expected(scores["other"], LABELS))
    with pytest.raises(DataError, match="did not reach third"):
        model(X, target={"third": LABELS})
    with pytest.raises(DataError, match="head, other: the target must be a mapping"):
        model(X, target=LABELS)


def test_training_lowers_the_loss():
    model = sparse(nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 50))).train()
    x, labels = torch.randn(40, 8), torch.randint(50, (40,))
    first = model.eval()(x, target=labels).loss.item()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    model.train()
    for _ in range(60):
        optimizer.zero_grad()
        model(x, target=labels).loss.backward()
        optimizer.step()
    assert model.eval()(x, target=labels).loss.item() < 0.7 * first


def test_nothing_warns_when_all_is_well(recwarn):
    sparse(Net())
    assert not [w for w in recwarn if issubclass(w.category, QCompileWarning)]
