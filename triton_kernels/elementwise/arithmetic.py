"""The arithmetic of act(gate(a)∘b + c) and its gradients on the device, in registers.

Importing this module needs triton. Half precision is computed in float32; NaN stays NaN, as in
torch.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def tanh(z):
    """Compute tanh: near zero a Padé approximant, as 1 − 2/(1 + exp(2z)) cancels there."""
    w = z * z
    above = z * (2027025.0 + w * (270270.0 + w * (6930.0 + w * 36.0)))
    below = 2027025.0 + w * (945945.0 + w * (51975.0 + w * (630.0 + w)))
    far = 1.0 - 2.0 / (1.0 + tl.exp(2.0 * tl.abs(z)))
    return tl.where(w < 0.25, above / below, tl.where(z < 0.0, -far, far))


@triton.jit
def _inner_of_gelu(z):
    return 0.7978845608028654 * (z + 0.044715 * z * z * z)


@triton.jit
def activate(z, activation: tl.constexpr):
    """Apply an activation by name; ``gelu`` is the exact one."""
    if activation == "relu":
        return tl.where(z < 0.0, 0.0, z)  # NaN stays NaN, as in torch
    elif activation == "gelu":  # noqa: RET505
        return 0.5 * z * (1.0 + tl.erf(z * 0.7071067811865476))
    elif activation == "gelu_tanh":
        return 0.5 * z * (1.0 + tanh(_inner_of_gelu(z)))
    elif activation == "silu":
        return z / (1.0 + tl.exp(-z))
    elif activation == "sigmoid":
        return 1.0 / (1.0 + tl.exp(-z))
    elif activation == "tanh":
        return tanh(z)
    else:
        return z


@triton.jit
def activate_backward(grad, z, activation: tl.constexpr):
    """Return the gradient of an activation's argument z from that of its value."""
    if activation == "relu":
        return tl.where(z <= 0.0, 0.0, grad)
    elif activation == "gelu":  # noqa: RET505
        density = 0.3989422804014327 * tl.exp(-0.5 * z * z)
        return grad * (0.5 * (1.0 + tl.erf(z * 0.7071067811865476)) + z * density)
    elif activation == "gelu_tanh":
        t = tanh(_inner_of_gelu(z))
        slope = 0.7978845608028654 * (1.0 + 0.134145 * z * z)
        return grad * (0.5 * (1.0 + t) + 0.5 * z * (1.0 - t * t) * slope)
    elif activation == "silu":
        s = 1.0 / (1.0 + tl.exp(-z))
        return grad * s * (1.0 + z * (1.0 - s))
    elif activation == "sigmoid":
        s = 1.0 / (1.0 + tl.exp(-z))
        return grad * s * (1.0 - s)
    elif activation == "tanh":
        t = tanh(z)
        return grad * (1.0 - t * t)
    else:
        return grad


@triton.jit
def combine(values, product: tl.constexpr, has_c: tl.constexpr, gate: tl.constexpr):
    """Return gate(a)∘b, a∘a or a, by ``product`` (``pair``, ``square``, ``none``), plus c."""
    a, b, c = values
    if product == "pair":
        y = activate(a, gate) * b
    elif product == "square":
        y = a * a
    else:
        y = a
    if has_c:
        y = y + c
    return y


@triton.jit
def towards_branches(delta, values, product: tl.constexpr, gate: tl.constexpr):
    """Return the gradients of a, b and c from that of the combination."""
    a, b, _ = values
    if product == "pair":
        return activate_backward(delta * b, a, gate), delta * activate(a, gate), delta
    elif product == "square":  # noqa: RET505
        return 2.0 * delta * a, delta, delta
    else:
        return delta, delta, delta
