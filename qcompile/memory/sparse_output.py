"""Sparse output layers without numbers.

``LSHLinear`` trains in C++, which picks neurons by what the numbers are. For a prediction it gives
way to one that makes the tensors which a step of the real one makes, of the sizes to expect.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from qcompile.config import LSH
from qcompile.errors import TraceError
from qcompile.nn.hashed import Hashed
from qcompile.nn.lsh import LSHLinear, LSHOutput
from qcompile.nn.row_sparse import RowSparse, row_gradient
from qcompile.optim.row_optimizer import RowOptimizer

__all__ = ["INSTEAD", "expected_rows", "stand_in"]

INSTEAD = (
    "Measure instead, which runs the step: memory_profile(..., predict=False, measure=True), or "
    "qcompile memory --measure-only."
)


def expected_rows(config: LSH, neurons: int, examples: int, labels: int) -> int:
    """Return how many distinct neurons a batch is expected to activate.

    As if they were drawn at random, which is the case for the uniform sample and, across
    examples, an upper estimate for candidates.

    Args:
        config: of the layer.
        neurons: N.
        examples: B.
        labels: of an example.
    """
    if config.mode == "full" or config.active >= neurons:
        return neurons
    own = labels if config.mode == "sampled" else max(labels, config.active)
    draws = examples * own + config.negatives
    return round(neurons * -torch.expm1(torch.tensor(-draws / neurons, dtype=torch.float64)).item())


def stand_in(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Let the sparse layers of a copy, and its optimiser, do without numbers.

    Raises:
        TraceError: a layer is of a kind that cannot.
    """
    for name, module in model.named_modules():
        if isinstance(module, LSHLinear):
            vars(module)["forward"] = _Forward(module)
        elif isinstance(module, Hashed | RowSparse):
            raise TraceError(
                f"the prediction cannot follow {name or 'the model'!r}: what "
                f"{type(module).__name__} computes depends on numbers, which a prediction does not "
                f"have. {INSTEAD}"
            )
    if isinstance(optimizer, RowOptimizer):

        def step_rows(parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
            optimizer._state_of(parameter, group)

        optimizer._step_rows = step_rows  # type: ignore[method-assign]


class _Forward:
    """Takes the place of ``LSHLinear.forward``."""

    def __init__(self, layer: LSHLinear) -> None:
        self._layer = layer

    def __call__(self, hidden: Tensor, target: Tensor | None = None) -> Any:
        layer = self._layer
        if target is None or not layer.training:
            return LSHLinear.forward(layer, hidden, target)
        flat = hidden.reshape(-1, layer.in_features).float().contiguous()
        labels = 1 if target.dim() < hidden.dim() else target.shape[-1]
        rows = expected_rows(layer.config, layer.out_features, len(flat), labels)
        output = _ActiveLogProb.apply(flat, layer.weight, layer.bias, rows, layer.sparse_grad)
        output = output.reshape(hidden.shape[:-1])
        return LSHOutput(output, -output.mean())


class _ActiveLogProb(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, rows: int, sparse: bool
    ) -> Tensor:
        ctx.save_for_backward(hidden, weight)
        ctx.parameters, ctx.rows, ctx.sparse = (weight, bias), rows, sparse
        return hidden.new_empty(len(hidden))

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight = ctx.saved_tensors
        bias = ctx.parameters[1]
        rows = torch.zeros(ctx.rows, dtype=torch.int64)
        grad_rows = hidden.new_empty(ctx.rows, hidden.shape[1])
        grad_bias = hidden.new_empty(ctx.rows)
        return (
            torch.empty_like(hidden),
            row_gradient(rows, grad_rows, weight, ctx.sparse),
            None if bias is None else row_gradient(rows, grad_bias, bias, ctx.sparse),
            None,
            None,
        )
