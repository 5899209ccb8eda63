"""What the linear layers share that compute few of their neurons."""

from __future__ import annotations

from typing import Any, Self

from torch import nn

from qcompile.config import LSH
from qcompile.nn.hashed import Hashed
from qcompile.nn.row_sparse import RowSparse

__all__ = ["HashedLinear"]


class HashedLinear(Hashed, RowSparse):
    """Base: the parameters of a ``torch.nn.Linear`` with hash tables over its neurons.

    Args:
        in_features: d.
        out_features: the number of neurons.
        bias: whether neurons have a bias.
        config: hash family, tables and sampling.
        device: of the parameters.
        dtype: of the parameters.

    Attributes:
        weight: Parameter [neurons, d].
        bias: Parameter [neurons] or None.
    """

    replaces = nn.Linear
    bias: nn.Parameter | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        config: LSH | None = None,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        linear = nn.Linear(in_features, out_features, bias, device=device, dtype=dtype)
        self._adopt(linear, config or LSH())

    @classmethod
    def from_linear(cls, linear: nn.Linear, config: LSH | None = None) -> Self:
        """Make a layer of ``linear``'s Parameter objects, in the same training mode."""
        layer = cls.__new__(cls)
        nn.Module.__init__(layer)
        layer._adopt(linear, config or LSH())
        return layer.train(linear.training)

    def _adopt(self, linear: nn.Linear, config: LSH) -> None:
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self._init_rows()
        self._init_tables(config, self.in_features, self.out_features)
        self.weight = linear.weight
        self.register_parameter("bias", linear.bias)

    def reset_parameters(self) -> None:
        """Draw weight and bias afresh, as ``torch.nn.Linear`` does."""
        nn.Linear.reset_parameters(self)  # type: ignore[arg-type]
        self._tables.invalidate()
