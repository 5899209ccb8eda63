"""Chooses what quadratic layers keep for the backward pass, so that training fits into a budget."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from qcompile.errors import ConfigurationError, PassError
from qcompile.memory.ledger import CATEGORIES, Moment
from qcompile.memory.predict import Prediction
from qcompile.memory.sizes import format_bytes

__all__ = ["LEVELS", "Choice", "adjustable", "choose_levels"]

LEVELS = (0, 1, 3)
"""Memory levels of a quadratic layer, from what autograd keeps to as little as there is."""

Levels = Mapping[str, int]


@dataclass(frozen=True)
class Choice:
    """Memory levels that fit a budget.

    Args:
        levels: of each layer that has levels, by qualified name.
        budget: bytes.
        peak: predicted bytes at the peak with ``levels``.
        peak_before: predicted bytes at the peak if every layer keeps what autograd keeps.
        operations: of a step with ``levels``.
        operations_before: of a step at level 0.
        predictions: how many steps were predicted.
    """

    levels: dict[str, int]
    budget: int
    peak: int
    peak_before: int
    operations: int
    operations_before: int
    predictions: int

    def summary(self) -> str:
        """Say in one line what was chosen."""
        names = {level: [n for n, at in self.levels.items() if at == level] for level in LEVELS}
        chosen = "; ".join(
            f"level {level}: {', '.join(name or 'the model' for name in names[level])}"
            for level in LEVELS
            if names[level]
        )
        more = self.operations / max(1, self.operations_before) - 1
        return (
            f"memory levels for a budget of {format_bytes(self.budget)}: predicted peak "
            f"{format_bytes(self.peak_before)} → {format_bytes(self.peak)}, operations of a "
            f"training step +{more:.1%}; {chosen}"
        )


def adjustable(model: nn.Module) -> dict[str, nn.Module]:
    """Return the layers and blocks that have memory levels, by qualified name.

    They are modules whose class has a property ``memory`` that can be set. Of nested ones it is
    the outermost, which decides.
    """
    found: dict[str, nn.Module] = {}
    seen: set[nn.Module] = set()
    for name, module in model.named_modules():
        level = getattr(type(module), "memory", None)
        if isinstance(level, property) and level.fset is not None and module not in seen:
            found[name] = module
            seen.update(module.modules())
    return found


def choose_levels(
    model: nn.Module, budget: int, predict: Callable[[nn.Module], Prediction]
) -> Choice:
    """Set the memory levels of a model's layers so that the predicted peak fits, and tell them.

    Starts where every layer keeps what autograd keeps. As long as the peak is above the budget,
    layers go to a level at which they keep less, those first that save most bytes at the peak for
    an extra operation; a new prediction tells how far that went. What turns out not to be needed
    is taken back.

    Args:
        model: the levels of its layers are set; after an error they are as they were.
        budget: bytes.
        predict: predicts a training step of a model.

    Raises:
        ConfigurationError: no layer has levels.
        PassError: the budget cannot be met; the message says what the least is.
    """
    units = adjustable(model)
    if not units:
        raise ConfigurationError(
            "memory='auto': the model has no layer with memory levels; those are quadratic layers "
            "and blocks: give quadratic= as well."
        )
    before: dict[str, Any] = {name: module.memory for name, module in units.items()}
    try:
        return _Search(model, units, budget, predict).run()
    except BaseException:
        _set(units, before)
        raise


def _set(units: Mapping[str, nn.Module], levels: Levels) -> None:
    for name, level in levels.items():
        units[name].memory = level  # type: ignore[assignment]


@dataclass(frozen=True)
class _Trial:
    """One prediction.

    Args:
        peak: bytes.
        moment: of the peak.
        kept: bytes that each layer saves, by its name.
        alive: of these, the bytes that are alive at the peak.
        operations: that each layer takes in a step.
        total: operations of the step.
    """

    peak: int
    moment: Moment
    kept: dict[str, int]
    alive: dict[str, int]
    operations: dict[str, int]
    total: int


@dataclass(frozen=True)
class _Move:
    """One layer to another level: bytes that it saves at the peak, operations that it costs."""

    name: str
    level: int
    gain: float
    cost: float

    @property
    def worth(self) -> float:
        """Bytes for an extra operation."""
        return self.gain / max(self.cost, 1.0)


class _Search:
    def __init__(
        self,
        model: nn.Module,
        units: Mapping[str, nn.Module],
        budget: int,
        predict: Callable[[nn.Module], Prediction],
    ) -> None:
        self._model, self._units, self._budget, self._predict = model, units, budget, predict
        self._count = 0
        self._least: _Trial | None = None

    def run(self) -> Choice:
        levels = dict.fromkeys(self._units, 0)
        first = trial = self._try(levels)
        if trial.peak > self._budget:
            uniform = {level: self._try(dict.fromkeys(levels, level)) for level in LEVELS[1:]}
            uniform[0] = first
            while trial.peak > self._budget:
                moves = self._moves(levels, trial, uniform)
                if not moves:
                    raise PassError(self._refusal())
                levels |= {move.name: move.level for move in moves}
                trial = self._try(levels)
            levels, trial = self._take_back(levels, trial, uniform)
        _set(self._units, levels)
        return Choice(
            levels, self._budget, trial.peak, first.peak, trial.total, first.total, self._count
        )

    def _moves(self, levels: Levels, trial: _Trial, uniform: Mapping[int, _Trial]) -> list[_Move]:
        """Return the moves that should bring the peak below the budget, each layer's best one.

        If none is known to help, every layer goes one level on, since estimates may err.
        """
        possible = [
            _move(name, levels[name], level, trial, uniform)
            for name in levels
            for level in LEVELS
            if level > levels[name]
        ]
        helping = sorted((m for m in possible if m.gain > 0), key=lambda move: -move.worth)
        excess = trial.peak - self._budget
        chosen: dict[str, _Move] = {}
        for move in helping:
            if sum(m.gain for m in chosen.values()) >= excess:
                break
            if move.name not in chosen or move.gain > chosen[move.name].gain:
                chosen[move.name] = move
        if chosen:
            return list(chosen.values())
        return list({m.name: m for m in reversed(possible)}.values())

    def _take_back(
        self, levels: dict[str, int], trial: _Trial, uniform: Mapping[int, _Trial]
    ) -> tuple[dict[str, int], _Trial]:
        """Let layers keep what there is room for after all, the most expensive ones first."""

        def cost(name: str) -> int:
            level = levels[name]
            return uniform[level].operations[name] - uniform[0].operations[name]

        for name in sorted((n for n in levels if levels[n]), key=cost, reverse=True):
            room = self._budget - trial.peak
            if uniform[0].kept[name] - uniform[levels[name]].kept[name] > room and cost(name) > 0:
                wanted = [level for level in LEVELS if 0 < level < levels[name]]
            else:
                wanted = [level for level in LEVELS if level < levels[name]]
            for level in wanted:
                tried = self._try({**levels, name: level})
                if tried.peak <= self._budget:
                    levels, trial = {**levels, name: level}, tried
                    break
        return levels, trial

    def _try(self, levels: Levels) -> _Trial:
        _set(self._units, levels)
        self._count += 1
        trial = _trial(self._predict(self._model), list(self._units))
        if self._least is None or trial.peak < self._least.peak:
            self._least = trial
        return trial

    def _refusal(self) -> str:
        assert self._least is not None  # there was a first trial
        live = dict(zip(CATEGORIES, self._least.moment.live, strict=True))
        parts = ", ".join(f"{format_bytes(size)} {name}" for name, size in live.items() if size)
        return (
            f"memory_budget: {format_bytes(self._budget)} ({self._budget:,} bytes) is too little. "
            f"With the memory levels of its quadratic layers this training step takes at least "
            f"{format_bytes(self._least.peak)} ({self._least.peak:,} bytes: {parts}). Allow that "
            f"much, or take a smaller batch."
        )


def _move(name: str, now: int, level: int, trial: _Trial, uniform: Mapping[int, _Trial]) -> _Move:
    kept, then = uniform[now].kept[name], uniform[level].kept[name]
    share = trial.alive[name] / trial.kept[name] if trial.kept[name] else 0.0
    cost = uniform[level].operations[name] - uniform[now].operations[name]
    return _Move(name, level, (kept - then) * share, cost)


def _trial(prediction: Prediction, units: list[str]) -> _Trial:
    owner = {name: _unit_of(name, units) for name in prediction.saved}
    moment = prediction.peak
    alive = prediction.ledger.alive(moment.event)
    kept, living, operations = (dict.fromkeys(units, 0) for _ in range(3))
    for name, blocks in prediction.saved.items():
        unit = owner[name]
        if unit is not None:
            temporary = [block for block in blocks if not block.stays]
            kept[unit] += sum(block.size for block in temporary)
            living[unit] += sum(block.size for block in temporary if block in alive)
    for name, count in prediction.operations.items():
        unit = _unit_of(name, units)
        if unit is not None:
            operations[unit] += count
    total = sum(prediction.operations.values())
    return _Trial(moment.total, moment, kept, living, operations, total)


def _unit_of(name: str, units: list[str]) -> str | None:
    """Return the layer with levels that a module is or belongs to."""
    return next((u for u in units if not u or name == u or name.startswith(f"{u}.")), None)
