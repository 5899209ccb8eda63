"""The epilogue as torch sees it, on a CPU: registration, gradients, errors, when it is used."""

import copy
import sys

import pytest
import torch
from torch import nn

from qcompile.errors import ConfigurationError, DataError
from qcompile.nn import QuadraticLinear
from qcompile.triton_kernels.availability import has_triton
from qcompile.triton_kernels.hadamard.op import (
    epilogue,
    fused_epilogue,
    fused_epilogue_backward,
    hadamard,
    is_fusible,
)

FORMS = [
    ("pair", True, "none", "none", False),
    ("pair", True, "silu", "gelu", True),
    ("square", False, "none", "tanh", False),
    ("none", True, "none", "sigmoid", True),
    ("none", False, "none", "none", False),
]


def tensors(layout: str) -> list[torch.Tensor]:
    made = [torch.randn(2, 3, 2, 2, dtype=torch.float64) for _ in range(3)]
    if layout == "channels_last":
        made = [x.to(memory_format=torch.channels_last) for x in made]
    if layout == "mixed":
        made = [made[0].transpose(0, 1).contiguous().transpose(0, 1), made[1][:, :, ::1], made[2]]
    return [x.requires_grad_() for x in made]


def arguments(form, constants="", layout="contiguous"):
    """What the operator takes: tensors, then what to compute."""
    product, has_c, gate, activation, outer = form
    a, b, c = tensors(layout)
    slots = 1 + (product == "pair") + has_c + outer
    rows = [torch.randn(slots, 3, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    given = [a, b if product == "pair" else None, c if has_c else None]
    names = zip(("scale", "shift"), rows, strict=True)
    given += [row if outer or name in constants else None for name, row in names]
    return given, (product, gate, activation, 1, outer)


@pytest.mark.parametrize(("form", "constants"), [(FORMS[1], ""), (FORMS[4], "shift")], ids=str)
def test_operators_pass_opcheck(form, constants):
    given, options = arguments(form, constants, "channels_last")
    torch.library.opcheck(fused_epilogue, (*given, *options))
    needs = [x is not None for x in given]
    given = [x if x is None else x.detach() for x in given]
    grad = torch.randn_like(given[0])
    torch.library.opcheck(fused_epilogue_backward, (grad, *given, *options, needs))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "mixed"])
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_gradients_of_first_and_second_order(form, layout):
    given, options = arguments(form, "scale shift" if layout != "mixed" else "", layout)

    def function(*given):
        return fused_epilogue(*given, *options)

    assert torch.autograd.gradcheck(function, given)
    assert torch.autograd.gradgradcheck(function, given)


def test_one_tensor_in_every_role():
    a = tensors("contiguous")[0]
    assert torch.autograd.gradcheck(lambda a: fused_epilogue(a, a, a), (a,))
    with torch.no_grad():
        assert torch.equal(epilogue(a, None, a, product="square"), a * a + a)


def test_channels_last_stays_channels_last():
    a, b, c = tensors("channels_last")
    assert fused_epilogue(a, b, c).is_contiguous(memory_format=torch.channels_last)


def test_cpu_tensors_and_traced_graphs_take_plain_operators():
    a, b, c = tensors("contiguous")
    assert torch.equal(hadamard(a, b, c), a * b + c)
    assert not is_fusible([a, b, c])
    program = torch.export.export(QuadraticLinear(3, 4), (torch.randn(2, 3),))
    targets = {str(n.target) for n in program.graph.nodes if n.op == "call_function"}
    assert not any("qcompile" in target for target in targets)


class Gated(nn.Module):
    def __init__(self, call):
        super().__init__()
        self.call = call

    def forward(self, a, b, c):
        return self.call(a, b, c, activation="relu")


@pytest.mark.parametrize("call", [epilogue, fused_epilogue])
def test_graphs_compute_the_same(call):
    a, b, c = (x.detach() for x in tensors("channels_last"))
    module, wanted = Gated(call), torch.relu(a * b + c)
    assert torch.equal(torch.fx.symbolic_trace(module)(a, b, c), wanted)
    assert torch.equal(torch.export.export(module, (a, b, c)).module()(a, b, c), wanted)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    x = a.clone().requires_grad_()
    compiled(x, b, c).sum().backward()
    torch.testing.assert_close(x.grad, b * (wanted > 0))


def test_a_folded_batch_norm_is_the_batch_norm():
    norms = [nn.BatchNorm2d(3, dtype=torch.float64).eval() for _ in range(2)]
    for norm in norms:
        for x in (norm.weight, norm.bias, norm.running_mean):
            nn.init.normal_(x)
        nn.init.uniform_(norm.running_var, 0.5, 2)
    scales = [n.weight / (n.running_var + n.eps).sqrt() for n in norms]
    shifts = [n.bias - n.running_mean * s for n, s in zip(norms, scales, strict=True)]
    a, b, _ = tensors("contiguous")
    got = epilogue(a, b, scales=torch.stack(scales), shifts=torch.stack(shifts), channels=1)
    torch.testing.assert_close(got, norms[0](a) * norms[1](b))


def test_mixed_types_are_promoted_under_autocast_alone():
    a, b = torch.randn(2, 3), torch.randn(2, 3, dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(fused_epilogue(a, b), a * b.float())
        assert torch.equal(epilogue(a, b), a * b.float())
        assert fused_epilogue(b, b).dtype == torch.bfloat16
    with pytest.raises(DataError, match=r"a is torch.float32 \(2, 3\) and b torch.bfloat16"):
        fused_epilogue(a, b)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"b": None}, "takes two factors: b must be a tensor"),
        ({"product": "square"}, "takes a alone: b must be None"),
        ({"product": "cube"}, "unknown product 'cube'"),
        ({"activation": "rely"}, "Did you mean 'relu'"),
        ({"b": None, "product": "square", "gate": "relu"}, "needs two factors"),
        ({"c": torch.randn(2, 4)}, "they must be alike"),
        ({"c": torch.randn(2, 3, device="meta")}, "a is on cpu and c on meta"),
        ({"a": torch.ones(2, 3, dtype=torch.int64)}, "must be floating point"),
        ({"scales": torch.randn(3, 3)}, r"scales must be floating point, \[2, 3\]"),
        ({"shifts": torch.randn(2, 3), "channels": 2}, "channels=2 is no dimension"),
        ({"shifts": torch.randn(3, 3), "outer": True}, "needs both scales and shifts"),
        ({"outer": True}, "needs scales and shifts"),
    ],
)
def test_wrong_arguments_are_refused(changes, message):
    given = {"a": torch.randn(2, 3), "b": torch.randn(2, 3)} | changes
    with pytest.raises((DataError, ConfigurationError), match=message):
        epilogue(**given)


def test_works_without_triton(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)  # what importing it finds
    has_triton.cache_clear()
    try:
        assert not has_triton()
        layer = QuadraticLinear(3, 4)
        layer(torch.randn(2, 3)).sum().backward()
        assert layer.weight_a.grad.any()
        a = torch.randn(5)
        assert torch.equal(fused_epilogue(a, a, a), a * a + a)
    finally:
        has_triton.cache_clear()


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("form", ["T3", "T4", "T2_4", "Quadra"])
def test_layers_on_a_gpu_equal_plain_torch(form, dtype):
    layer = QuadraticLinear(33, 65, form=form, device="cuda", dtype=dtype)
    x = torch.randn(7, 33, device="cuda", dtype=dtype, requires_grad=True)
    fused = layer(x)
    with torch.no_grad():
        wanted = copy.deepcopy(layer).double()(x.double())
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5}.get(dtype, 2e-2)
    torch.testing.assert_close(fused.double(), wanted, rtol=tolerance, atol=tolerance)
    (gradient,) = torch.autograd.grad(fused.float().sum(), x)
    assert gradient.isfinite().all()


@needs_gpu
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_kernels_on_a_gpu_equal_plain_torch(form):
    given, options = arguments(form, "scale shift", "channels_last")
    there = [x if x is None else x.detach().cuda().requires_grad_() for x in given]
    for call in (fused_epilogue, torch.compile(fused_epilogue)):
        wanted, got = fused_epilogue(*given, *options), call(*there, *options)
        torch.testing.assert_close(got.cpu(), wanted)
        present = [x for x in given if x is not None]
        right = torch.autograd.grad(wanted.pow(2).sum(), present)
        found = torch.autograd.grad(got.pow(2).sum(), [x for x in there if x is not None])
        for x, y in zip(found, right, strict=True):
            torch.testing.assert_close(x.cpu(), y)


@needs_gpu
def test_cuda_graphs_replay_the_epilogue():
    a, b, c = (torch.randn(64, 96, device="cuda") for _ in range(3))
    epilogue(a, b, c, activation="gelu")  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = epilogue(a, b, c, activation="gelu")
    a.normal_()
    graph.replay()
    torch.testing.assert_close(y, nn.functional.gelu(a * b + c))
