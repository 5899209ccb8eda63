"""Activations within Triton kernels, on float32 values; importing this module needs triton.

``kind`` is a name of ``forms.ACTIVATIONS``, known when a kernel is compiled. NaN stays NaN, as in
torch. Named constants are right operands: left ones would make constants in the interpreter.
"""

from __future__ import annotations

import triton
import triton.language as tl

_ROOT_HALF = tl.constexpr(0.7071067811865476)
_DENSITY = tl.constexpr(0.3989422804014327)  # of a standard normal at 0
_GELU_SCALE = tl.constexpr(0.7978845608028654)  # √(2/π), Hendrycks and Gimpel, 2016
_GELU_CUBE = tl.constexpr(0.044715)


@triton.jit
def tanh(z):
    """Return tanh z: by its series where (1 - e)/(1 + e) would cancel."""
    e = tl.exp(-2.0 * tl.abs(z))
    far = (1.0 - e) / (1.0 + e)
    far = tl.where(z < 0, -far, far)
    s = z * z
    tail = -1.0 / 3 + s * (2.0 / 15 + s * (-17.0 / 315 + s * (62.0 / 2835)))
    return tl.where(s < 0.0625, z + z * s * tail, far)


@triton.jit
def activate(z, kind: tl.constexpr):
    """Return the activation of z."""
    if kind == "relu":
        z = tl.where(z <= 0, 0.0, z)
    elif kind == "gelu":
        z = 0.5 * z * (1.0 + tl.erf(z * _ROOT_HALF))
    elif kind == "gelu_tanh":
        z = 0.5 * z * (1.0 + tanh((z + z * z * z * _GELU_CUBE) * _GELU_SCALE))
    elif kind == "silu":
        z = z / (1.0 + tl.exp(-z))
    elif kind == "sigmoid":
        z = 1.0 / (1.0 + tl.exp(-z))
    elif kind == "tanh":
        z = tanh(z)
    return z


@triton.jit
def activate_backward(grad, z, kind: tl.constexpr):
    """Return the gradient of z from that of its activation."""
    if kind == "relu":
        grad = tl.where(z <= 0, 0.0, grad)
    elif kind == "gelu":
        below = 0.5 * (1.0 + tl.erf(z * _ROOT_HALF))
        grad = grad * (below + z * _DENSITY * tl.exp(-0.5 * z * z))
    elif kind == "gelu_tanh":
        t = tanh((z + z * z * z * _GELU_CUBE) * _GELU_SCALE)
        inner = (1.0 + 3.0 * (z * z * _GELU_CUBE)) * _GELU_SCALE
        grad = grad * (0.5 * (1.0 + t) + 0.5 * z * (1.0 - t * t) * inner)
    elif kind == "silu":
        s = 1.0 / (1.0 + tl.exp(-z))
        grad = grad * s * (1.0 + z * (1.0 - s))
    elif kind == "sigmoid":
        s = 1.0 / (1.0 + tl.exp(-z))
        grad = grad * s * (1.0 - s)
    elif kind == "tanh":
        t = tanh(z)
        grad = grad * (1.0 - t * t)
    return grad
