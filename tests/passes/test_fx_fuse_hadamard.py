"""Products of linear layers become one operator: the same function, however spelled."""

import copy

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import example, given, settings
from hypothesis import strategies as st
from products import ADD, GATES, LAYERS, MULTIPLY, SQUARE, Product, Spelling, fused_calls
from torch import fx, nn

import qcompile
from qcompile.config import FORMS
from qcompile.nn import QuadraticBlock, QuadraticLinear
from qcompile.passes.fx.fuse_hadamard import FuseHadamard
from qcompile.triton_kernels.quadratic_linear.op import quadratic_linear

FUSIBLE = ("T2", "T3", "T4", "T2_4", "Quadra")
spellings = st.builds(
    Spelling,
    form=st.sampled_from(FUSIBLE),
    layers=st.sampled_from(LAYERS),
    bias=st.booleans(),
    gate=st.sampled_from(GATES),
    activation=st.sampled_from(GATES),
    activated_by=st.sampled_from(["module", "function"]),
    multiply=st.sampled_from(sorted(MULTIPLY.keys() - {"in place"})),
    add=st.sampled_from(sorted(ADD.keys() - {"in place"})),
    square=st.sampled_from(sorted(SQUARE)),
    swapped=st.booleans(),
)


def fuse(model):
    """Return a fused copy and its report."""
    result = FuseHadamard()(copy.deepcopy(model))
    return result.model, result.report


def gradients(model, x):
    model.zero_grad()
    source = x.clone().requires_grad_()
    y = model(source)
    y.sin().sum().backward()
    return y.detach(), {"x": source.grad, **{n: p.grad for n, p in model.named_parameters()}}


def agree(model, fused, x, exact=False):
    (y, found), (z, wanted) = gradients(fused, x), gradients(model, x)
    assert found.keys() == wanted.keys()
    if exact:
        assert torch.equal(y, z)
    tolerance = {"rtol": 0, "atol": 0} if exact else {}
    torch.testing.assert_close(y, z, **tolerance)
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, **tolerance, msg=name)


@settings(max_examples=80, deadline=None)
@given(spellings, st.sampled_from([(5,), (3, 5), (2, 1, 5), (0, 5)]))
@example(Spelling("Quadra", "chunk", gate="silu", activation="relu", swapped=True), (2, 5))
def test_any_spelling(spelling, shape):
    model = Product(spelling).double()
    fused, report = fuse(model)
    assert [entry.status for entry in report.entries] == ["rewritten"]
    gate = spelling.gate if spelling.form not in ("T2", "T3") else "none"
    options = {"form": spelling.form, "gate": gate, "activation": spelling.activation}
    assert fused_calls(fused) == [options]
    assert list(fused.state_dict()) == list(model.state_dict())
    agree(model, fused, torch.randn(shape, dtype=torch.float64))
    again = FuseHadamard()(fused)
    assert not again.modified
    assert [entry.reason for entry in again.report.entries] == ["already fused"]


@pytest.mark.parametrize("layers", ["module", "function", "sequential"])
@pytest.mark.parametrize("form", FUSIBLE)
def test_float32_is_equal_bit_for_bit(form, layers):
    model = Product(Spelling(form, layers, gate="silu", activation="gelu"))
    agree(model, fuse(model)[0], torch.randn(4, 5), exact=True)


@pytest.mark.parametrize("form", FORMS)
def test_quadratic_layers(form):
    model = nn.Sequential(
        QuadraticLinear(5, 4, form=form), nn.ReLU(), QuadraticLinear(4, 3, form=form)
    )
    fused, report = fuse(model)
    assert len(report.rewritten) == (2 if form in FUSIBLE else 0)
    assert [type(m).__name__ for m in fused] == ["QuadraticLinear", "ReLU", "QuadraticLinear"]
    assert isinstance(fused[0], QuadraticLinear)
    agree(model, fused, torch.randn(4, 5), exact=True)
    if form not in FUSIBLE:
        assert all("has xᵀWx" in entry.reason for entry in report.skipped)
        assert "fuse: 0 rewritten" in report.problems[0]
    else:
        assert [call["form"] for call in fused_calls(fused)] == [form] * 2
        assert not FuseHadamard()(fused).modified


def test_levels_and_blocks_have_ways_of_their_own():
    model = nn.Sequential(
        QuadraticLinear(5, 4, memory=3), QuadraticBlock(QuadraticLinear(4, 4), "outer")
    )
    reasons = [entry.reason for entry in fuse(model)[1].skipped]
    assert "memory=3 has its own way of computing the layer" in reasons
    assert "a block computes its branches apart" in reasons
    layer = fuse(QuadraticLinear(5, 4))[0]
    layer.memory = 3
    assert "memory has changed" in layer._fusion.misfit(layer)


class Written(nn.Module):
    """Layers a, b, c and whatever else a test needs; ``code`` is the forward."""

    def __init__(self, code, **modules):
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(4, 6) for _ in range(3))
        for name, module in modules.items():
            setattr(self, name, module)
        self.register_buffer("ones", torch.ones(6))
        self.code = code

    def forward(self, x):
        return self.code(self, x)


class LowRank(nn.Module):
    """An adapter beside a layer, as LoRA adds one."""

    def __init__(self, base):
        super().__init__()
        self.base_layer, self.in_features, self.out_features = base, 4, 6
        self.down, self.up = nn.Linear(4, 2, bias=False), nn.Linear(2, 6, bias=False)

    def forward(self, x):
        return self.base_layer(x) + self.up(self.down(x))


class Rounded(nn.Linear):
    def forward(self, x):
        return F.linear(x, self.weight.round(), self.bias)


class Scaled(nn.Module):
    def forward(self, weight):
        return 2 * weight


def hooked(module):
    module.register_forward_hook(lambda *_: None)
    return module


def replaced(module):
    module.forward = module.forward
    return module


def parametrised(module):
    nn.utils.parametrize.register_parametrization(module, "weight", Scaled())
    return module


def with_leak(m, x):
    left = m.a(x)
    return left * m.b(x) + left.sum()


def changing(m, x):
    left = m.a(x)
    x.mul_(2)
    return left * m.b(x)


def by_dimension(m, x):
    left, right = m.a(x).chunk(2, 1)
    return left * right


REFUSED = {
    "dropout": (lambda m, x: m.z(m.a(x)) * m.b(x), nn.Dropout(), "dropout stands behind a"),
    "function": (lambda m, x: F.dropout(m.a(x)) * m.b(x), None, "dropout stands behind a"),
    "norm": (lambda m, x: m.a(x) * m.z(m.b(x)), nn.LayerNorm(6), "LayerNorm stands behind b"),
    "mish": (lambda m, x: m.z(m.a(x)) * m.b(x), nn.Mish(), "Mish stands behind a"),
    "cast": (lambda m, x: m.a(x).float() * m.b(x), None, "a change of type stands behind a"),
    "hooks": (lambda m, x: m.z(x) * m.b(x), hooked(nn.Linear(4, 6)), "z: it has forward hooks"),
    "gate": (lambda m, x: m.z(m.a(x)) * m.b(x), hooked(nn.SiLU()), "SiLU has forward hooks"),
    "glu": (lambda m, x: m.z(m.a(x)), hooked(nn.GLU()), "GLU has forward hooks"),
    "method": (lambda m, x: m.z(x) * m.b(x), replaced(nn.Linear(4, 6)), "was replaced on the"),
    "LoRA": (lambda m, x: m.z(x) * m.b(x), LowRank(nn.Linear(4, 6)), "LowRank is no torch.nn.Lin"),
    "class": (lambda m, x: m.z(x) * m.b(x), Rounded(4, 6), "Rounded overrides forward"),
    "quadratic": (lambda m, x: m.z(x) * m.b(x), QuadraticLinear(4, 6), "QuadraticLinear is no"),
    "weight": (lambda m, x: m.z(x) * m.b(x), parametrised(nn.Linear(4, 6)), "is parametrised"),
    "lazy": (lambda m, x: m.z(x) * m.b(x), nn.LazyLinear(6), "size is not known yet"),
    "type": (lambda m, x: m.a(x) * m.z(x), nn.Linear(4, 6).double(), "differ in type or device"),
    "shapes": (lambda m, x: m.a(x) * m.z(x), nn.Linear(4, 1), "they have 6 and 1 outputs"),
    "inputs": (lambda m, x: m.a(x) * m.b(x + 1), None, "they read different inputs"),
    "gates": (lambda m, x: m.a(x).relu() * m.b(x).relu(), None, "both factors are activated"),
    "chain": (lambda m, x: m.a(x).relu().tanh() * m.b(x), None, "several activations follow"),
    "itself": (lambda m, x: (lambda z: z * F.silu(z))(m.a(x)), None, "with its own activation"),
    "users": (with_leak, None, "the value a is used elsewhere, too"),
    "square": (lambda m, x: (lambda z: z * z + z)(m.a(x)), None, "is used elsewhere, too"),
    "in place": (changing, None, "mul_ changes a value in place between the layers"),
    "dimension": (by_dimension, None, "split along dimension 1, not along the last, -1"),
    "constant": (
        lambda m, x: F.linear(x, m.a.weight, m.ones) * m.b(x),
        None,
        "weight or bias that is no parameter",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_left_alone(name):
    code, extra, reason = REFUSED[name]
    model = Written(code, z=copy.deepcopy(extra))
    fused, report = fuse(model)
    assert type(fused) is Written
    (entry,) = [entry for entry in report.entries if entry.kind == "Written"]
    assert entry.status == "skipped"
    assert reason in entry.reason


@pytest.mark.parametrize(
    ("code", "form"),
    [
        (lambda m, x: m.a(x) * m.b(x) - m.c(x), "T4"),
        (lambda m, x: torch.add(m.a(x) * m.b(x), m.c(x), alpha=2), "T4"),
        (lambda m, x: m.a(x) * m.b(x) + m.c(x + 1), "T4"),
        (lambda m, x: m.a(x) * m.b(x) + m.c(x).relu(), "T4"),
        (lambda m, x: m.a(x) * m.b(x) + m.a(x), "Quadra"),
        (lambda m, x: m.a(x) * m.a(x), "T3"),
        (lambda m, x: F.silu(m.a(x)) * m.a(x), "T4"),
        (lambda m, x: (m.a(x) * m.b(x) + m.c(x)).sum(0) + m.c(x), "Quadra"),
        (lambda m, x: m.c(x) + m.b(x) * m.a(x) + x.sum(), "Quadra"),
        (lambda m, x: F.mish(m.a(x) * m.b(x)), "T4"),
        (lambda m, x: F.glu(m.a(x)), "T4"),
        (lambda m, x: F.glu(m.a(x), dim=-1) * 2, "T4"),
    ],
)
def test_what_belongs_to_a_product(code, form):
    model = Written(code).double()
    fused, _ = fuse(model)
    assert [call["form"] for call in fused_calls(fused)] == [form]
    x = torch.randn(3, 4, dtype=torch.float64)
    torch.testing.assert_close(fused(x), model(x))


class Multiplied(nn.Module):
    """Parameters [inputs, outputs] and whatever a test does with them."""

    def __init__(self, code, bias=torch.float32):
        super().__init__()
        self.A, self.B = (nn.Parameter(torch.randn(4, 6)) for _ in range(2))
        self.b = nn.Parameter(torch.randn(6, dtype=bias))
        self.code = code

    def forward(self, x):
        return self.code(self, x)


@pytest.mark.parametrize(
    ("code", "biases"),
    [
        (lambda m, x: torch.addmm(m.b, x, m.A).relu() * torch.mm(x, m.B), 1),
        (lambda m, x: (m.b + x.matmul(m.A)) * (x @ m.B + m.b), 2),
        (lambda m, x: ((x * x) @ m.A + m.b).tanh(), 1),
        (lambda m, x: (x @ m.A) * (x @ m.B) + (x @ m.A + m.b), 1),
        (lambda m, x: (x @ m.A).add_(m.b) * (x @ m.B), 1),
    ],
)
def test_products_with_parameters(code, biases):
    model = Multiplied(code)
    fused, report = fuse(model)
    assert len(report.rewritten) == 1
    calls = [n for n in fx.symbolic_trace(fused).graph.nodes if n.target is quadratic_linear]
    assert len(calls) == 1
    assert sum(argument is not None for argument in calls[0].args[4:]) == biases
    agree(model, fused, torch.randn(3, 4))


@pytest.mark.parametrize(
    "code",
    [
        lambda m, x: torch.addmm(m.b, x, m.A, beta=2) * (x @ m.B),
        lambda m, x: (x @ torch.ones(4, 6)) * (x @ m.B),
        lambda m, x: (m.A @ m.B.t()) * (x @ x.t()).sum(),
        lambda m, x: (x @ m.A) * m.b,
    ],
)
def test_products_with_other_matrices_stay(code):
    model = Multiplied(code)
    fused, report = fuse(model)
    assert not report.rewritten
    assert torch.equal(fused(X := torch.randn(3, 4)), model(X))


def test_a_bias_of_another_type_is_added_behind():
    model = Multiplied(lambda m, x: (x @ m.A + m.b) * (x @ m.B), torch.float64)
    fused, report = fuse(model)
    assert not report.rewritten
    assert fused(torch.randn(3, 4)).dtype == torch.float64


def test_several_products_of_one_forward():
    code = lambda m, x: m.a(x) * m.b(x) + F.relu(m.a(x)) * m.c(x) + m.c(x) ** 2  # noqa: E731
    model = Written(code)
    fused, report = fuse(model)
    assert len(report.rewritten) == len(fused_calls(fused)) == 3
    agree(model, fused, torch.randn(3, 4))


def test_products_of_products():
    code = lambda m, x: m.e(y := m.a(x) * m.b(x)) * F.silu(m.d(y)) + m.f(y * y)  # noqa: E731
    model = Written(code, d=nn.Linear(6, 3), e=nn.Linear(6, 3), f=nn.Linear(6, 3))
    fused, _ = fuse(model)
    assert [call["form"] for call in fused_calls(fused)] == ["T4", "T2_4"]
    x = torch.randn(3, 4)
    assert torch.equal(fused(x), model(x))
    traced, report = fuse(fx.symbolic_trace(Written(lambda m, x: m.a(x) * m.b(x))))
    assert len(report.rewritten) == 1
    again = FuseHadamard()(traced)
    assert [entry.reason for entry in again.report.entries] == ["already fused"]


class Shift(nn.Module):
    """Has a state, and so stays whole."""

    def __init__(self):
        super().__init__()
        self.register_buffer("by", torch.ones(4))

    def forward(self, x):
        return x + self.by


def test_children_with_buffers_stay_whole():
    model = Written(lambda m, x: m.a(y := m.shift(x)) * m.b(y), shift=Shift())
    fused, report = fuse(model)
    assert len(report.rewritten) == 1
    assert not report.notes
    x = torch.randn(3, 4)
    assert torch.equal(fused(x), model(x))


class Moody(nn.Module):
    """Multiplies in evaluation mode only, or with a dropout between in training mode only."""

    def __init__(self, multiplies_in_training):
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(4, 6)
        self.always = multiplies_in_training

    def forward(self, x, scale=None, shift: float = 0.0):
        a, b = self.a(x), self.b(x)
        if self.training:
            a = F.dropout(a, 0.5, self.training) if self.always else a
            return a * b if self.always else a + b
        y = a * b
        return y + shift if scale is None else y * scale + shift


@pytest.mark.parametrize("always", [True, False])
def test_modes_are_fused_apart(always):
    model = Moody(always)
    fused, report = fuse(model)
    assert report.rewritten[-1].reason == "a, b fused: T4, in evaluation mode only"
    x = torch.randn(3, 4)
    for mode in (True, False):
        model.train(mode)
        fused.train(mode)
        outputs = []
        for m in (model, fused):
            torch.manual_seed(1)
            outputs.append(m(x))
        assert torch.equal(*outputs)
    defaults = {"scale": None, "shift": 0.0}
    assert len(fused_calls(fused.eval(), **defaults)) == 1
    assert not fused_calls(fused.train(), **defaults)


def test_arguments_in_every_way():
    model = Moody(True).eval()
    fused, _ = fuse(model)
    x, scale = torch.randn(3, 4), torch.randn(6)
    calls = [
        ((x,), {}),
        ((), {"x": x}),
        ((x, None), {"shift": 0.0}),
        ((x, scale), {}),
        ((x,), {"scale": scale, "shift": 2.0}),
    ]
    for args, kwargs in calls:
        assert torch.equal(fused(*args, **kwargs), model(*args, **kwargs))
    with pytest.raises(TypeError):
        fused(x, None, None)
    with pytest.raises(TypeError):
        fused()


class Counting(nn.Module):
    """Does beside its product what a trace cannot repeat."""

    def __init__(self, what):
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(4, 6)
        self.what, self.calls = what, 0
        self.register_buffer("steps", torch.zeros(()))

    def forward(self, x, *rest):
        if self.what == "attribute":
            self.calls += 1
        elif self.what == "buffer":
            self.steps += 1
        elif self.what == "weight":
            self.a.weight.data.clamp_(-1, 1)
        elif self.what == "class" and not isinstance(x, torch.Tensor):
            raise TypeError
        elif self.what == "rest" and rest:
            x = x + rest[0]
        elif self.what == "branch" and x.sum() > 0:
            return x
        return self.a(x) * self.b(x)


@pytest.mark.parametrize("what", ["attribute", "buffer", "weight", "class", "rest", "branch"])
def test_what_a_trace_cannot_repeat(what):
    model = Counting(what)
    fused, report = fuse(model)
    assert type(fused) is Counting
    assert not report.entries
    assert "torch.fx cannot follow: 1 × Counting (" in report.notes[0]
    assert fused.calls == fused.steps == 0


def test_a_graph_module_is_rewritten():
    model = Product(Spelling("Quadra", gate="gelu"))
    traced = fx.symbolic_trace(model)
    fused = qcompile.transform(traced, fuse=True)
    assert isinstance(fused, fx.GraphModule)
    assert len(fused_calls(fused)) == 1
    assert not fused_calls(traced)
    agree(model, fused, torch.randn(3, 5), exact=True)
    assert qcompile.rewrite.explain(fused, fuse=True).skipped[0].reason == "already fused"


def test_an_exported_program_is_rewritten():
    model = Product(Spelling("T2_4", gate="gelu_tanh", activation="silu"))
    program = torch.export.export(model, (torch.randn(3, 5),)).module()
    fused = qcompile.transform(program, fuse=True)
    assert [call["gate"] for call in fused_calls(fused)] == ["gelu_tanh"]
    x = torch.randn(3, 5)
    assert torch.equal(fused(x), model(x))
