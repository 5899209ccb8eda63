"""The operator of quadratic linear layers as torch sees it, on a CPU."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from qcompile.errors import ConfigurationError, DataError
from qcompile.nn import QuadraticLinear
from qcompile.nn.quadratic.formulas import FORMULAS, Term
from qcompile.triton_kernels.availability import has_triton
from qcompile.triton_kernels.quadratic_linear import op
from qcompile.triton_kernels.quadratic_linear.forms import ACTIVATIONS, FORMS
from qcompile.triton_kernels.quadratic_linear.op import (
    fused_quadratic_linear,
    fused_quadratic_linear_backward,
    quadratic_linear,
)
from qcompile.triton_kernels.quadratic_linear.reference import quadratic_linear_reference

GATED = ("T4", "T2_4", "Quadra")
CASES = [
    ("T2", "none", "silu"),
    ("T3", "none", "none"),
    ("T4", "silu", "none"),
    ("T2_4", "gelu", "tanh"),
    ("Quadra", "none", "gelu_tanh"),
    ("Quadra", "sigmoid", "relu"),
]
IDS = ["-".join(case) for case in CASES]


def arguments(form, *, rows=(3, 2), inputs=5, outputs=4, bias="ac", dtype=torch.float64):
    letters = FORMS[form].letters
    x = torch.randn(*rows, inputs, dtype=dtype, requires_grad=True)
    weights = [torch.randn(outputs, inputs, dtype=dtype, requires_grad=True) for _ in letters]
    biases = [torch.randn(outputs, dtype=dtype, requires_grad=True) for _ in letters]
    padded = [None] * (3 - len(letters))
    biases = [b if x in bias else None for x, b in zip(letters, biases, strict=True)]
    return [x, *weights, *padded, *biases, *padded]


def test_forms_are_those_of_the_layers():
    for name, form in FORMS.items():
        formula = FORMULAS[name]
        assert "".join(formula.branches) == form.letters
        assert formula.factors == form.factors
        squared = [x for x, b in formula.branches.items() if b.term is Term.SQUARED_INPUT]
        assert squared == ([form.added] if form.squares else [])
    with_bilinear = {name for name, formula in FORMULAS.items() if formula.has_bilinear}
    assert set(FORMS) == set(FORMULAS) - with_bilinear


@pytest.mark.parametrize("form", FORMS)
def test_equals_the_layer_bit_for_bit(form):
    layer = QuadraticLinear(5, 4, form=form)
    x = torch.randn(7, 5)
    letters = FORMS[form].letters
    named = {f"weight_{letter}": getattr(layer, f"weight_{letter}") for letter in letters}
    named |= {f"bias_{letter}": getattr(layer, f"bias_{letter}") for letter in letters}
    assert torch.equal(quadratic_linear(x, **named, form=form), layer(x))


def test_equals_the_formula():
    functions = {
        "none": lambda z: z,
        "relu": F.relu,
        "gelu": F.gelu,
        "gelu_tanh": lambda z: F.gelu(z, approximate="tanh"),
        "silu": F.silu,
        "sigmoid": torch.sigmoid,
        "tanh": torch.tanh,
    }
    assert set(functions) == set(ACTIVATIONS)
    x, A, B, C, a, b, c = arguments("T2_4", bias="abc")
    first, second = x @ A.t() + a, x @ B.t() + b
    for gate, gating in functions.items():
        for activation, activating in functions.items():
            options = {"gate": gate, "activation": activation}
            for form, third in (("T2_4", x * x), ("Quadra", x)):
                wanted = activating(gating(first) * second + third @ C.t() + c)
                got = quadratic_linear(x, A, B, C, a, b, c, form=form, **options)
                torch.testing.assert_close(got, wanted)
            got = quadratic_linear(x, A, B, None, a, b, **options)
            torch.testing.assert_close(got, activating(gating(first) * second))


def test_operators_pass_opcheck():
    case = ("T2_4", "gelu", "tanh")  # has every branch, function and square
    given = arguments(case[0])
    torch.library.opcheck(fused_quadratic_linear, (*given, *case, "auto", True))
    grad = torch.randn(3, 2, 4, dtype=torch.float64)
    needs = [t is not None for t in given]
    detached = [t if t is None else t.detach() for t in given]
    nothing = (torch.empty(0), torch.empty(0))
    torch.library.opcheck(
        fused_quadratic_linear_backward, (grad, *detached, *nothing, *case, "auto", needs)
    )


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_gradients_of_first_and_second_order(case):
    given = arguments(case[0], rows=(3,), inputs=3, outputs=2)

    def compute(*tensors):
        return fused_quadratic_linear(*tensors, *case, "auto", True)[0]

    assert torch.autograd.gradcheck(compute, given)
    assert torch.autograd.gradgradcheck(compute, given)


def test_only_needed_gradients_are_returned():
    given = [None if t is None else t.detach() for t in arguments("Quadra")]
    given[2].requires_grad_()
    y = fused_quadratic_linear(*given, "Quadra", "none", "none", "auto", True)[0]
    y.sum().backward()
    x, A, _, _, a, *_ = given
    wanted = (x @ A.t() + a).flatten(0, 1).t() @ x.flatten(0, 1)
    torch.testing.assert_close(given[2].grad, wanted)


def test_one_tensor_as_several_branches():
    x, W, *_ = arguments("T3")
    y = fused_quadratic_linear(
        x, W, W, W, None, None, None, "Quadra", "none", "none", "auto", True
    )[0]
    found = torch.autograd.grad(y.sum(), (x, W))
    plain = x @ W.t()
    wanted = torch.autograd.grad((plain * plain + plain).sum(), (x, W))
    for got, expected in zip(found, wanted, strict=True):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("shape", [(0, 5, 4), (3, 0, 4), (3, 5, 0), (0, 0, 0)])
def test_empty_dimensions(shape):
    rows, inputs, outputs = shape
    given = arguments("Quadra", rows=(rows,), inputs=inputs, outputs=outputs)
    y = fused_quadratic_linear(*given, "Quadra", "silu", "none", "auto", True)[0]
    assert y.shape == (rows, outputs)
    y.sum().backward()
    assert all(t is None or t.grad.shape == t.shape for t in given)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_lowers_the_operator(dtype):
    given = arguments("Quadra", dtype=torch.float32)
    with torch.autocast("cpu", dtype=dtype):
        y = fused_quadratic_linear(*given, "Quadra", "silu", "none", "auto", True)[0]
    lowered = [t if t is None else t.detach().to(dtype) for t in given]
    assert y.dtype == dtype
    assert torch.equal(
        y, fused_quadratic_linear(*lowered, "Quadra", "silu", "none", "auto", True)[0]
    )
    y.float().sum().backward()
    assert given[0].grad.dtype == torch.float32


def test_fx_sees_one_call():
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.up, self.gate = torch.nn.Linear(5, 4), torch.nn.Linear(5, 4)

        def forward(self, x):
            return quadratic_linear(x, self.gate.weight, self.up.weight, gate="silu")

    model = Model()
    graph = torch.fx.symbolic_trace(model)
    assert any(node.target is quadratic_linear for node in graph.graph.nodes)
    x = torch.randn(3, 5)
    wanted = F.silu(x @ model.gate.weight.t()) * (x @ model.up.weight.t())
    torch.testing.assert_close(graph(x), wanted)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), wanted)
    program = torch.export.export(model, (x,))
    torch.testing.assert_close(program.module()(x), wanted)
    by_sample = torch.func.vmap(model)(x)
    torch.testing.assert_close(by_sample, wanted)


def test_the_operator_under_export_and_compile():
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.up, self.gate = torch.nn.Linear(5, 4), torch.nn.Linear(5, 4)

        def forward(self, x):
            weights = (self.gate.weight, self.up.weight, None)
            return fused_quadratic_linear(
                x, *weights, None, None, None, "T4", "silu", "none", "auto", True
            )[0]

    model, x = Model(), torch.randn(3, 5)
    wanted = model(x)
    program = torch.export.export(model, (x,))
    assert any("quadratic_linear" in str(node.target) for node in program.graph.nodes)
    torch.testing.assert_close(program.module()(x), wanted)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    compiled(x).sum().backward()
    gradient = model.up.weight.grad.clone()
    model.zero_grad()
    model(x).sum().backward()
    torch.testing.assert_close(gradient, model.up.weight.grad)


def test_a_compiler_meets_the_operator_where_depth_is_small(monkeypatch):
    monkeypatch.setattr(op, "fusible", lambda *tensors: True)  # as if on a GPU
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    for depth, fused in ((op.FUSED_DEPTH, True), (op.FUSED_DEPTH + 1, False)):
        x, A, B, *_ = arguments("T4", inputs=depth, dtype=torch.bfloat16)
        torch._dynamo.reset()
        compiled = torch.compile(quadratic_linear, backend=backend, fullgraph=True)
        with torch.no_grad():
            wanted = quadratic_linear_reference(
                x, {"a": A, "b": B}, {"a": None, "b": None}, "T4", "silu", "none"
            )
            torch.testing.assert_close(compiled(x, A, B, gate="silu"), wanted)
        assert any("quadratic_linear" in str(n.target) for n in graphs[-1].graph.nodes) == fused


def test_graphs_record_the_kernels():
    pytest.importorskip("triton")
    script = Path(__file__).with_name("trace_quadratic_linear.py")
    subprocess.run([sys.executable, str(script)], check=True, timeout=300)


def test_works_without_triton(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)  # what importing it finds
    has_triton.cache_clear()
    try:
        given = arguments("Quadra")
        wanted = quadratic_linear(*given, form="Quadra")
        assert torch.equal(
            fused_quadratic_linear(*given, "Quadra", "none", "none", "auto", True)[0], wanted
        )
    finally:
        has_triton.cache_clear()


def test_errors_say_what_is_wrong():
    x, A, B, C, a, *_ = arguments("Quadra")
    for wrong, message in (
        ({"form": "T1"}, "no matrix product"),
        ({"form": "quadr"}, "Did you mean 'Quadra'"),
        ({"gate": "sillu"}, "Did you mean 'silu'"),
        ({"activation": "softmax"}, "unknown activation"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            quadratic_linear(x, A, B, **wrong)
    with pytest.raises(ConfigurationError, match="two factors"):
        quadratic_linear(x, A, form="T3", gate="silu")
    for given, message in (
        ((x, A), "needs weight_b"),
        ((x, A, B, C), "weight_c must be None"),
        ((x, A, B, None, None, None, a), "bias_c must be None"),
        ((x, A, B[:2]), "alike"),
        ((x, A.flatten(), B), "alike"),
        ((x, A, B, None, a[:2]), "bias_a must be"),
        ((x[..., :3], A, B), "last dimension"),
        ((x, A, B.float()), "torch.float32"),
        ((x, A, B.to("meta")), "meta"),
        ((x.long(), A, B), "floating point"),
    ):
        with pytest.raises(DataError, match=message):
            quadratic_linear(*given)
