"""What layers share that find their active neurons in hash tables."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

from qcompile.config import LSH
from qcompile.errors import DataError
from qcompile.nn.hash_tables import HashTables
from qcompile.nn.table_report import TableReport
from qcompile.recompute import Recent, recomputing

__all__ = ["Hashed"]


class Hashed(nn.Module):
    """Base of layers with hash tables over the rows of their weight.

    The tables are built from the weights at the first training step and again on the schedule
    N₀·e^{λi} (``config.rehash``, ``config.rehash_decay``), counted in training steps; a call that
    ``torch.utils.checkpoint`` repeats is the step that it was, and does not count again. They are
    never saved: taking a ``state_dict``, copying and pickling make this layer, too, rebuild them
    at its next training step, so that a run that was saved and resumed equals, bit for bit, the
    one that went on.

    Attributes:
        config: as given, without its selector.
        replaces: the first-order layer that this one is instead of.
    """

    replaces: type[nn.Module]
    config: LSH
    _tables: HashTables
    _recent: Recent

    def _init_tables(self, config: LSH, dimension: int, neurons: int) -> None:
        # Selectors belong to the search for the layer; they may be functions, which do not pickle.
        self.config = dataclasses.replace(config, where=None)
        self._tables = HashTables(self.config, dimension, neurons)
        self._recent = Recent()

    @property
    def steps(self) -> int:
        """Training steps so far."""
        return self._tables.steps

    @property
    def rehashes(self) -> int:
        """Times that the schedule has rebuilt the tables."""
        return self._tables.rehashes

    @property
    def draw(self) -> int:
        """Which hash functions of the seed the tables have by now; see ``config.renew``."""
        return self._tables.draw

    def occupancy(self) -> TableReport:
        """Describe the hash tables and what the latest training step found in them.

        Raises:
            DataError: there are no tables yet.
        """
        return self._tables.report()

    def _begin_step(self, hidden: Tensor) -> int:
        """Return the number of the training step that a call with ``hidden`` [..., d] is."""
        if recomputing():
            return int(self._recent.get(hidden, self._tables.steps))
        self._recent.put(hidden, self._tables.steps)
        return self._tables.steps

    def _end_step(self) -> None:
        """Count the training step."""
        if not recomputing():
            self._tables.advance()

    def get_extra_state(self) -> Tensor:
        """Return the place in the re-hash schedule as int64 counts; the tables become due."""
        return self._tables.save()

    def set_extra_state(self, state: Tensor) -> None:
        """Go to a place in the schedule; the tables are rebuilt at the next training step.

        Raises:
            DataError: ``state`` is not what ``get_extra_state`` returns.
        """
        self._tables.load(state)

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        # A plain layer's weights may be loaded: their schedule begins where this layer stands.
        extra = prefix + "_extra_state"
        if extra in missing_keys:
            missing_keys.remove(extra)
        self._tables.invalidate()

    def _check_trainable(
        self, hidden: Tensor, dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.bfloat16)
    ) -> None:
        """Raise DataError unless input and parameters lie where training takes place."""
        name = type(self).__name__
        for what, tensor in (("the input", hidden), *self.named_parameters()):
            if tensor.device.type != "cpu":
                raise DataError(
                    f"{name}: {what} is on {tensor.device}, but training runs on the CPU; "
                    f"move the layer and its input there, or call eval() for the exact result."
                )
            if tensor is not hidden and tensor.dtype not in dtypes:
                raise DataError(
                    f"{name}: {what} has dtype {tensor.dtype}, but training needs "
                    f"{' or '.join(str(t).removeprefix('torch.') for t in dtypes)} parameters; "
                    f"call float() on this layer (its input may keep its type)."
                )
