"""The memory of a training step: predicted without running it, measured by running it."""

from __future__ import annotations

from typing import Any

from torch import nn

from qcompile.config import LOSSES, OPTIMIZERS
from qcompile.errors import ConfigurationError
from qcompile.memory.budget import Choice, choose_levels
from qcompile.memory.ledger import CATEGORIES, Moment
from qcompile.memory.measure import Source, measure_step
from qcompile.memory.predict import Prediction
from qcompile.memory.predict import predict as predict_step
from qcompile.memory.profile import LayerMemory, Measured, MemoryProfile, Peak, Timeline
from qcompile.memory.sizes import format_bytes, parse_bytes
from qcompile.memory.step import Call, TrainingStep
from qcompile.passes.fx.inputs import Inputs

__all__ = [
    "LOSSES",
    "OPTIMIZERS",
    "Choice",
    "LayerMemory",
    "Measured",
    "MemoryProfile",
    "Peak",
    "Source",
    "Timeline",
    "fit_memory",
    "format_bytes",
    "memory_profile",
    "parse_bytes",
]

_HOW = ("target", "optimizer", "loss", "autocast", "dtype", "batch_size", "device")


def memory_profile(
    model: nn.Module,
    example_inputs: Any,
    *,
    target: Any = None,
    optimizer: Any = "sgd",
    loss: Any = "auto",
    autocast: Any = None,
    dtype: Any = None,
    batch_size: int | None = None,
    device: str = "cpu",
    predict: bool = True,
    measure: bool = False,
    source: Source | None = None,
) -> MemoryProfile:
    """Tell how much memory one training step takes: forward, loss, backward, optimiser step.

    The prediction follows the step with tensors that have sizes and no contents, so that neither
    time nor memory is spent; the measurement takes real steps in a process of its own. Both look
    at a step after the first, when the optimiser has its state.

    Args:
        model: any module; it stays as it is. For a prediction it may be on the meta device.
        example_inputs: a tensor, a tuple of positional arguments or a dict of keyword arguments.
        target: labels: for the loss, or for the sparse output layer of a transformed model.
        optimizer: one of :data:`OPTIMIZERS`, or a function from parameters to an optimiser.
        loss: one of :data:`LOSSES`, or a function of the output (and of the target, if given).
        autocast: type that autocast computes in, such as ``bfloat16``.
        dtype: type that the model and its inputs are cast to.
        batch_size: batch size, by repeating the example inputs; None keeps theirs.
        device: ``cpu`` or ``cuda``.
        predict: whether to predict.
        measure: whether to measure.
        source: what the measuring process loads in place of a copy of ``model``.

    Raises:
        ConfigurationError: an argument is malformed, or nothing is asked for.
        TraceError: the model cannot be followed without numbers.
        PassError: a step fails, or the model cannot be copied or measured.
    """
    if not isinstance(model, nn.Module):
        raise ConfigurationError(
            f"memory_profile takes a torch.nn.Module, got {type(model).__name__}."
        )
    device, call = _device(device), _call(example_inputs, target)
    if not predict and not measure:
        raise ConfigurationError("memory_profile: nothing to do with predict=False, measure=False.")
    step = TrainingStep(optimizer, loss, autocast, dtype)
    prediction = predict_step(model, call, step, device, batch_size) if predict else None
    measured = None
    if measure:
        measured = measure_step(source or model, call.resized(batch_size), step, device)
    return _profile(model, device, step, prediction, measured)


def fit_memory(
    model: nn.Module, memory_budget: str | int, example_inputs: Any, **options: Any
) -> Choice:
    """Set what quadratic layers keep for the backward pass so that training fits into a budget.

    Their levels are chosen for the least extra operations, by predictions alone.

    Args:
        model: has quadratic layers or blocks, whose attribute ``memory`` is set.
        memory_budget: bytes, or text such as ``4GiB`` or ``500MB``, for all that a step takes.
        example_inputs: as of :func:`memory_profile`.
        options: how it is trained, the arguments of :func:`memory_profile`: ``target``,
            ``optimizer``, ``loss``, ``autocast``, ``dtype``, ``batch_size``, ``device``.

    Raises:
        ConfigurationError: an argument is malformed, or no layer has levels.
        PassError: the budget is too little, and the message says what the least is; or a step
            fails. The levels are then as they were.
        TraceError: the model cannot be followed without numbers.
    """
    budget = parse_bytes(memory_budget)
    unknown = set(options) - set(_HOW)
    if unknown:
        raise ConfigurationError(
            f"memory: unknown option {', '.join(sorted(unknown))}; known: {', '.join(_HOW)}."
        )
    call = _call(example_inputs, options.pop("target", None))
    batch_size = options.pop("batch_size", None)
    device = _device(options.pop("device", "cpu"))
    step = TrainingStep(**options)
    return choose_levels(
        model, budget, lambda model: predict_step(model, call, step, device, batch_size)
    )


def _call(example_inputs: Any, target: Any) -> Call:
    inputs = Inputs.of(example_inputs)
    if inputs is None:
        raise ConfigurationError(
            "the memory of a step needs example inputs, whose sizes decide what it takes: a "
            "tensor, a tuple of positional arguments or a dict of keyword arguments."
        )
    return Call(inputs.args, inputs.kwargs, target)


def _device(device: str) -> str:
    if device not in ("cpu", "cuda"):
        raise ConfigurationError(f"memory: device must be 'cpu' or 'cuda', got {device!r}.")
    return device


def _profile(
    model: nn.Module,
    device: str,
    step: TrainingStep,
    prediction: Prediction | None,
    measured: Measured | None,
) -> MemoryProfile:
    name = type(model).__name__
    if prediction is None:
        return MemoryProfile(name, device, step.to_dict(), None, [], 0, None, measured)
    moments = list(prediction.ledger.moments(prediction.start, prediction.end))
    layers, saved = _layers(model, prediction)
    timeline = Timeline(
        [moment.phase for moment in moments],
        [moment.layer for moment in moments],
        [moment.live for moment in moments],
    )
    peak = _peak(prediction.peak)
    return MemoryProfile(name, device, step.to_dict(), peak, layers, saved, timeline, measured)


def _peak(moment: Moment) -> Peak:
    breakdown = dict(zip(CATEGORIES, moment.live, strict=True))
    return Peak(moment.total, breakdown, moment.phase, moment.layer, moment.operation)


def _layers(model: nn.Module, prediction: Prediction) -> tuple[list[LayerMemory], int]:
    """Return a row for each module that has parameters or saves something, and all saved bytes."""
    saved = {
        name: sum(block.size for block in blocks if not block.stays)
        for name, blocks in prediction.saved.items()
    }
    total = sum(saved.values())
    rows = []
    for name, module in [*model.named_modules(), ("(loss)", None)]:
        own = [] if module is None else list(module.parameters(recurse=False))
        if not own and not saved.get(name):
            continue
        bytes_saved = saved.get(name, 0)
        rows.append(
            LayerMemory(
                name,
                "" if module is None else type(module).__name__,
                sum(parameter.numel() for parameter in own),
                sum(parameter.nbytes for parameter in own),
                prediction.shapes.get(name),
                bytes_saved,
                bytes_saved / total if total else 0.0,
            )
        )
    return rows, total
