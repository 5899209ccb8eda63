"""What a calibration chose for one layer, and what it measured."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcompile.calibration.recall import CONFIDENCE, Recall
from qcompile.runtime.index import Index


@dataclass(frozen=True)
class Trial:
    """One setting that was judged.

    Args:
        attributes: of ``LinearTopK``.
        recall: recall@k on the queries that judge.
        kept: whether it keeps the promise.
        milliseconds: median of one call, where it was timed.
    """

    attributes: dict[str, int | float | str]
    recall: Recall
    kept: bool
    milliseconds: float | None = None


@dataclass(frozen=True)
class LogError:
    """How far the logarithm of a probability is off where the partition function is estimated.

    Args:
        median: of the absolute error, over queries.
        high: what 99 % of them do not exceed.
        largest: of all of them.
        queries: how many.
    """

    median: float
    high: float
    largest: float
    queries: int

    @classmethod
    def of(cls, estimated: NDArray[np.float32], exact: NDArray[np.float32]) -> LogError:
        """Compare logarithms of the partition function, [n] each; those not finite are left out."""
        errors = np.abs(estimated.astype(np.float64) - exact)[np.isfinite(exact)]
        median, high, largest = np.quantile(errors, (0.5, 0.99, 1)) if len(errors) else (0, 0, 0)
        return cls(float(median), float(high), float(largest), len(errors))


@dataclass
class Choice:
    """The index to serve, and why.

    Args:
        index: the index.
        promised: the recall that was asked for.
        recalls: recall@1, 5, 10 and k of the choice, the last one at k, on queries that had no part
            in the search.
        proven: whether the lower bound of recall@k reaches the promise, not the mean alone.
        milliseconds: median time of one call of the layer alone, by mode: ``exact`` and the
            mode that was chosen.
        reason: why this index.
        trials: every setting that was judged.
        needed: queries without a miss that could prove the promise, if they were independent.
        bytes: of the index, besides weight and bias.
        seed: of the clusters and of the division in halves.
        log_error: of probabilities, on the queries that judge, where they are estimated.
    """

    index: Index
    promised: float
    recalls: list[Recall]
    proven: bool
    milliseconds: dict[str, float]
    reason: str
    trials: list[Trial] = field(default_factory=list)
    needed: int | None = None
    bytes: int = 0
    seed: int = 0
    log_error: LogError | None = None

    @property
    def recall(self) -> Recall:
        """recall@k, what is promised."""
        return self.recalls[-1]

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return {
            "mode": self.index.mode,
            "attributes": dict(self.index.attributes),
            "promised": self.promised,
            "proven": self.proven,
            "confidence": CONFIDENCE,
            "recall": [asdict(recall) for recall in self.recalls],
            "queries_needed": self.needed,
            "milliseconds": self.milliseconds,
            "bytes": self.bytes,
            "seed": self.seed,
            "log_error": self.log_error and asdict(self.log_error),
            "reason": self.reason,
            "trials": [asdict(trial) for trial in self.trials],
        }

    def __str__(self) -> str:
        """Say it on one line."""
        settings = ", ".join(f"{name}={value}" for name, value in self.index.attributes.items())
        found = self.recall
        proof = "" if self.proven else "; the sample is too small to prove it"
        error = self.log_error
        apart = f"; probabilities off by {error.high:.2%} in 99 % of cases" if error else ""
        return (
            f"{self.index.mode}{f' ({settings})' if settings else ''}, {self.reason}: recall@"
            f"{found.at} {found.mean:.4f} ({found.low:.4f} to {found.high:.4f}), promised "
            f"{self.promised}{proof}{apart}"
        )
