"""The element-wise half of a block's backward pass: batch norms, products, activation, pooling.

Everything between what the branches compute and the output is a function of one element and of its
channel's constants, or of a few neighbours. So it is recomputed a few examples at a time:
intermediate values stay in the processor's cache and take no memory worth mentioning. A batch norm
in training needs two sums over the batch before it can pass a gradient on; hence several passes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
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


class Affine:
    """What a batch norm does to an element, in constants that meet [batch, N, ...].

    Both standardised and finished values are a product and a sum of what the batch norm takes, as
    in torch's own kernel.
    """

    def __init__(self, norm: Norm, dims: int, dtype: torch.dtype) -> None:
        shape = (1, -1, *[1] * (dims - 2))

        def fit(tensor: Tensor) -> Tensor:
            return tensor.detach().to(dtype).view(shape)

        mean, self.rstd = fit(norm.mean), fit(norm.rstd)
        self.batch = norm.batch
        self.offset = -mean * self.rstd
        self.scale = self.rstd if norm.gamma is None else self.rstd * fit(norm.gamma)
        self.shift = -mean * self.scale
        if norm.beta is not None:
            self.shift = self.shift + fit(norm.beta)

    # Two operations of one constant each: torch does not vectorise one operation of two.

    def hat(self, values: Tensor, out: Tensor) -> Tensor:
        """Standardise."""
        return torch.mul(values, self.rstd, out=out).add_(self.offset)

    def finish(self, values: Tensor, out: Tensor) -> Tensor:
        """Return what the batch norm returns."""
        return torch.mul(values, self.scale, out=out).add_(self.shift)


class Sums:
    """Σ g and Σ g∘x̂ of a batch norm over batch and positions: gradients of offset and scale."""

    def __init__(self, shape: torch.Size, dtype: torch.dtype, device: torch.device) -> None:
        self._over = [0, *range(2, len(shape))]
        self.count = shape.numel() // max(1, shape[1])
        self.plain = torch.zeros(shape[1], dtype=dtype, device=device)
        self.projected = torch.zeros_like(self.plain)
        self._shape = (1, -1, *[1] * (len(shape) - 2))
        self._constants: tuple[Tensor, Tensor] | None = None

    def add(self, grad: Tensor, hat: Tensor, scratch: Tensor) -> None:
        """Count in one chunk."""
        self.plain += grad.sum(self._over)
        self.projected += torch.mul(grad, hat, out=scratch).sum(self._over)

    def through(self, norm: Affine, grad: Tensor, hat: Tensor, out: Tensor) -> Tensor:
        """Return the gradient of what the batch norm took, from that of what it gave.

        All chunks have been counted: the sums no longer change.
        """
        if not norm.batch:
            return torch.mul(grad, norm.scale, out=out)
        if self._constants is None:
            share = -norm.scale / self.count
            self._constants = (
                self.plain.view(self._shape) * share,
                self.projected.view(self._shape) * share,
            )
        plain, projected = self._constants
        return torch.mul(grad, norm.scale, out=out).add_(plain).addcmul_(hat, projected)


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
        self._buffers: dict[str, Tensor] = {}
        self._plan, self._grad, self._pre = plan, grad, pre
        half = grad.dtype in (torch.bfloat16, torch.float16)
        self._dtype = torch.float32 if half else grad.dtype
        dims = len(shape)
        self._norms = {slot: Affine(norm, dims, self._dtype) for slot, norm in norms.items()}
        self.sums = {slot: Sums(shape, self._dtype, grad.device) for slot in norms}

    def run(self, *, overwrite: bool) -> Iterator[dict[str, Tensor]]:
        """Yield letters and gradients of branches, in an order that frees memory early.

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
            self._buffers.clear()
            for letter in passing:
                yield {letter: delta}
            del delta
            yield out
            return
        for letter in passing:
            yield {letter: delta}
        together = [letter for letter in letters if letter in self._plan.factors]
        groups = [[letter] for letter in letters if letter not in together]
        groups += [together] if together else []
        for group in groups:
            out = {letter: torch.empty_like(self._pre[letter]) for letter in group[:-1]}
            ours = delta is not self._grad and delta.dtype == self._pre[group[-1]].dtype
            last = ours and group is groups[-1]
            out[group[-1]] = delta if last else torch.empty_like(self._pre[group[-1]])
            self._write(delta, out)
            self._buffers.clear()
            if last:
                del delta
            yield out

    def _changes(self, letter: str) -> bool:
        """Return whether a branch's gradient differs from that of the combination."""
        return letter in self._norms or letter in self._plan.factors

    def _buffer(self, name: str, rows: slice) -> Tensor:
        """Return memory for one chunk; the same for the next one, so that it stays in the cache."""
        like = next(iter(self._pre.values()))[rows]
        known = self._buffers.get(name)
        if known is None:
            known = self._buffers[name] = torch.empty_like(like, dtype=self._dtype)
        return known[: len(like)]

    def _rows(self) -> Iterator[slice]:
        batch = self._shape[0]
        limit = CHUNK_ELEMENTS.get(self._grad.device.type)
        step = batch
        if limit is not None:
            step = max(1, limit * batch // max(1, self._shape.numel()))
        for start in range(0, batch, max(1, step)):
            yield slice(start, start + step)

    def _chunk(
        self, rows: slice, hats: Iterable[str], values: Iterable[str]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return standardised and finished values of the branches named."""
        standard, finished = {}, {}
        for letter in {*hats, *values}:
            pre = self._pre[letter][rows].to(self._dtype)
            norm = self._norms.get(letter)
            if letter in hats and norm is not None:
                standard[letter] = norm.hat(pre, self._buffer(f"hat {letter}", rows))
            if letter in values:
                out = self._buffer(f"value {letter}", rows)
                finished[letter] = pre if norm is None else norm.finish(pre, out)
        return standard, finished

    def _multipliers(self, letters: Iterable[str]) -> set[str]:
        """Name the branches whose values the gradients of ``letters`` are multiplied by."""
        factors = self._plan.factors
        return {self._other(letter) for letter in letters if letter in factors}

    def _other(self, letter: str) -> str:
        factors = self._plan.factors
        return letter if factors[0] == factors[1] else factors.replace(letter, "")

    def _combine(self, values: dict[str, Tensor], rows: slice) -> Tensor:
        added = [values[x] for x in self._plan.letters if x not in self._plan.factors]
        if not self._plan.factors:
            return added[0] if len(added) == 1 else added[0] + added[1]
        first, second = (values[letter] for letter in self._plan.factors)
        out = self._buffer("combination", rows)
        if not added:
            return torch.mul(first, second, out=out)
        return torch.addcmul(added[0], first, second, out=out)

    def _towards(
        self, letter: str, delta: Tensor, values: dict[str, Tensor], rows: slice
    ) -> Tensor:
        """Return the gradient of a branch's finished value."""
        factors = self._plan.factors
        if letter not in factors:
            return delta
        out = self._buffer(f"towards {letter}", rows)
        towards = torch.mul(delta, values[self._other(letter)], out=out)
        return towards.mul_(2) if factors[0] == factors[1] else towards

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
            y = self._combine(self._chunk(rows, (), plan.letters)[1], rows)
            part = self._grad[rows].to(self._dtype)
            if outer is not None:
                hat = outer.hat(y, self._buffer("hat", rows))
                y = outer.finish(y, self._buffer("value", rows)) if plan.has_end else y
            if plan.has_end:
                part = plan.end_backward(part, y)
            if outer is not None:
                self.sums[OUTER].add(part, hat, self._buffer("scratch", rows))
                if not outer.batch:
                    part = part * outer.scale
            delta[rows] = part
        waits = outer if outer is not None and outer.batch else None
        if inner or waits is not None:
            self._sum_up(inner, delta, waits)
        return delta

    def _sum_up(self, letters: list[str], delta: Tensor, outer: Affine | None) -> None:
        """Pass ``delta`` through ``outer``, in place, and add up for the branches' norms."""
        multipliers = self._plan.letters if outer is not None else self._multipliers(letters)
        for rows in self._rows():
            hats, values = self._chunk(rows, letters, multipliers)
            part = delta[rows].to(self._dtype)
            if outer is not None:
                hat = outer.hat(self._combine(values, rows), self._buffer("hat", rows))
                part = self.sums[OUTER].through(outer, part, hat, self._buffer("value", rows))
                delta[rows] = part
            for letter in letters:
                towards = self._towards(letter, part, values, rows)
                self.sums[letter].add(towards, hats[letter], self._buffer("scratch", rows))

    def _write(self, delta: Tensor, out: dict[str, Tensor]) -> None:
        """Write the gradient of what branches computed, into ``out``."""
        multipliers = self._multipliers(out)
        for rows in self._rows():
            hats, values = self._chunk(rows, out, multipliers)
            part = delta[rows].to(self._dtype)
            found = {}
            for letter in out:
                towards = self._towards(letter, part, values, rows)
                if letter in self._norms:
                    norm, out_of_norm = self._norms[letter], self._buffer(f"from {letter}", rows)
                    towards = self.sums[letter].through(norm, towards, hats[letter], out_of_norm)
                found[letter] = towards
            for letter, value in found.items():
                out[letter][rows] = value
