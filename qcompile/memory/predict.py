"""Predicts what a training step takes, with tensors that have sizes and no contents."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
    UnsupportedOperatorException,
)
from torch.nn.parameter import is_lazy

from qcompile.errors import PassError, QCompileError, TraceError
from qcompile.memory.layers import LayerClock
from qcompile.memory.ledger import (
    BUFFER,
    GRADIENT,
    INPUT,
    OPTIMIZER,
    PARAMETER,
    Block,
    Ledger,
    Moment,
)
from qcompile.memory.sparse_output import INSTEAD, stand_in
from qcompile.memory.step import Call, TrainingStep
from qcompile.memory.tracker import StorageTracker
from qcompile.passes.fx.tracing import locate

__all__ = ["Prediction", "predict"]

_STEPS = 2
"""The optimiser makes its state in the first step; the second is like all others."""


@dataclass(frozen=True)
class Prediction:
    """What a training step is predicted to do.

    Args:
        ledger: every block of memory.
        start: event at which the step begins that is like all others.
        end: event before which it ends.
        saved: blocks that each module is the first to save for the backward pass, by name.
        operations: arithmetic operations of each module, forward and backward, by name.
        shapes: shape of the first tensor that each called module returned, by name.
    """

    ledger: Ledger
    start: int
    end: int
    saved: dict[str, list[Block]]
    operations: dict[str, int]
    shapes: dict[str, tuple[int, ...]]

    @property
    def peak(self) -> Moment:
        """The moment at which most is alive."""
        moments = self.ledger.moments(self.start, self.end)
        return max(moments, key=lambda moment: moment.total)


def predict(
    model: nn.Module, call: Call, step: TrainingStep, device: str, batch: int | None
) -> Prediction:
    """Follow two training steps of a copy of ``model`` without its numbers.

    Args:
        model: any module; it stays as it is. Its parameters may be on the meta device.
        call: what it is called with.
        step: how it is trained.
        device: type of the device to predict for.
        batch: batch size, or None for that of ``call``.

    Raises:
        TraceError: the model's control flow or its shapes depend on numbers, or an operator is
            unknown without them.
        PassError: the model cannot be copied, or raises an error.
    """
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    copied = _fake_copy(model, fake, device, step.cast)
    with fake, _hushed():
        try:
            return _follow(copied, call.map(fake.from_tensor).resized(batch), step, device)
        except QCompileError:
            raise
        except Exception as error:  # a model's forward may raise anything at all
            raise _explained(error, copied) from error


def _follow(model: nn.Module, call: Call, step: TrainingStep, device: str) -> Prediction:
    model, call = model.train(), step.place(call, device)
    optimizer = step.make_optimizer(model, device)
    clock = LayerClock(model)
    tracker = StorageTracker(device, clock)
    stand_in(model, optimizer)
    start = end = 0

    def enter(phase: str) -> None:
        nonlocal end
        tracker.phase = phase
        # An optimiser reads how many steps it took, a number which decides nothing here.
        tracker.skips_values = phase == "optimizer"
        if phase == "optimizer":
            tracker.register(_gradients(model), GRADIENT)
        elif phase == "end":
            end = len(tracker.ledger)

    tracker.register(model.parameters(), PARAMETER)
    tracker.register(model.buffers(), BUFFER)
    tracker.register(call.tensors, INPUT)
    with clock.following(), tracker:
        for _ in range(_STEPS):
            start = len(tracker.ledger)
            tracker.operations.clear()
            step.run(model, call, optimizer, device, enter, tracker.saving)
            state = [v for state in optimizer.state.values() for v in state.values()]
            tracker.register([v for v in state if _on(v, device)], OPTIMIZER)
    saved = _saved(tracker.ledger, start, end)
    return Prediction(tracker.ledger, start, end, saved, tracker.operations, clock.shapes)


def _on(value: Any, device: str) -> bool:
    return isinstance(value, Tensor) and value.device.type == device


def _gradients(model: nn.Module) -> list[Tensor]:
    return [p.grad for p in model.parameters() if p.grad is not None]


def _saved(ledger: Ledger, start: int, end: int) -> dict[str, list[Block]]:
    saved: dict[str, list[Block]] = {}
    for block in ledger.blocks(start, end):
        if block.saver is not None:
            saved.setdefault(block.saver, []).append(block)
    return saved


def _fake_copy(
    model: nn.Module, fake: FakeTensorMode, device: str, dtype: torch.dtype | None
) -> nn.Module:
    """Return a copy without numbers, with the model's hooks, on ``device`` and of ``dtype``."""
    known: dict[int, Any] = {}
    for module in model.modules():
        own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        own += [value for value in vars(module).values() if isinstance(value, Tensor)]
        for tensor in own:
            if is_lazy(tensor):
                raise PassError(
                    f"memory: {type(module).__name__} learns its shape from the first call: call "
                    "the model once on example inputs first."
                )
            if id(tensor) not in known:
                known[id(tensor)] = _fake(tensor, fake, device, dtype)
    try:
        return copy.deepcopy(model, known)
    except Exception as error:
        raise PassError(
            f"memory: {type(model).__name__} cannot be copied ({error}); a prediction needs a "
            "copy without numbers."
        ) from error


def _fake(tensor: Tensor, fake: FakeTensorMode, device: str, dtype: torch.dtype | None) -> Tensor:
    if dtype is None or not tensor.is_floating_point():
        dtype = tensor.dtype
    if not isinstance(tensor, FakeTensor) and (tensor.device.type, tensor.dtype) == (device, dtype):
        return fake.from_tensor(tensor if tensor.is_leaf else tensor.detach())
    with fake:
        values = torch.empty_strided(tensor.shape, tensor.stride(), dtype=dtype, device=device)
        if isinstance(tensor, nn.Parameter):
            return nn.Parameter(values, requires_grad=tensor.requires_grad)
        return values


def _explained(error: Exception, model: nn.Module) -> QCompileError:
    failure = locate("the prediction", error, model)
    values = (DataDependentOutputException, DynamicOutputShapeException)
    no_numbers = (*values, UnsupportedOperatorException)
    if isinstance(error, no_numbers) or "data is not allocated yet" in str(error):
        why = (
            "what follows depends on numbers, which a prediction does not have"
            if isinstance(error, values)
            else "an operator there is unknown without numbers"
        )
        return TraceError(f"{failure}. There {why}. {INSTEAD}")
    return PassError(f"memory: a training step fails: {failure}")


@contextmanager
def _hushed() -> Iterator[None]:
    """Keep torch from printing a trace of operators that fail, since an error will tell."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    before = logger.disabled
    logger.disabled = True
    try:
        yield
    finally:
        logger.disabled = before
