"""What a user may ask of :func:`qcompile.transform`: frozen dataclasses, checked when made."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from qcompile.errors import ConfigurationError

if TYPE_CHECKING:
    from torch import nn

    Selector = str | type[nn.Module] | Callable[[str, nn.Module], bool]

FORMS = ("T1", "T1L", "T2", "T3", "T4", "T1_2", "T2_4", "Quadra")
"""Names of the quadratic neurons, see :mod:`qcompile.nn.quadratic` for their formulas."""

FAMILIES = ("simhash", "wta", "dwta", "doph")
"""Names of the locality-sensitive hash families."""

_CODE_BITS = {"simhash": 1, "wta": 3, "dwta": 3, "doph": 3}
_MOST_TABLES = 1024
_BUCKET_ROWS = 40

POLICIES = ("fifo", "reservoir")
"""What a full bucket does with one more neuron."""

SAMPLINGS = ("top-k", "vanilla", "threshold")
"""Which colliding neurons an example activates."""

MODES = ("lsh", "sampled", "full")
"""Which neurons a training step computes."""

ACCUMULATIONS = ("deterministic", "async")
"""How threads add up gradients."""

INITS = ("auto", "preserve", "kaiming")

NORMS = ("branch", "outer", "both", "none")
"""Where a quadratic block normalises: each branch, their combination, both, or nothing."""

ACTIVATIONS = ("keep", "drop")
"""What becomes of the activation behind a layer that becomes quadratic."""

OPTIMIZERS = (
    *("sgd", "momentum", "adam", "adamw"),
    *("qcompile-sgd", "qcompile-momentum", "qcompile-adam", "qcompile-adamw"),
)
"""Optimisers that the memory of a training step is told for: torch's, and qcompile.optim's."""

LOSSES = ("auto", "cross_entropy", "mean_square", "sum")
"""Losses that the memory of a training step is told for."""

MEMORY_LEVELS = (0, 1, 3)
"""What training keeps for the backward pass, see :mod:`qcompile.nn.quadratic.hybrid`."""


def choose(what: str, value: Any, known: Iterable[str]) -> str:
    """Return ``value`` if it is one of ``known``.

    Raises:
        ConfigurationError: ``value`` is unknown; the message suggests the nearest name.
    """
    names = tuple(known)
    if value in names:
        return str(value)
    lowered = {name.lower(): name for name in names}
    near = difflib.get_close_matches(str(value).lower(), lowered, n=1, cutoff=0.3)
    hint = f" Did you mean {lowered[near[0]]!r}?" if near else ""
    raise ConfigurationError(f"unknown {what} {value!r}.{hint} Known: {', '.join(names)}.")


def canonical_form(name: str) -> str:
    """Return the canonical name of a quadratic form; the papers' ``T1&2`` is ``T1_2``.

    Raises:
        ConfigurationError: no form has this name.
    """
    return choose("quadratic form", str(name).replace("&", "_"), FORMS)


def memory_level(value: Any) -> int:
    """Return ``value`` if it is a level of :data:`MEMORY_LEVELS`.

    Raises:
        ConfigurationError: it is not.
    """
    if isinstance(value, bool) or value not in MEMORY_LEVELS:
        raise ConfigurationError(
            f"memory must be 0 (keep everything), 1 (keep the input and what the branches "
            f"compute) or 3 (keep the input, recompute the rest), got {value!r}."
        )
    return int(value)


def _whole(where: str, **values: Any) -> None:
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int):
            raise ConfigurationError(f"{where}: {name} must be an integer, got {value!r}.")


def _positive(where: str, **values: float) -> None:
    for name, value in values.items():
        if isinstance(value, bool) or not value > 0:
            raise ConfigurationError(f"{where}: {name} must be positive, got {value!r}.")


@dataclass(frozen=True)
class Quadratic:
    """Which layers become quadratic neurons, and how.

    Args:
        form: one of :data:`FORMS` (``T1&2`` and ``T2&4`` are accepted).
        init: ``preserve`` keeps the function that the layer computes, exactly, and is an error
            for forms that cannot; ``kaiming`` starts afresh; ``auto`` preserves where the form
            can and starts afresh where it cannot.
        where: modules to rewrite: globs over qualified names, module types, or predicates
            ``(name, module) -> bool``; one or several. ``None`` means all that are eligible.
        exclude: modules to leave alone; same kinds of selector; wins over ``where``.
        memory_limit: bytes that the weights of one T1 layer may take.
        batch_norm: what becomes of a batch norm that follows: ``none`` leaves it where it is;
            ``outer`` moves it into a :class:`qcompile.nn.QuadraticBlock`; ``branch`` gives each
            branch of the block one; ``both`` does that and normalises their combination, too.
        activation: ``keep``, or ``drop`` to remove the activation that follows.
        memory: what training keeps for the backward pass: 0, 1 or 3.
    """

    form: str = "Quadra"
    init: Literal["auto", "preserve", "kaiming"] = "auto"
    where: Selector | Iterable[Selector] | None = None
    exclude: Selector | Iterable[Selector] | None = None
    memory_limit: int = 2 << 30
    batch_norm: Literal["branch", "outer", "both", "none"] = "none"
    activation: Literal["keep", "drop"] = "keep"
    memory: Literal[0, 1, 3] = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "form", canonical_form(self.form))
        choose("init", self.init, INITS)
        choose("batch_norm", self.batch_norm, NORMS)
        choose("activation", self.activation, ACTIVATIONS)
        memory_level(self.memory)
        _positive("Quadratic", memory_limit=self.memory_limit)


@dataclass(frozen=True)
class LSH:
    """An output layer whose active neurons are picked by locality-sensitive hashing.

    Defaults suit 10⁴ to 10⁶ outputs over 64 to 512 hidden activations.

    Args:
        mode: what training computes for an example: ``lsh``, the labels of the whole batch, the
            neurons that hashing finds for it and a uniform sample; ``sampled``, the labels and
            the sample, no tables; ``full``, all.
        family: ``simhash``, ``wta``, ``dwta`` or ``doph`` (SLIDE, MLSys 2020, section 3).
        tables: L, the number of hash tables.
        hashes: K, the hash codes that make one table's key; ``None`` takes as many as leave
            some forty neurons in a bucket.
        bucket: neurons that one bucket holds.
        policy: ``reservoir`` or ``fifo``, for a bucket that is full.
        sampling: which colliding neurons: those that collide in most tables (``top-k``), tables
            in random order until ``active`` are found (``vanilla``), or those that collide in at
            least ``threshold`` tables (``threshold``); never more than ``active``.
        threshold: see ``sampling``.
        active: neurons that an example may activate, its labels included.
        negatives: uniformly drawn neurons, shared by a batch, which stand for all the rest: the
            logarithm of how many each stands for is added to its logit.
        rehash: N₀, training steps before the first re-hash.
        rehash_decay: λ ≥ 0; re-hash i follows the one before it by N₀·e^{λi} steps.
        incremental: whether a re-hash recomputes the codes of changed rows only.
        spread: training steps over which a re-hash is spread, into a second set of tables that
            then takes the place of the first; 0 re-hashes at once.
        renew: new hash functions are drawn at every so many re-hashes; 0 keeps the first.
        accumulation: ``deterministic`` gives the same bits for any number of threads; ``async``
            is the paper's lock-free accumulation, one example a thread, and is not reproducible.
        seed: fixes hash functions and sampling.
        where: names, globs, types or predicates of output layers or of hidden ones; ``None`` finds
            the output layer.
        min_outputs: smallest layer that is taken for a huge output layer when searching.
    """

    mode: Literal["lsh", "sampled", "full"] = "lsh"
    family: Literal["simhash", "wta", "dwta", "doph"] = "dwta"
    tables: int = 50
    hashes: int | None = None
    bucket: int = 128
    policy: Literal["fifo", "reservoir"] = "reservoir"
    sampling: Literal["top-k", "vanilla", "threshold"] = "top-k"
    threshold: int = 2
    active: int = 64
    negatives: int = 1024
    rehash: int = 50
    rehash_decay: float = 0.1
    incremental: bool = False
    spread: int = 0
    renew: int = 0
    accumulation: Literal["deterministic", "async"] = "deterministic"
    seed: int = 0
    where: Selector | Iterable[Selector] | None = None
    min_outputs: int = field(default=4096)

    def __post_init__(self) -> None:
        choose("hash family", self.family, FAMILIES)
        choose("bucket policy", self.policy, POLICIES)
        choose("mode", self.mode, MODES)
        choose("sampling", self.sampling, SAMPLINGS)
        choose("accumulation", self.accumulation, ACCUMULATIONS)
        whole = (
            *("tables", "bucket", "threshold", "active", "negatives", "rehash"),
            *("spread", "renew", "seed", "min_outputs"),
        )
        _whole(
            "LSH",
            hashes=1 if self.hashes is None else self.hashes,
            **{name: getattr(self, name) for name in whole},
        )
        _positive(
            "LSH",
            tables=self.tables,
            hashes=1 if self.hashes is None else self.hashes,
            bucket=self.bucket,
            threshold=self.threshold,
            active=self.active,
            rehash=self.rehash,
            min_outputs=self.min_outputs,
        )
        most_hashes = 63 // _CODE_BITS[self.family]  # codes of one table are packed into 64 bits
        if (self.hashes or 1) > most_hashes or self.tables > _MOST_TABLES:
            raise ConfigurationError(
                f"LSH: at most {most_hashes} hashes ({self.family}) and {_MOST_TABLES} tables, "
                f"got hashes={self.hashes!r} and tables={self.tables!r}."
            )
        if self.negatives < 0 or self.spread < 0 or self.renew < 0:
            raise ConfigurationError(
                f"LSH: negatives, spread and renew must be ≥ 0, got {self.negatives!r}, "
                f"{self.spread!r} and {self.renew!r}."
            )
        if not 0 <= self.rehash_decay < 10 or not 0 <= self.seed < 2**64:
            raise ConfigurationError(
                f"LSH: rehash_decay must be in [0, 10) and seed in [0, 2^64), got "
                f"{self.rehash_decay!r} and {self.seed!r}."
            )

    def hashes_for(self, neurons: int) -> int:
        """Return K for a layer of so many neurons."""
        if self.hashes is not None:
            return self.hashes
        return max(1, round(math.log2(neurons / _BUCKET_ROWS) / _CODE_BITS[self.family]))
