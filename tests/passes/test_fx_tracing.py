from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn

from qcompile.errors import ConfigurationError
from qcompile.flops import measure
from qcompile.passes.fx.inputs import Inputs
from qcompile.passes.fx.tracing import EXPORT, NONE, RUN, SYMBOLIC, trace

X = torch.ones(2, 4)


class Straight(nn.Module):
    """Calls b before a, and c never."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(4, 4) for _ in range(3))

    def forward(self, x, mask=None):
        x = self.b(x)
        if mask is not None:
            x = self.c(x) * mask
        return self.a(x)


class Inner(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x):
        return self.fc(x) if x.shape[0] > 1 else x


class Branching(nn.Module):
    """Branches on a shape, which only torch.export can follow."""

    def __init__(self):
        super().__init__()
        self.inner, self.head = Inner(), nn.Linear(4, 4)

    def forward(self, x):
        return self.head(self.inner(x))


class DataDependent(nn.Module):
    """Branches on values, which no tracer can follow."""

    def __init__(self):
        super().__init__()
        self.yes, self.no = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        return self.yes(x) if x.sum() > 0 else self.no(x)


def layers(found):
    return [name for name in found.called if name]


def test_symbolic_order_and_default_arguments():
    found = trace(Straight())
    assert found.tracer == SYMBOLIC
    assert layers(found) == ["b", "a"]
    with_mask = trace(Straight(), Inputs((X, X)))
    assert layers(with_mask) == ["b", "c", "a"]


def test_export_follows_where_symbolic_fails():
    found = trace(Branching(), Inputs((X,)))
    assert found.tracer == EXPORT
    assert layers(found) == ["inner.fc", "head"]
    (failure,) = found.failures
    assert failure.module == "inner"
    assert "test_fx_tracing.py:" in failure.location
    line = int(failure.location.rpartition(":")[2])
    assert "x.shape[0] > 1" in Path(__file__).read_text().splitlines()[line - 1]


def test_a_run_tells_what_is_called_where_no_tracer_can_follow():
    model = DataDependent()
    inputs = Inputs((X,))
    found = trace(model, inputs, measure(model, inputs.args, inputs.kwargs))
    assert found.tracer == RUN
    assert layers(found) == ["yes"]
    assert [failure.tracer for failure in found.failures] == [SYMBOLIC, EXPORT]


def test_nothing_is_known_without_inputs():
    found = trace(DataDependent())
    assert found.tracer == NONE
    assert found.called is None
    assert found.flow is None


def test_keyword_arguments():
    found = trace(Branching(), Inputs.of({"x": X}))
    assert layers(found) == ["inner.fc", "head"]


def test_regions_without_gradient_are_read_in_line():
    class Frozen(Branching):
        def forward(self, x):
            with torch.no_grad():
                x = self.inner(x)
            with torch.autocast("cpu", enabled=False):
                return self.head(x)

    found = trace(Frozen(), Inputs((X,)))
    assert found.tracer == EXPORT
    assert layers(found) == ["inner.fc", "head"]
    assert found.read == frozenset()
    assert [value.owner for value in found.flow.outputs] == ["head"]


@pytest.mark.parametrize("branch", [False, True])
def test_parameters_that_another_module_reads(branch):
    class Reader(nn.Module):
        def __init__(self):
            super().__init__()
            self.called, self.read, self.both = (nn.Linear(4, 4) for _ in range(3))
            self.own = nn.Parameter(torch.ones(4))

        def forward(self, x):
            if branch and x.shape[0] < 1:
                return x
            x = nn.functional.linear(self.called(x), self.read.weight) * self.own
            return self.both(x) @ self.both.weight.t()

    found = trace(Reader(), Inputs((X,)))
    assert found.tracer == (EXPORT if branch else SYMBOLIC)
    assert found.read == {"read", "both"}
    assert "read" not in found.called
    assert "called" in found.called


def test_a_tied_parameter_is_not_read_by_others():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.head = nn.Embedding(6, 4), nn.Linear(4, 6, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, x):
            return self.head(self.embed(x))

    tokens = torch.zeros(1, 2, dtype=torch.long)
    for inputs in (None, Inputs((tokens,))):
        assert trace(Tied(), inputs).read == frozenset()


def test_tracing_leaves_no_marks():
    class Marking(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 4)
            self.register_buffer("count", torch.zeros(()))
            self.calls, self.last = 0, None

        def forward(self, x):
            self.count += 1
            self.calls += 1
            self.last = x
            if x.shape[0] > 1:
                x = nn.functional.dropout(x)
            return self.fc(x)

    model = Marking()
    seen = []
    model.fc.register_forward_hook(lambda *_: seen.append(1))
    state = torch.get_rng_state()
    assert trace(model, Inputs((X,))).tracer == EXPORT
    assert (model.count, model.calls, model.last, seen) == (0, 0, None, [])
    assert torch.equal(torch.get_rng_state(), state)
    assert len(model.fc._forward_hooks) == 1


def test_outputs_of_unknown_types():
    @dataclass
    class Answer:
        scores: torch.Tensor
        cache: object

    class Packing(Branching):
        def forward(self, x):
            return Answer(super().forward(x), object())

    found = trace(Packing(), Inputs((X,)))
    assert found.tracer == EXPORT
    assert [value.owner for value in found.flow.outputs] == ["head"]


def test_training_mode_has_no_buffers_among_its_outputs():
    class Normalised(Branching):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(4)

        def forward(self, x):
            return super().forward(self.norm(x))

    found = trace(Normalised().train(), Inputs((X,)))
    assert [value.owner for value in found.flow.outputs] == ["head"]


@pytest.mark.parametrize("wrong", ["model.pt", 3, torch.zeros(2, 3).numpy()])
def test_example_inputs_of_a_wrong_kind(wrong):
    with pytest.raises(ConfigurationError, match="example_inputs must be a tensor"):
        Inputs.of(wrong)


def test_numpy_among_example_inputs():
    with pytest.raises(ConfigurationError, match=r"example_inputs\[0\] is a NumPy ndarray"):
        Inputs.of((X.numpy(),))
    with pytest.raises(ConfigurationError, match=r"example_inputs\['x'\]"):
        Inputs.of({"x": X.numpy()})
