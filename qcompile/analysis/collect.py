"""Runs a model over batches and looks at what its layers return."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from qcompile.analysis.result import Analysis, LayerReport, Maps
from qcompile.analysis.tally import Tally
from qcompile.analysis.terms import FIRST_ORDER, QUADRATIC, term_values
from qcompile.errors import ConfigurationError, DataError
from qcompile.nn.quadratic import QuadraticBlock, QuadraticLayer

__all__ = ["analyze"]

_CHANNELS_FIRST = (nn.Conv1d, nn.BatchNorm1d, nn.InstanceNorm1d, nn.MaxPool1d, nn.AvgPool1d)
_QUADRATIC = (QuadraticLayer, QuadraticBlock)
_IMAGES = (4, 5)  # dimensions of batches of images and volumes, channels second

Loss = Callable[[Any, Any], Tensor]


def analyze(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    loss: Loss | None = None,
    limit: float = 1e4,
    maps: int = 4,
) -> Analysis:
    """Look at activations, terms, weights and, with a loss, gradients of every layer.

    The model runs as it is, in its mode and on its device, but for buffers: running statistics end
    as they began. Gradients that parameters hold stay theirs.

    Args:
        model: any module.
        batches: inputs: a tensor, a tuple of positional inputs or a mapping of keyword inputs;
            with ``loss`` a pair (inputs, target).
        loss: called with the model's output and a target; its gradients are looked at.
        limit: absolute output beyond which a unit counts as exploding.
        maps: quadratic convolutions, the first ones, whose maps are kept for one example.

    Raises:
        ConfigurationError: a number is out of range.
        DataError: there is no batch, or one is not a pair where ``loss`` is given.
    """
    if not limit > 0 or maps < 0:
        raise ConfigurationError(
            f"analyze: limit must be positive and maps at least 0, got {limit!r} and {maps!r}."
        )
    within = {id(m.layer) for m in model.modules() if isinstance(m, QuadraticBlock)}
    watches = {
        name: _Watch(name, module, limit)
        for name, module in model.named_modules()
        if isinstance(module, _QUADRATIC) or not any(True for _ in module.children())
        if id(module) not in within  # a block calls its branches one by one
    }
    of_parameter = {name: Tally() for name, p in model.named_parameters() if p.is_floating_point()}
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    held = {name: p.grad for name, p in model.named_parameters()}
    mapped = [w for w in watches.values() if w.quadratic and w.convolves][:maps]
    count = 0
    try:
        with ExitStack() as hooks:
            for watch in watches.values():
                hooks.callback(watch.module.register_forward_hook(watch).remove)
            for batch in batches:
                for watch in mapped:
                    watch.wants_maps = count == 0
                inputs, target = _parted(batch, loss)
                _run(model, inputs, target, loss, of_parameter)
                count += 1
    finally:
        for name, parameter in model.named_parameters():
            parameter.grad = held[name]
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                buffer.copy_(buffers[name])
    if count == 0:
        raise DataError("analyze: there is no batch to run the model on.")
    gradients = {name: tally.result() for name, tally in of_parameter.items()} if loss else {}
    layers = [watch.report(gradients) for watch in watches.values() if watch.calls]
    found = [watch.maps for watch in mapped if watch.maps is not None]
    return Analysis(type(model).__name__, count, limit, layers, found)


def _parted(batch: Any, loss: Loss | None) -> tuple[Any, Any]:
    if loss is None:
        return batch, None
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        raise DataError(
            f"analyze: with a loss each batch is a pair (inputs, target), got "
            f"{type(batch).__name__}."
        )
    return batch[0], batch[1]


def _run(
    model: nn.Module, inputs: Any, target: Any, loss: Loss | None, gradients: dict[str, Tally]
) -> None:
    with torch.set_grad_enabled(loss is not None):
        if isinstance(inputs, dict):
            output = model(**inputs)
        elif isinstance(inputs, tuple | list):
            output = model(*inputs)
        else:
            output = model(inputs)
    if loss is None:
        return
    for parameter in model.parameters():
        parameter.grad = None
    loss(output, target).backward()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None and name in gradients:
            gradient = parameter.grad
            gradients[name].add(gradient.coalesce().values() if gradient.is_sparse else gradient)


class _Watch:
    """A forward hook that counts what one layer returns."""

    def __init__(self, name: str, module: nn.Module, limit: float) -> None:
        self.name, self.module, self.limit = name, module, limit
        self.quadratic = isinstance(module, _QUADRATIC)
        self.layer = module.layer if isinstance(module, QuadraticBlock) else module
        self.convolves = hasattr(self.layer, "geometry")
        self.calls = 0
        self.wants_maps = False
        self.maps: Maps | None = None
        self._output = Tally()
        self._terms = {QUADRATIC: Tally(), FIRST_ORDER: Tally()} if self.quadratic else {}
        self._squares = dict.fromkeys((QUADRATIC, FIRST_ORDER), 0.0)
        self._least: Tensor | None = None
        self._greatest: Tensor | None = None

    @torch.no_grad()
    def __call__(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if isinstance(output, tuple | list) and output:
            output = output[0]  # recurrent layers and attention return more than that
        if not isinstance(output, Tensor) or not output.is_floating_point() or not output.numel():
            return
        self.calls += 1
        self._output.add(output)
        self._look_at_units(output)
        if isinstance(module, _QUADRATIC):
            self._look_at_terms(module, inputs[0], output)

    def _look_at_units(self, output: Tensor) -> None:
        axis = _unit_axis(self.module, output)
        units = output.movedim(axis, -1).reshape(-1, output.shape[axis])
        # NaN compares with nothing; as infinity it counts as exploding.
        units = units.float().nan_to_num(nan=math.inf, posinf=math.inf, neginf=-math.inf)
        least, greatest = units.amin(0).cpu(), units.amax(0).cpu()
        if self._least is None or self._greatest is None or self._least.shape != least.shape:
            self._least, self._greatest = least, greatest
        else:
            self._least = torch.minimum(self._least, least)
            self._greatest = torch.maximum(self._greatest, greatest)

    def _look_at_terms(
        self, layer: QuadraticLayer | QuadraticBlock, x: Tensor, output: Tensor
    ) -> None:
        found = term_values(layer, x)
        for name, value in found.items():
            self._terms[name].add(value)
            self._squares[name] += float(value.double().square().sum())
        if self.wants_maps and self.maps is None and output.dim() == 4:
            pictures = {name: _map(value) for name, value in found.items()}
            self.maps = Maps(self.name, x[0].float().mean(0).tolist(), _map(output), pictures)

    def report(self, gradients: dict[str, Any]) -> LayerReport:
        """Return what was seen."""
        inner = "layer." if isinstance(self.module, QuadraticBlock) else ""
        own = {inner + n: p for n, p in self.layer.named_parameters(recurse=False)}
        prefix = f"{self.name}." if self.name else ""
        weights = {}
        for name, parameter in own.items():
            tally = Tally()
            tally.add(parameter)
            weights[name] = tally.result()
        least, greatest = self._least, self._greatest
        assert least is not None
        assert greatest is not None
        first_order = self._squares[FIRST_ORDER]
        has_both = self.quadratic and self._terms[FIRST_ORDER].result().count > 0
        share = None
        if has_both:
            share = math.sqrt(self._squares[QUADRATIC] / first_order) if first_order else math.inf
        return LayerReport(
            name=self.name,
            kind=type(self.module).__name__,
            form=getattr(self.module, "form", None) if self.quadratic else None,
            output=self._output.result(),
            terms={n: t.result() for n, t in self._terms.items() if t.result().count},
            quadratic_share=share,
            weights=weights,
            gradients={n: gradients[prefix + n] for n in own if prefix + n in gradients},
            units=len(least),
            dead=int((least == greatest).sum()),
            exploding=int((torch.maximum(-least, greatest) > self.limit).sum()),
        )


def _unit_axis(module: nn.Module, output: Tensor) -> int:
    """Return the axis of an output along which its units lie."""
    channels = output.dim() in _IMAGES or (
        output.dim() == 3
        and (isinstance(module, _CHANNELS_FIRST) or getattr(module, "dims", 0) == 1)
    )
    return 1 if channels else -1


def _map(value: Tensor) -> list[list[float]]:
    """Return the mean absolute value over the channels of the first example [H, W]."""
    found: list[list[float]] = value[0].detach().float().abs().mean(0).cpu().tolist()
    return found
