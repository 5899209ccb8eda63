"""The element-wise half of a block's backward pass: batch norms, products, activation, pooling.

Everything between what the branches compute and the output is a function of one element and of its
channel's constants, or of a few neighbours. So it is recomputed a few examples at a time:
intermediate values stay in the processor's cache and take no memory worth mentioning. A batch norm
in training needs two sums over the batch before it can pass a gradient on; hence several passes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from qcompile.nn.quadratic.plan import OUTER, Plan

CHUNK_ELEMENTS = {"cpu": 1 << 17}
"""Elements of one chunk: small enough for a cache on a CPU, no limit where kernels are launched."""


@dataclass
class Norm:
    """A batch norm's constants, each [N].

    Args:
        batch: whether mean and scale are those of this batch, and depend on its elements.
        mean: what was subtracted.
        rstd: what was multiplied: one over the standard deviation.
        gamma: learned scale, or ``None``.
        beta: learned offset, or ``None``.
    """

    batch: bool
    mean: Tensor
    rstd: Tensor
    gamma: Tensor | None
    beta: Tensor | None

    def broadcast(self, like: Tensor, dtype: torch.dtype) -> Norm:
        """Return the constants in ``dtype``, shaped to meet ``like`` [batch, N, ...]."""
        shape = (1, -1, *[1] * (like.dim() - 2))

        def fit(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.detach().to(dtype).view(shape)

        mean, rstd = fit(self.mean), fit(self.rstd)
        assert mean is not None and rstd is not None
        return Norm(self.batch, mean, rstd, fit(self.gamma), fit(self.beta))

    @property
    def scale(self) -> Tensor:
        """What an element is multiplied by in all."""
        return self.rstd if self.gamma is None else self.rstd * self.gamma

    def hat(self, values: Tensor) -> Tensor:
        """Standardise."""
        return (values - self.mean).mul_(self.rstd)

    def finish(self, hat: Tensor) -> Tensor:
        """Scale and move standardised values."""
        if self.gamma is None or self.beta is None:
            return hat
        return torch.addcmul(self.beta, hat, self.gamma)


class Sums:
    """Σ g and Σ g∘x̂ of a batch norm over batch and positions: gradients of offset and scale."""

    def __init__(self, shape: torch.Size, dtype: torch.dtype, device: torch.device) -> None:
        self._over = [0, *range(2, len(shape))]
        self.count = shape.numel() // max(1, shape[1])
        self.plain = torch.zeros(shape[1], dtype=dtype, device=device)
        self.projected = torch.zeros_like(self.plain)
        self._shape = (1, -1, *[1] * (len(shape) - 2))

    def add(self, grad: Tensor, hat: Tensor) -> None:
        """Count in one chunk."""
        self.plain += grad.sum(self._over)
        self.projected += (grad * hat).sum(self._over)

    def through(self, norm: Norm, grad: Tensor, hat: Tensor) -> Tensor:
        """Return the gradient of what the batch norm took, from that of what it gave."""
        if not norm.batch:
            return grad * norm.scale
        plain = (self.plain / self.count).view(self._shape)
        projected = (self.projected / self.count).view(self._shape)
        return torch.addcmul(grad - plain, hat, projected, value=-1).mul_(norm.scale)


class ElementwiseBackward:
    """Turns the gradient of a block's output into that of what each branch computed.

    Args:
        plan: what the block computes.
        grad: of the output, [batch, N, ...]; it is not written to.
        shape: of what the branches compute, which a pooling makes smaller.
        pre: what the branches computed, by letter, as far as ``plan.needed`` says.
        norms: by slot: a branch's letter, or :data:`OUTER`.
    """

    def __init__(
        self,
        plan: Plan,
        grad: Tensor,
        shape: torch.Size,
        pre: dict[str, Tensor],
        norms: dict[str, Norm],
    ) -> None:
        self._shape = shape
        self._plan, self._grad, self._pre = plan, grad, pre
        half = grad.dtype in (torch.bfloat16, torch.float16)
        self._dtype = torch.float32 if half else grad.dtype
        self._norms = {slot: norm.broadcast(grad, self._dtype) for slot, norm in norms.items()}
        self.sums = {slot: Sums(shape, self._dtype, grad.device) for slot in norms}

    def run(self, *, overwrite: bool) -> Iterator[tuple[str, Tensor]]:
        """Yield letter and gradient of each branch, in an order that frees memory early.

        Args:
            overwrite: whether ``pre`` may be written to.
        """
        delta = self._delta()
        letters = [letter for letter in self._plan.letters if self._changes(letter)]
        passing = [letter for letter in self._plan.letters if letter not in letters]
        if overwrite:
            out = {letter: self._pre[letter] for letter in letters}
            self._write(delta, out)
            self._pre.clear()
            for letter in passing:
                yield letter, delta
            del delta
            for letter in letters:
                yield letter, out.pop(letter)
            return
        for letter in passing:
            yield letter, delta
        for letter in letters:
            out = {letter: torch.empty_like(self._pre[letter])}
            self._write(delta, out)
            yield letter, out.pop(letter)

    def _changes(self, letter: str) -> bool:
        """Return whether a branch's gradient differs from that of the combination."""
        return letter in self._norms or letter in self._plan.factors

    def _rows(self) -> Iterator[slice]:
        batch = self._shape[0]
        limit = CHUNK_ELEMENTS.get(self._grad.device.type)
        step = batch
        if limit is not None:
            step = max(1, limit * batch // max(1, self._shape.numel()))
        for start in range(0, batch, max(1, step)):
            yield slice(start, start + step)

    def _chunk(self, rows: slice) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return standardised and finished values of the branches."""
        hats, values = {}, {}
        for letter, pre in self._pre.items():
            value = pre[rows].to(self._dtype)
            if letter in self._norms:
                hats[letter] = self._norms[letter].hat(value)
                value = self._norms[letter].finish(hats[letter])
            values[letter] = value
        return hats, values

    def _combine(self, values: dict[str, Tensor]) -> Tensor:
        added = [values[letter] for letter in values if letter not in self._plan.factors]
        if not self._plan.factors:
            return added[0] if len(added) == 1 else added[0] + added[1]
        first, second = (values[letter] for letter in self._plan.factors)
        return torch.addcmul(added[0], first, second) if added else first * second

    def _towards(self, letter: str, delta: Tensor, values: dict[str, Tensor]) -> Tensor:
        """Return the gradient of a branch's finished value."""
        factors = self._plan.factors
        if letter not in factors:
            return delta
        if factors[0] == factors[1]:
            return (delta * values[letter]).mul_(2)
        return delta * values[factors.replace(letter, "")]

    def _delta(self) -> Tensor:
        """Return the gradient of the combination, and add up what the batch norms need."""
        outer, plan = self._norms.get(OUTER), self._plan
        inner = [letter for letter in plan.letters if letter in self._norms]
        if outer is None and not plan.has_end:
            if inner:
                self._sum_up(inner, self._grad, None)
            return self._grad
        like = next(iter(self._pre.values()))
        delta = torch.empty_like(like, dtype=self._grad.dtype)
        for rows in self._rows():
            y = self._combine(self._chunk(rows)[1])
            part = self._grad[rows].to(self._dtype)
            if outer is not None:
                y = hat = outer.hat(y)
                if plan.has_end:
                    y = outer.finish(hat)
            if plan.has_end:
                part = plan.end_backward(part, y)
            if outer is not None:
                self.sums[OUTER].add(part, hat)
                if not outer.batch:
                    part = part * outer.scale
            delta[rows] = part
        waits = outer if outer is not None and outer.batch else None
        if inner or waits is not None:
            self._sum_up(inner, delta, waits)
        return delta

    def _sum_up(self, letters: list[str], delta: Tensor, outer: Norm | None) -> None:
        """Pass ``delta`` through ``outer``, in place, and add up for the branches' norms."""
        for rows in self._rows():
            hats, values = self._chunk(rows)
            part = delta[rows].to(self._dtype)
            if outer is not None:
                hat = outer.hat(self._combine(values))
                part = self.sums[OUTER].through(outer, part, hat)
                delta[rows] = part
            for letter in letters:
                self.sums[letter].add(self._towards(letter, part, values), hats[letter])

    def _write(self, delta: Tensor, out: dict[str, Tensor]) -> None:
        """Write the gradient of what branches computed, into ``out``."""
        for rows in self._rows():
            hats, values = self._chunk(rows)
            part = delta[rows].to(self._dtype)
            found = {}
            for letter in out:
                towards = self._towards(letter, part, values)
                if letter in self._norms:
                    norm = self._norms[letter]
                    towards = self.sums[letter].through(norm, towards, hats[letter])
                found[letter] = towards
            for letter, value in found.items():
                out[letter][rows] = value
