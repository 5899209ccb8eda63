"""The fused operator as torch sees it, on a CPU: registration, gradients, when it is used."""

import copy
import sys

import pytest
import torch

from qcompile.nn import QuadraticLinear
from qcompile.triton_kernels.hadamard.op import (
    _is_fusible,
    fused_hadamard,
    fused_hadamard_backward,
    hadamard,
    has_triton,
)


def tensors(layout: str) -> list[torch.Tensor]:
    made = [torch.randn(2, 3, 2, 2, dtype=torch.float64) for _ in range(3)]
    if layout == "channels_last":
        made = [x.to(memory_format=torch.channels_last) for x in made]
    if layout == "mixed":
        made = [made[0].transpose(0, 1).contiguous().transpose(0, 1), made[1][:, :, ::1], made[2]]
    return [x.requires_grad_() for x in made]


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "mixed"])
def test_operators_pass_opcheck(layout):
    a, b, c = tensors(layout)
    for arguments in ((a, b, c), (a, a, None)):
        torch.library.opcheck(fused_hadamard, arguments)
    torch.library.opcheck(fused_hadamard_backward, (c, a, b))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "mixed"])
def test_gradients_of_first_and_second_order(layout):
    a, b, c = tensors(layout)
    for arguments in ((a, b, c), (a, b)):
        assert torch.autograd.gradcheck(fused_hadamard, arguments)
        assert torch.autograd.gradgradcheck(fused_hadamard, arguments)
    assert torch.autograd.gradcheck(lambda a: fused_hadamard(a, a), (a,))


def test_channels_last_stays_channels_last():
    a, b, c = tensors("channels_last")
    assert fused_hadamard(a, b, c).is_contiguous(memory_format=torch.channels_last)


def test_cpu_tensors_and_traced_graphs_take_plain_operators():
    a, b, c = tensors("contiguous")
    assert torch.equal(hadamard(a, b, c), a * b + c)
    assert not _is_fusible([a, b, c])
    program = torch.export.export(QuadraticLinear(3, 4), (torch.randn(2, 3),))
    targets = {str(n.target) for n in program.graph.nodes if n.op == "call_function"}
    assert not any("qcompile" in target for target in targets)


def test_works_without_triton(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)  # what importing it finds
    has_triton.cache_clear()
    try:
        assert not has_triton()
        layer = QuadraticLinear(3, 4)
        layer(torch.randn(2, 3)).sum().backward()
        assert layer.weight_a.grad.any()
        a = torch.randn(5)
        assert torch.equal(fused_hadamard(a, a, a), a * a + a)
    finally:
        has_triton.cache_clear()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
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
