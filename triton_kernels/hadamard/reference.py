"""The Hadamard epilogue in plain torch: the definition that the kernel is tested against."""

from __future__ import annotations

from typing import Any


def hadamard_reference(a: Any, b: Any, c: Any = None) -> Any:
    """Return a∘b, or a∘b + c. All of one shape and dtype; fx proxies work too."""
    product = a * b
    return product if c is None else product + c


def hadamard_backward_reference(grad: Any, a: Any, b: Any) -> tuple[Any, Any]:
    """Return the gradients of a and b; the gradient of c is ``grad`` itself."""
    return grad * b, grad * a
