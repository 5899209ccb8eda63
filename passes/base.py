"""What every pass is: one rewrite, called on a model, answering with the model and a report.

A pass over torch modules and a pass over ONNX models share nothing but this file.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from qcompile.errors import PassError
from qcompile.report import Report

__all__ = ["Pass", "PassManager", "PassResult"]

Model = TypeVar("Model")


@dataclass(frozen=True)
class PassResult(Generic[Model]):
    """What a pass returns.

    Args:
        model: the model, rewritten in place or replaced.
        modified: whether the pass changed anything; a second run must answer ``False``.
        report: what was rewritten, what was left alone and why.
    """

    model: Model
    modified: bool
    report: Report


class Pass(ABC, Generic[Model]):
    """One rewrite.

    A subclass implements :meth:`call`, and :meth:`requires` or :meth:`ensures` where it depends
    on a property of the model or promises one. Calling the pass runs all three.
    """

    @property
    def name(self) -> str:
        """The name that reports and errors use."""
        return type(self).__name__

    def requires(self, model: Model) -> None:
        """Raise :class:`PassError` if ``model`` is not fit for this pass."""

    @abstractmethod
    def call(self, model: Model) -> PassResult[Model]:
        """Rewrite ``model`` and say what was done."""

    def ensures(self, result: PassResult[Model]) -> None:
        """Raise :class:`PassError` if the rewritten model lacks what this pass promises."""

    def __call__(self, model: Model) -> PassResult[Model]:
        """Check, rewrite, check again.

        Raises:
            PassError: the model is not fit for the pass, or the pass broke its own promise.
        """
        self.requires(model)
        result = self.call(model)
        if not isinstance(result, PassResult):
            raise PassError(
                f"{self.name}.call returned {type(result).__name__}; the pass must return a "
                f"PassResult."
            )
        if result.modified != result.report.modified:
            raise PassError(
                f"{self.name} says modified={result.modified} but reports "
                f"{len(result.report.rewritten)} rewritten; the pass must report each change."
            )
        self.ensures(result)
        return result


class PassManager(Pass[Model]):
    """Runs passes in order; being a pass itself, it nests.

    Args:
        steps: the passes.
    """

    def __init__(self, steps: Sequence[Pass[Model]]) -> None:
        self.steps = tuple(steps)

    def call(self, model: Model) -> PassResult[Model]:
        """Run every step on what the step before it returned, and join their reports."""
        report = Report()
        modified = False
        for step in self.steps:
            result = step(model)
            model = result.model
            modified |= result.modified
            report.extend(result.report)
        return PassResult(model, modified, report)
