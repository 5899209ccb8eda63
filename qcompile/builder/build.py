"""``autobuild``: from a first-order network to a quadratic one whose layers all pay."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qcompile.builder import saving
from qcompile.builder.learning import Data, Judge, Loss, Metric, accuracy, cross_entropy, train
from qcompile.builder.network import edit, importance, possible_edits, size
from qcompile.builder.plan import BuildConfig
from qcompile.builder.result import Action, BuildResult, Step
from qcompile.builder.saving import Progress
from qcompile.errors import ConfigurationError, DataError, TrainingError
from qcompile.rewrite import transform

__all__ = ["autobuild"]

Say = Callable[[str, float | None], None]


def autobuild(
    model: nn.Module,
    data: Data,
    metric: str | Metric = "accuracy",
    budget: BuildConfig | None = None,
    *,
    loss: Loss = cross_entropy,
    folder: str | Path | None = None,
    progress: Say | None = None,
) -> BuildResult:
    """Replace a network's layers by quadratic ones, and take out those that do not pay.

    After QuadraLib's auto-builder (Xu et al., MLSys 2022, section 4.4):

    1. The network as given is trained for reference.
    2. All layers that can be are replaced (:func:`qcompile.transform`) and the network is trained.
    3. Each quadratic layer in turn is masked with zeros; RI = P_M · P_W / δ_A ranks them.
    4. From the highest RI on, a layer is removed, where its output has the shape of its input, or
       else reverted to the first-order neuron that it contains; the network is tuned. The step
       stays if the metric is within ``tolerance`` of that of the control: the network of 2, tuned
       as often. This ends when the budget is met, or with the last layer.
    5. The network is trained once more, and the network as given as long as it was in all.

    The same arguments give the same result, also when a search is stopped and goes on.

    Args:
        model: a first-order network that maps [B, …] to outputs; it stays as it is.
        data: training and validation data, torch datasets of (input, target).
        metric: ``accuracy``, or a function of all outputs and all targets; higher is better.
        budget: how small the network shall become, and how it is trained.
        loss: of outputs and targets.
        folder: where the search is kept, so that it can go on; nowhere without.
        progress: called with a line and the part that is done, or None.

    Returns:
        The network and all steps.

    Raises:
        ConfigurationError: an argument is out of range.
        DataError: data are empty.
        PassError: no layer can be replaced.
        TrainingError: the replaced network diverges; its layer is named, and what was reached
            before is in ``folder``.
        CheckpointError: ``folder`` holds another search, or cannot be read or written.
    """
    if metric != "accuracy" and not callable(metric):
        raise ConfigurationError(
            f"autobuild: metric is {metric!r}, expected 'accuracy' or a function of outputs and "
            "targets."
        )
    judged: Metric = metric if callable(metric) else accuracy
    config = budget or BuildConfig()
    place = None if folder is None else Path(folder)
    return _Search(model, data, judged, config, loss, place, progress or _silent).run()


def _silent(line: str, part: float | None) -> None:
    pass


class _Search:
    def __init__(
        self,
        model: nn.Module,
        data: Data,
        metric: Metric,
        config: BuildConfig,
        loss: Loss,
        folder: Path | None,
        say: Say,
    ) -> None:
        self.given = copy.deepcopy(model)
        self.training, validation = data
        self.judge = Judge(validation, metric)
        self.config, self.loss, self.folder, self.say = config, loss, folder, say
        self.example = _example(self.training)
        self.known = saving.describe(self.given)
        self.done = Progress()

    def run(self) -> BuildResult:
        if self.folder is not None:
            self.done = saving.load(self.folder, self.config, self.known) or Progress()
        self.model = self._replaced()
        if not self.done.steps:
            self._learn_first_order()
        if len(self.done.steps) > 1:
            assert self.folder is not None
            self.control = copy.deepcopy(self.model)
            for action, name in self.done.edits:
                self.model = edit(self.model, action, name)
            saving.load_weights(self.folder, self.done, self._networks())
        else:
            self._learn(self.model, self.config.epochs, "replaced network")
            self.control = copy.deepcopy(self.model)
            self._keep("replace")
        if not self.done.importance:
            self.done.importance = importance(
                self.model,
                self.judge,
                self.judge(self.model),
                self.example,
                lambda name: self.say(f"masking {name}", None),
            )
            self._save()
        if not any(step.action == "tune" for step in self.done.steps):
            self._take_out()
            self._learn(self.model, self.config.epochs, "final network")
            self._keep("tune")
        if self.done.steps[-1].action == "tune":
            self._learn_first_order_as_long()
        return BuildResult(self.model.eval(), self.done.steps, self.done.importance)

    def _learn_first_order(self) -> None:
        """Train the network as given, for reference alone."""
        model = copy.deepcopy(self.given)
        self._learn(model, self.config.epochs, "first-order network")
        self._compare("first-order", model, "as given")

    def _learn_first_order_as_long(self) -> None:
        """Train the network as given in as many stages as the result, for reference alone."""
        model = copy.deepcopy(self.given)
        tuned = [self.config.tune_epochs] * len(self.done.edits)
        for epochs in (self.config.epochs, *tuned, self.config.epochs):
            self._learn(model, epochs, "first-order network, as long")
        self._compare("first-order", model, "as given, trained as long as the result")
        self._save()

    def _compare(self, action: Action, model: nn.Module, note: str) -> float:
        """Note a network that others are compared with, and return its metric."""
        found = self.judge(model)
        self.done.steps.append(Step(action, "", *size(model, self.example), found, False, note))
        return found

    def _replaced(self) -> nn.Module:
        with torch.random.fork_rng([]):
            torch.manual_seed(self.config.seed)
            return transform(self.given, quadratic=self.config.quadratic, strict=True)

    def _take_out(self) -> None:
        """Try to remove or revert layers, the least useful first, until the budget is met."""
        for each in self.done.importance:
            for action in possible_edits(self.model, self.example).get(each.layer, []):
                if self._fits():
                    return
                if (action, each.layer) in self.done.tried:
                    continue
                if self._try(action, each.layer):
                    break

    def _try(self, action: str, name: str) -> bool:
        """Edit, tune and judge; go back where it does not pay."""
        reference = self._reference()
        candidate = edit(copy.deepcopy(self.model), action, name)
        self.done.tried.append((action, name))
        label: Action = "remove" if action == "remove" else "revert"
        note = ""
        try:
            self._learn(candidate, self.config.tune_epochs, f"{action} {name}")
            found = self.judge(candidate)
            if found < reference - self.config.tolerance:
                note = f"more than {self.config.tolerance:g} below {reference:.4f}"
        except TrainingError as error:
            found, note = float("nan"), f"diverged: {error}"
        step = Step(label, name, *size(candidate, self.example), found, not note, note)
        self.done.steps.append(step)
        if not note:
            self.model = candidate
            self.done.edits.append((action, name))
        self._save()
        return not note

    def _reference(self) -> float:
        """Return the metric of the replaced network, tuned as often as the next candidate."""
        references = [s.metric for s in self.done.steps if s.action in ("replace", "control")]
        while self.config.tune_epochs and len(references) < len(self.done.edits) + 2:
            self._learn(self.control, self.config.tune_epochs, "control")
            note = "all layers replaced, trained as long"
            references.append(self._compare("control", self.control, note))
            self._save()
        return references[-1]

    def _fits(self) -> bool:
        """Whether the budget is met; never without one."""
        wanted = (self.config.parameters, self.config.flops)
        if wanted == (None, None):
            return False
        first = self.done.steps[0]
        have = size(self.model, self.example)
        for most, now, before in zip(wanted, have, (first.parameters, first.flops), strict=True):
            if most is not None and now > (most * before if most <= 1 else most):
                return False
        return True

    def _learn(self, model: nn.Module, epochs: int, what: str) -> None:
        self.done.stage += 1
        train(
            model,
            self.training,
            epochs,
            self.loss,
            self.config,
            self.done.stage,
            lambda step, steps, value: self.say(f"{what}: loss {value:.4f}", step / steps),
        )

    def _keep(self, action: Action) -> None:
        found = self.judge(self.model)
        self.done.steps.append(Step(action, "", *size(self.model, self.example), found, True))
        self._save()

    def _networks(self) -> nn.ModuleDict:
        """Return what training changes."""
        return nn.ModuleDict({"network": self.model, "control": self.control})

    def _save(self) -> None:
        if self.folder is not None:
            saving.save(self.folder, self.done, self._networks(), self.config, self.known)


def _example(data: Any) -> Tensor:
    """Return two inputs of a data set."""
    try:
        count = min(2, len(data))
        inputs = [data[i][0] for i in range(count)]
    except (TypeError, IndexError, KeyError) as error:
        raise DataError(
            f"autobuild: training data must be a torch dataset of (input, target): {error}"
        ) from error
    if not inputs:
        raise DataError("autobuild: the training data are empty.")
    return torch.stack([torch.as_tensor(each) for each in inputs])
