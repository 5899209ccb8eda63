"""Quadratic linear layers on a GPU, by every strategy, against float64."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from qcompile.nn import QuadraticLinear
from qcompile.triton_kernels.quadratic_linear.call import QuadraticLinearCall
from qcompile.triton_kernels.quadratic_linear.forms import FORMS
from qcompile.triton_kernels.quadratic_linear.op import fused_quadratic_linear, quadratic_linear
from qcompile.triton_kernels.quadratic_linear.problem import Problem
from qcompile.triton_kernels.quadratic_linear.reference import quadratic_linear_reference

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

UNITS = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
FUNCTIONS = [("none", "none"), ("silu", "none"), ("gelu", "gelu_tanh"), ("tanh", "sigmoid")]


def arguments(form, dtype, rows=300, depth=200, columns=130):
    letters = FORMS[form].letters
    x = torch.randn(rows, depth, device="cuda").to(dtype).requires_grad_()
    weights = [torch.randn(columns, depth, device="cuda") * depth**-0.5 for _ in letters]
    weights = [w.to(dtype).requires_grad_() for w in weights]
    biases = [torch.randn(columns, device="cuda").to(dtype).requires_grad_() for _ in letters]
    padding = [None] * (3 - len(letters))
    return [x, *weights, *padding, *biases, *padding]


def strategies(given, form, gate, activation):
    x, weights, biases = given[0], given[1:4], given[4:]
    branches = [dict(zip("abc", t, strict=True)) for t in (weights, biases)]
    return QuadraticLinearCall(Problem(x, *branches, form, gate, activation), True).names()


def check(y, given, form, gate, activation, unit):
    """Compare an output and all its gradients with those of float64."""
    exact = [t if t is None else t.detach().double().requires_grad_() for t in given]
    branches = [dict(zip("abc", t, strict=True)) for t in (exact[1:4], exact[4:])]
    wanted = quadratic_linear_reference(exact[0], *branches, form, gate, activation)
    grad = torch.randn_like(y)
    there = [t for t in given if t is not None]
    found = torch.autograd.grad(y, there, grad)
    leaves = [t for t in exact if t is not None]
    gradients = torch.autograd.grad(wanted, leaves, grad.double())
    for got, expected in zip((y, *found), (wanted, *gradients), strict=True):
        scale = max(1.0, float(expected.abs().max()))
        torch.testing.assert_close(got.double(), expected, rtol=0, atol=unit * scale)


@pytest.mark.parametrize("dtype", UNITS)
@pytest.mark.parametrize("form", FORMS)
def test_every_strategy_equals_float64(form, dtype):
    for gate, activation in FUNCTIONS:
        if gate != "none" and len(set(FORMS[form].factors)) < 2:
            continue
        given = arguments(form, dtype)
        for name in strategies(given, form, gate, activation):
            y = fused_quadratic_linear(*given, form, gate, activation, name, True)[0]
            check(y, given, form, gate, activation, UNITS[dtype])


@pytest.mark.parametrize("size", [(1, 1, 1), (7, 33, 65), (1000, 512, 256)])
@pytest.mark.parametrize("form", FORMS)
def test_what_the_dispatch_chooses_equals_float64(form, size):
    given = arguments(form, torch.bfloat16, *size)
    y = quadratic_linear(*given, form=form)
    check(y, given, form, "none", "none", UNITS[torch.bfloat16])


def test_results_are_the_same_bits_every_time():
    given = arguments("Quadra", torch.bfloat16, 5000, 128, 64)
    there = [t for t in given if t is not None]
    for name in strategies(given, "Quadra", "silu", "none"):
        runs = []
        for _ in range(2):
            y = fused_quadratic_linear(*given, "Quadra", "silu", "none", name, True)[0]
            runs.append((y, *torch.autograd.grad(y.float().square().sum(), there)))
        assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True)), name


def test_views_are_read_where_they_lie():
    wide = torch.randn(3, 90, 400, device="cuda", dtype=torch.bfloat16)
    x = wide[:, ::2, 1::3].transpose(0, 1)
    W = torch.randn(140, 133, device="cuda", dtype=torch.bfloat16)[7:]
    y = quadratic_linear(x, W, W, gate="silu")
    wanted = quadratic_linear(x.double(), W.double(), W.double(), gate="silu")
    scale = float(wanted.abs().max())
    torch.testing.assert_close(y.double(), wanted, rtol=0, atol=5e-2 * scale)


def test_addresses_beyond_32_bits():
    if torch.cuda.mem_get_info()[0] < 24 << 30:
        pytest.skip("needs 24 GiB")
    rows = (1 << 31) // 64 + 130
    x = torch.zeros(rows, 64, device="cuda", dtype=torch.bfloat16)
    x[-1] = 1
    W = torch.ones(64, 64, device="cuda", dtype=torch.bfloat16)
    name = "fused/128x64x64x8/library"
    y = fused_quadratic_linear(x, W, W, *[None] * 4, "T4", "none", "none", name, False)[0]
    assert (y[-1] == 64 * 64).all() and not y[:-1].any()


@pytest.mark.parametrize("form", FORMS)
def test_cuda_graphs_capture_it(form):
    layer = QuadraticLinear(128, 64, form=form, device="cuda", dtype=torch.bfloat16)
    x = torch.randn(256, 128, device="cuda", dtype=torch.bfloat16)
    with torch.no_grad():
        layer(x)  # what may be measured is measured before the capture
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = layer(x)
        x.copy_(torch.randn_like(x))
        graph.replay()
        torch.testing.assert_close(y, layer(x))


@pytest.mark.parametrize("depth", [128, 1024])
def test_compiled_graphs_equal_eager(depth):
    given = arguments("Quadra", torch.bfloat16, 300, depth, 64)
    compiled = torch.compile(quadratic_linear, fullgraph=True)
    y = compiled(*given, form="Quadra", gate="silu")
    check(y, given, "Quadra", "silu", "none", UNITS[torch.bfloat16])


def test_autocast_computes_in_its_type():
    given = arguments("T4", torch.float32)
    with torch.autocast("cuda", dtype=torch.bfloat16):
        y = quadratic_linear(*given, gate="silu")
    assert y.dtype == torch.bfloat16
    check(y, given, "T4", "silu", "none", UNITS[torch.bfloat16])
    assert all(t is None or t.dtype == torch.float32 for t in given)


@pytest.mark.parametrize("form", FORMS)
def test_layers_equal_float64(form):
    layer = QuadraticLinear(33, 65, form=form, device="cuda", dtype=torch.bfloat16)
    x = torch.randn(7, 33, device="cuda", dtype=torch.bfloat16)
    parameters = dict(layer.named_parameters())
    named = {name: parameters[name].double() for name in parameters}
    wanted = quadratic_linear(x.double(), **named, form=form)
    torch.testing.assert_close(layer(x).double(), wanted, rtol=5e-2, atol=5e-2)


def test_two_threads_choose_once():
    given = arguments("T4", torch.bfloat16, 200, 64, 32)

    def compute(_):
        return quadratic_linear(*given).detach()

    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(compute, range(4)))
    assert all(torch.equal(results[0], y) for y in results)
