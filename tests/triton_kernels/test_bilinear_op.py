"""The full quadratic form as an operator, on a CPU, and its kernels in Triton's interpreter."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from qcompile.nn import QuadraticLinear
from qcompile.triton_kernels.bilinear.op import (
    MOST_WIDTH,
    choose_bilinear,
    fused_bilinear,
    fused_bilinear_backward,
    is_bilinear_fusible,
)
from qcompile.triton_kernels.bilinear.reference import bilinear_reference


def tensors(rows=5, width=3, outputs=2):
    x = torch.randn(rows, width, dtype=torch.float64, requires_grad=True)
    return x, torch.randn(outputs, width, width, dtype=torch.float64, requires_grad=True)


def test_equals_the_formula():
    x, W = tensors()
    wanted = torch.stack([torch.stack([r @ w @ r for w in W]) for r in x])
    torch.testing.assert_close(bilinear_reference(x, W), wanted)


def test_operators_pass_opcheck():
    x, W = tensors()
    torch.library.opcheck(fused_bilinear, (x, W))
    grad = torch.randn(5, 2, dtype=torch.float64)
    arguments = (grad, x.detach(), W.detach(), True, True)
    torch.library.opcheck(fused_bilinear_backward, arguments)


def test_gradients_of_first_and_second_order():
    assert torch.autograd.gradcheck(fused_bilinear, tensors())
    assert torch.autograd.gradgradcheck(fused_bilinear, tensors(rows=2))
    x, W = tensors()
    for needed in (x, W):
        y = fused_bilinear(x.detach(), W) if needed is W else fused_bilinear(x, W.detach())
        (got,) = torch.autograd.grad(y.sum(), needed)
        (wanted,) = torch.autograd.grad(bilinear_reference(x, W).sum(), needed)
        torch.testing.assert_close(got, wanted)


def test_a_cpu_takes_plain_torch():
    x, W = (t.float() for t in tensors())
    assert not is_bilinear_fusible(x, W)


def test_the_faster_way_is_chosen(monkeypatch):
    from qcompile.triton_kernels import dispatch
    from qcompile.triton_kernels.bilinear import op

    for seconds, fused in (((1.0, 0.5), True), ((1.0, 0.99), False), ((0.5, 1.0), False)):
        times = dict(zip(("plain", "fused"), seconds, strict=True))
        chooser = dispatch.Dispatcher(dispatch.Choices(None), lambda run, t=times: t[run.args[0]])
        monkeypatch.setattr(op, "dispatcher", lambda chooser=chooser: chooser)
        assert choose_bilinear(*tensors(), plain=lambda: None) == fused


def test_interpreted_kernels_equal_float64():
    pytest.importorskip("triton")
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("interpret_bilinear.py"))],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "cases checked" in done.stdout


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("width", [1, 33, MOST_WIDTH])
def test_kernels_on_a_gpu_equal_float64(width, dtype):
    x = torch.randn(70, width, device="cuda").to(dtype).requires_grad_()
    W = (torch.randn(17, width, width, device="cuda") / width).to(dtype).requires_grad_()
    X, V = (t.detach().double().requires_grad_() for t in (x, W))
    y, wanted = fused_bilinear(x, W), bilinear_reference(X, V)
    grad = torch.randn_like(y)
    found = torch.autograd.grad(y, (x, W), grad)
    exact = torch.autograd.grad(wanted, (X, V), grad.double())
    unit = 1e-4 if dtype == torch.float32 else 3e-2
    for got, expected in zip((y, *found), (wanted, *exact), strict=True):
        scale = float(expected.abs().max())
        torch.testing.assert_close(got.double(), expected, rtol=0, atol=unit * max(1.0, scale))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("form", ["T1", "T1L", "T1_2"])
def test_layers_on_a_gpu_equal_the_cpu(form):
    layer = QuadraticLinear(33, 17, form=form)
    x = torch.randn(9, 33)
    torch.testing.assert_close(layer.cuda()(x.cuda()).cpu(), layer.cpu()(x), rtol=1e-3, atol=1e-3)
