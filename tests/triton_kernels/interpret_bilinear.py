"""Runs the kernels of the full quadratic form in Triton's interpreter, against float64."""

from __future__ import annotations

import itertools

import torch

from qcompile.triton_kernels.bilinear import launch
from qcompile.triton_kernels.bilinear.op import MOST_WIDTH

# The interpreter truncates to bf16 where hardware rounds, hence twice its unit; a result has passed
# two roundings.
UNITS = {torch.float32: 2e-6, torch.float16: 2 * 2**-10, torch.bfloat16: 4 * 2**-8}
SHAPES = ((1, 1, 1), (5, 7, 3), (70, 33, 17), (9, MOST_WIDTH, 2))


def check(rows: int, width: int, outputs: int, dtype: torch.dtype, turned: bool) -> None:
    x = torch.randn(rows, width).to(dtype)
    weight = (torch.randn(outputs, width, width) / width).to(dtype)
    grad = torch.randn(rows, outputs).to(dtype)
    if turned:
        x, grad = x.t().contiguous().t(), grad.t().contiguous().t()
        weight = weight.permute(2, 1, 0).contiguous().permute(2, 1, 0)
    X, W = x.double().requires_grad_(), weight.double().requires_grad_()
    y = torch.einsum("mi,oij,mj->mo", X, W, X)
    dx, dw = torch.autograd.grad(y, (X, W), grad.double())
    for got, wanted in (
        (launch.launch_bilinear(x, weight), y.detach()),
        (launch.launch_bilinear_input(grad, x, weight), dx),
        (launch.launch_bilinear_weight(grad, x), dw),
    ):
        assert got.dtype == dtype and got.shape == wanted.shape
        error = (got.double() - wanted).abs().max() / max(1.0, float(wanted.abs().max()))
        assert error <= UNITS[dtype], (rows, width, outputs, dtype, turned, float(error))


if __name__ == "__main__":
    assert launch.INTERPRETED, "set TRITON_INTERPRET=1"
    torch.manual_seed(0)
    every = itertools.product(SHAPES, UNITS, (False, True))
    cases = [case for number, case in enumerate(every) if number % 5 < 3]
    for shape, dtype, turned in cases:
        check(*shape, dtype, turned)
    print(f"{len(cases)} cases checked")
