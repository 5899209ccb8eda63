"""The fastest index, and the fastest setting of it, that keeps a promised recall.

One half of the queries proposes: along a ladder of probes, how few groups of cells have to be
looked through, and how few rows scored anew, so that the mean recall suffices. The other half
judges: the proposals are tested from the safest to the boldest, each against the lower bound of its
recall, until one fails. Testing in an order that was fixed beforehand and stopping at the first
failure leaves the confidence of a single test to all that passed (Angelopoulos et al., "Learn then
Test", 2021, §3.1). Of those the fastest is taken, or the exact scan where none is faster.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from qcompile.calibration.choice import Choice, LogError, Trial
from qcompile.calibration.queries import Queries
from qcompile.calibration.recall import Recall, queries_needed, recall, shares
from qcompile.calibration.tables import Tables
from qcompile.calibration.trials import Trials
from qcompile.running.latency import interleaved
from qcompile.running.sessions import Session
from qcompile.runtime.index import Index, build_cells, code_cells

MOST_PROPOSING = 4000
"""Queries that propose; the rest of that half is not needed."""

_AT = (1, 5, 10)
_SAFER = 4
"""Rungs that are tested above the first one whose lower bound suffices."""

_TIMED = 1000
"""Calls of each setting, where a second or so allows."""

_CELLS_PER_ROOT = (5, 10)
"""Numbers of cells that are tried, in multiples of √N."""

_CODED_BITS = (4, 2)
"""Bits of the codes that are tried in the place of the packed rows of the best of those."""

_WIDE, _WIDE_LSH = 64, 2048
"""Rows that are scored anew where as many as are worth it are."""

_WIDE_CODED = {4: 1, 2: 8}
"""How many times as many where rows are codes of so many bits."""

_MOST_PROBES_LSH = 64
"""Buckets of each hash table beyond which reading all classes is cheaper."""

_LEAST_PROBES_OF_SUM = 16
"""Cells that are searched where the partition function is estimated: it is not worth much if fewer
of the probable classes are read."""

_VARIANCES = (0.0, 0.25, 0.5, 1.0)
"""Values of ``variance`` that are tried then."""

_WORTH = 0.97
"""An approximate layer has to be faster than the exact scan by this factor."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Task:
    """A layer, its queries and what is wanted.

    Args:
        weight: float32 [N, d].
        bias: float32 [N].
        k: how many answers.
        exact: the index of the exact scan.
        proposing: queries to search with.
        judging: queries to judge by.
        promised: recall@k that has to be kept.
        guard: of ``LinearTopK``.
        seed: of the clusters.
        modes: of ``LinearTopK``, those that may be chosen beside the exact scan.
        tables: hash tables for mode ``lsh``.
        log_sum: whether the layer hands out the logarithm of its partition function, too, which
            mode ``cells`` alone estimates.
    """

    weight: NDArray[np.float32]
    bias: NDArray[np.float32]
    k: int
    exact: Index
    proposing: Queries
    judging: Queries
    promised: float
    guard: float = 0.0
    seed: int = 0
    modes: Sequence[str] = ("cells",)
    tables: Tables | None = None
    log_sum: bool = False


class _Setting(NamedTuple):
    probes: int
    groups: int
    rescore: int

    def of(self, index: Index) -> Index:
        """Return the index, searched so."""
        groups = {} if index.mode == "lsh" else {"groups": self.groups}
        return index.with_attributes(probes=self.probes, rescore=self.rescore, **groups)

    def __str__(self) -> str:
        """Say it for the log."""
        return f"{self.probes} probes, {self.groups} groups, {self.rescore} rescored"


def search(task: Task, folder: Path, say: Say, bar: Callable[[str, float], None]) -> Choice:
    """Find the fastest index of a layer that keeps the promise.

    Args:
        task: what is wanted.
        folder: for files of the search; the caller removes it.
        say: called with a line at every step.
        bar: called with a line and the part that is done.
    """
    return _Search(task, folder, say, bar).run()


class _Search:
    def __init__(
        self, task: Task, folder: Path, say: Say, bar: Callable[[str, float], None]
    ) -> None:
        self.task, self.say, self.bar = task, say, bar
        self.trials = Trials(task.weight, task.bias, task.k, folder, task.log_sum)
        self.exact = self.trials.session(task.exact)
        say("scoring the calibration queries exactly")
        self.proposing = task.proposing.all[:MOST_PROPOSING]
        self.proposing_rows = task.proposing.rows[:MOST_PROPOSING]
        self.judging = task.judging.all
        self.best_proposing = self.trials.answers(self.exact, self.proposing)
        self.best_judging = self.trials.answers(self.exact, self.judging)
        if task.log_sum:
            self.sums_proposing = self.trials.log_sums(self.exact, self.proposing)

    def run(self) -> Choice:
        task = self.task
        if task.promised >= 1:
            return self._exact("only the exact scan promises a recall of 1", [])
        proposals = self._best_proposals()
        if not proposals:
            return self._exact("no setting reached the promise", [])
        judged = self._judged(proposals)
        kept = [(proposal, trial) for proposal, trial in judged if trial.kept]
        if not kept:
            return self._exact(self._why_not(), [trial for _, trial in judged])
        self.say(f"timing {len(kept)} settings")
        sessions = [self.exact, *(self.trials.session(proposal) for proposal, _ in kept)]
        calls = [{"hidden": queries} for queries in self.task.judging.calls]
        exact_time, *times = interleaved(
            *(session.cycled(calls) for session in sessions), most=_TIMED
        )
        timed = dict(zip((id(trial) for _, trial in kept), times, strict=True))
        trials = [Trial(t.attributes, t.recall, t.kept, timed.get(id(t))) for _, t in judged]
        fastest = min(range(len(kept)), key=times.__getitem__)
        proposal, trial = kept[fastest]
        if times[fastest] > _WORTH * exact_time:
            choice = self._exact("nothing approximate was faster", trials)
            choice.milliseconds = {"exact": exact_time}
            return choice
        return Choice(
            index=proposal,
            promised=task.promised,
            recalls=self._recalls(sessions[1 + fastest]),
            proven=trial.recall.bound >= task.promised,
            milliseconds={"exact": exact_time, proposal.mode: times[fastest]},
            reason=f"the fastest of {len(kept)} settings that keep the promise",
            trials=trials,
            needed=queries_needed(task.promised),
            bytes=proposal.nbytes,
            seed=task.seed,
            log_error=self._log_error(sessions[1 + fastest]),
        )

    def _log_error(self, session: Session) -> LogError | None:
        """Compare the estimated partition function with the exact one."""
        if not self.task.log_sum:
            return None
        found, right = (self.trials.log_sums(s, self.judging) for s in (session, self.exact))
        return LogError.of(found, right)

    def _with_variance(self, index: Index) -> Index:
        """Let the estimate of the partition function be off by as little as may be."""

        def error(variance: float) -> float:
            tried = index.with_attributes(variance=variance, probes=_LEAST_PROBES_OF_SUM)
            found = self.trials.log_sums(self.trials.session(tried), self.proposing)
            return LogError.of(found, self.sums_proposing).high

        return index.with_attributes(variance=min(_VARIANCES, key=error))

    def _indexes(self) -> Iterator[Index]:
        """Build the indexes that may be chosen, one after the other."""
        task = self.task
        rows = len(task.weight)
        if "cells" in task.modes:
            for cells in sorted(
                {min(rows, math.ceil(n * math.sqrt(rows))) for n in _CELLS_PER_ROOT}
            ):
                index = build_cells(
                    task.weight,
                    task.bias,
                    cells=cells,
                    seed=task.seed,
                    progress=lambda part: self.bar("dividing the classes into cells", part),
                ).with_attributes(guard=task.guard)
                yield self._with_variance(index) if task.log_sum else index
        if "lsh" in task.modes and task.tables is not None and not task.log_sum:
            self.say("putting the classes into hash tables")
            yield task.tables.build(task.weight, task.exact)

    def _best_proposals(self) -> list[Index]:
        """Return the proposals of that index whose boldest is the fastest.

        No query that judges has a part in it, so one index alone is judged. A sum over all rows
        has no use for codes: their errors add up in it.
        """
        best = self._fastest(self._indexes())
        if not best or best[-1].mode != "cells" or self.task.log_sum:
            return best
        coded = [code_cells(self.task.weight, best[-1], bits) for bits in _CODED_BITS]
        return self._fastest(coded, best)

    def _fastest(self, indexes: Iterable[Index], *found_before: list[Index]) -> list[Index]:
        """Return the proposals of one of the indexes, or some that were found before."""
        found = [*found_before]
        found += [proposals for index in indexes if (proposals := self._proposals(index))]
        if len(found) < 2:
            return found[0] if found else []
        self.say(f"timing {len(found)} indexes")
        sessions = [self.trials.session(proposals[-1]) for proposals in found]
        calls = [{"hidden": queries} for queries in self.task.proposing.calls]
        times = interleaved(*(session.cycled(calls) for session in sessions), most=_TIMED)
        return found[min(range(len(found)), key=times.__getitem__)]

    def _proposals(self, index: Index) -> list[Index]:
        """Return settings of one index, from the safest to the boldest."""
        task = self.task
        hashed = index.mode == "lsh"
        wide = max(_WIDE_LSH if hashed else _WIDE, 8 * task.k)
        most = _MOST_PROBES_LSH if hashed else len(index.arrays["offsets"]) - 1
        all_groups = 1 if hashed else len(index.arrays["group_offsets"]) - 1
        bits = int(index.attributes.get("bits", 8))
        wide *= _WIDE_CODED.get(bits, 1)
        kind = index.mode if bits == 8 else f"{index.mode} of {bits} bits"
        known: dict[_Setting, Recall] = {}

        def at(setting: _Setting) -> Recall:
            if setting not in known:
                session = self.trials.session(setting.of(index))
                found = self.trials.answers(session, self.proposing)
                known[setting] = recall(
                    shares(found, self.best_proposing, task.k), self.proposing_rows, task.k
                )
                self.say(f"{kind}: {setting}: recall {known[setting].mean:.4f}")
            return known[setting]

        def fewest(settings: Sequence[_Setting]) -> Iterator[_Setting]:
            """Yield the first setting that suffices by its mean, then by its lower bound."""
            found = False
            for setting in settings:
                if at(setting).mean < task.promised:
                    continue
                sure = at(setting).bound >= task.promised
                if sure or not found:
                    yield setting
                found = True
                if sure:
                    return

        rungs = list(_rungs(most))
        if task.log_sum:
            rungs = [rung for rung in rungs if rung >= min(most, _LEAST_PROBES_OF_SUM)]
        low, high = 0, len(rungs)
        while low < high:
            middle = (low + high) // 2
            if at(_Setting(rungs[middle], all_groups, wide)).mean >= task.promised:
                high = middle
            else:
                low = middle + 1
        # With a guard, or for a sum over all cells, all groups are looked through.
        every = task.guard > 0 or task.log_sum
        groups = [all_groups] if every else sorted({*_rungs(all_groups), all_groups})
        widths = list(_widths(task.k, wide, 2.0 if hashed else 1.5))
        chosen: dict[_Setting, None] = {}
        safer = 0
        for probes in rungs[low:]:
            widest = _Setting(probes, all_groups, wide)
            best = at(widest)
            safer += best.bound >= task.promised
            # The ladder needs rungs well above the promise: those below just suffice, and if the
            # first that is judged falls short by chance, none of the others is looked at.
            chosen[widest] = None
            for some in fewest([_Setting(probes, count, wide) for count in groups]):
                chosen |= dict.fromkeys(
                    fewest([_Setting(probes, some.groups, width) for width in widths])
                )
            if safer > _SAFER or best.mean == 1.0:
                break
        order = sorted(chosen, key=lambda setting: (-known[setting].mean, *(-n for n in setting)))
        return [setting.of(index) for setting in order]

    def _judged(self, proposals: Sequence[Index]) -> list[tuple[Index, Trial]]:
        """Test settings in order on the other half, until one does not keep the promise."""
        judged = []
        provable = len(self.judging) >= queries_needed(self.task.promised)
        for number, proposal in enumerate(proposals):
            self.bar("judging on inputs not used so far", number / len(proposals))
            (found,) = self._recalls(self.trials.session(proposal), (self.task.k,))
            value = found.bound if provable else found.mean
            kept = value >= self.task.promised
            judged.append((proposal, Trial(dict(proposal.attributes), found, kept)))
            if not kept:
                break
        return judged

    def _recalls(self, session: Session, at: Sequence[int] | None = None) -> list[Recall]:
        k = self.task.k
        places = at or sorted({*(place for place in _AT if place <= k), k})
        found = self.trials.answers(session, self.judging)
        rows = self.task.judging.rows
        return [recall(shares(found, self.best_judging, n), rows, n) for n in places]

    def _exact(self, reason: str, trials: list[Trial]) -> Choice:
        return Choice(
            index=self.task.exact,
            promised=self.task.promised,
            recalls=self._recalls(self.exact),
            proven=True,
            milliseconds={},
            reason=reason,
            trials=trials,
            bytes=self.task.exact.nbytes,
            seed=self.task.seed,
        )

    def _why_not(self) -> str:
        return (
            f"on the {len(self.judging):,} queries kept back, even the safest setting did not "
            f"show the promise; {queries_needed(self.task.promised):,} without a miss would"
        )


def _rungs(most: int) -> Iterator[int]:
    """Yield 1, 2, 3, 4, 6, 8, 12, 16, … up to ``most``."""
    step = 1
    while step <= most:
        yield step
        if step > 1 and step * 3 // 2 <= most:
            yield step * 3 // 2
        step *= 2


def _widths(k: int, widest: int, step: float) -> Iterator[int]:
    """Yield how many rows may be scored anew, k and more, the fewest first."""
    width = k
    while width < widest:
        yield width
        width = max(width + 1, int(width * step))
    yield widest
