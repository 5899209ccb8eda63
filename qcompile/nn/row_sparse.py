"""What layers share whose steps touch a few rows of a weight matrix."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import qcompile.nn.sparse_norm  # noqa: F401  so that gradients can be clipped
from qcompile.optim.pending import catch_up, owed

__all__ = ["RowSparse", "late_rows", "row_gradient"]


def row_gradient(rows: Tensor, values: Tensor, parameter: Tensor, sparse: bool) -> Tensor:
    """Return the gradient of a parameter of which some rows were touched.

    Args:
        rows: int64 [R], which rows; distinct and ascending.
        values: floating [R, ...], their gradients.
        parameter: [N, ...].
        sparse: whether to return a COO tensor, else a dense one.

    Returns:
        Of the parameter's shape and type.
    """
    values = values.to(parameter.dtype)
    if not sparse:
        return values.new_zeros(parameter.shape).index_add_(0, rows, values)
    return torch.sparse_coo_tensor(
        rows[None], values, parameter.shape, check_invariants=False, is_coalesced=True
    )


def late_rows(parameter: Tensor | None, row_updates: Any) -> Any:
    """Return the ``_core`` optimiser with which rows catch up that are going to be read, or None.

    Args:
        parameter: trained by an optimiser of :mod:`qcompile.optim` or not, or None.
        row_updates: of its layer, if the optimiser steps within this call's backward pass.
    """
    if parameter is None:
        return None
    return owed(parameter) if row_updates is None else row_updates.bound(parameter)


class RowSparse(nn.Module):
    """Base of layers whose gradients are row-sparse.

    Attributes:
        sparse_grad: whether they are; False makes them dense, for any optimiser.
        row_updates: set by ``step_in_backward`` of an optimiser of :mod:`qcompile.optim`, which
            then updates the parameters within ``backward()``; None otherwise.
    """

    sparse_grad: bool
    row_updates: Any

    def _init_rows(self) -> None:
        self.sparse_grad = True
        self.row_updates = None

    def train(self, mode: bool = True) -> Any:
        """Set the mode; rows that an optimiser of qcompile.optim has left behind catch up first."""
        catch_up(self.parameters())
        return super().train(mode)

    def _save_to_state_dict(self, *args: Any, **kwargs: Any) -> None:
        catch_up(self.parameters())
        super()._save_to_state_dict(*args, **kwargs)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        # What rows have missed belongs to the weights that are about to go.
        catch_up(self.parameters())
        super()._load_from_state_dict(*args, **kwargs)

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        # Rows catch up while weights and state are of one type and on one device.
        catch_up(self.parameters())
        return super()._apply(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        # A copy has parameters of its own, which the optimiser does not train.
        catch_up(self.parameters())
        return {**self.__dict__, "row_updates": None}
