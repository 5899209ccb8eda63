"""The network of extreme classification: sparse features, a few hidden layers, very many labels."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from scipy import sparse
from torch import Tensor, nn

from qcompile.config import LSH, canonical_form
from qcompile.errors import ConfigurationError
from qcompile.nn.lsh import LSHLinear, LSHOutput
from qcompile.nn.quadratic import FORMULAS, QuadraticLinear
from qcompile.nn.quadratic.formulas import Term
from qcompile.nn.sparse_linear import SparseLinear

__all__ = ["ExtremeClassifier", "SparseQuadratic"]

_FIRST_ORDER = 0.1  # standard deviation of fresh first-order outputs
_QUADRATIC = 0.3  # fresh weights of branches, as a share of a dense layer's
STORED = {"fp32": torch.float32, "bf16": torch.bfloat16}


class SparseQuadratic(nn.Module):
    """A layer of quadratic neurons over sparse features; ``docs/quadratic.md`` has the formulas.

    Branches of one kind share one :class:`SparseLinear`, side by side: those of x read the batch
    once, those of x∘x its squared values.

    Args:
        in_features: F.
        out_features: d, neurons.
        form: name of the formula; none with xᵀWx, which needs F² weights a neuron.
        dtype: of the weights, float32 or bfloat16.

    Raises:
        ConfigurationError: the form is unknown or contains xᵀWx.
    """

    def __init__(
        self, in_features: int, out_features: int, form: str, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        self.form = canonical_form(form)
        self.in_features, self.out_features = in_features, out_features
        if self.formula.has_bilinear:
            usable = [name for name, other in FORMULAS.items() if not other.has_bilinear]
            raise ConfigurationError(
                f"{self.form} keeps an n by n matrix per neuron, which {in_features:,} sparse "
                f"features are too many for; choose one of {', '.join(usable)}."
            )
        first, squared = self.letters(Term.FIRST_ORDER), self.letters(Term.SQUARED_INPUT)
        # A layer without its kind of branch is left out, not kept empty.
        self.linear = (
            SparseLinear(in_features, out_features * len(first), dtype=dtype) if first else None
        )
        self.squared = (
            SparseLinear(in_features, out_features * len(squared), dtype=dtype) if squared else None
        )

    @property
    def formula(self) -> Any:
        """What this layer computes."""
        return FORMULAS[self.form]

    def letters(self, term: Term) -> str:
        """Return the branches of one kind, in the order in which they lie side by side."""
        return "".join(x for x, branch in self.formula.branches.items() if branch.term is term)

    def forward(self, features: sparse.csr_matrix) -> Tensor:
        """Return float32 [B, d] for scipy CSR [B, F] that names no feature twice in a row."""
        linear = None if self.linear is None else self.linear(features)
        squared = None if self.squared is None else self.squared(_squared(features))
        return self.combine(linear, squared)

    def combine(self, linear: Tensor | None, squared: Tensor | None) -> Tensor:
        """Evaluate the formula on the branches [B, branches · d] of x and of x∘x."""
        values: dict[str, Tensor] = {}
        for term, together in ((Term.FIRST_ORDER, linear), (Term.SQUARED_INPUT, squared)):
            if together is not None:
                letters = self.letters(term)
                values.update(zip(letters, together.chunk(len(letters), dim=-1), strict=True))
        result: Tensor = self.formula.combine(values)
        return result


class ExtremeClassifier(nn.Module):
    """Sparse features → hidden layers with ReLU → an output layer of very many labels.

    Args:
        num_features: F.
        num_labels: N.
        hidden: widths of the hidden layers.
        quadratic: form of quadratic neuron of every hidden layer; ``None`` for first-order ones.
        sparse_output: configuration of the output layer.
        storage: ``fp32`` or ``bf16``, of the first and the output layer's weights.
        output: takes the output layer's place, where it is made elsewhere (a sharded one).

    Attributes:
        input: :class:`SparseLinear` or :class:`SparseQuadratic`.
        middle: the hidden layers after the first, each behind a ReLU.
        output: the output layer.

    Raises:
        ConfigurationError: see :class:`SparseQuadratic`.
    """

    def __init__(
        self,
        num_features: int,
        num_labels: int,
        hidden: Sequence[int] = (128,),
        quadratic: str | None = None,
        sparse_output: LSH | None = None,
        storage: str = "fp32",
        output: LSHLinear | None = None,
    ) -> None:
        super().__init__()
        dtype = STORED[storage]
        self.num_features, self.num_labels = num_features, num_labels
        self.input: nn.Module = (
            SparseLinear(num_features, hidden[0], dtype=dtype)
            if quadratic is None
            else SparseQuadratic(num_features, hidden[0], quadratic, dtype)
        )
        layers: list[nn.Module] = []
        for inputs, outputs in itertools.pairwise(hidden):
            layers += [nn.ReLU(), _layer(inputs, outputs, quadratic)]
        self.middle = nn.Sequential(*layers, nn.ReLU())
        self.output = output or LSHLinear(
            hidden[-1], num_labels, config=replace(sparse_output or LSH(), where=None), dtype=dtype
        )

    def encode(self, features: sparse.csr_matrix) -> Tensor:
        """Return the last hidden activations, float32 [B, hidden[-1]], for scipy CSR [B, F]."""
        hidden: Tensor = self.middle(self.input(features))
        return hidden

    def forward(
        self, features: sparse.csr_matrix, labels: Tensor | None = None
    ) -> Tensor | LSHOutput:
        """Return all scores [B, N], or with labels int64 [B, T] the output layer's loss."""
        result: Tensor | LSHOutput = self.output(self.encode(features), labels)
        return result

    @torch.no_grad()
    def draw(self, generator: torch.Generator, square: float, fourth: float) -> None:
        """Draw the first layer so that its outputs have a scale that suits what follows.

        The variance of a weighted sum of sparse features depends on their values alone: it is that
        of a weight times the mean of Σx² (for branches of x∘x, of Σx⁴). They begin
        smaller than in a dense layer, since what a rare feature's weights hold before they have
        learnt anything is noise in all answers: on codespell, first-order neurons of a standard
        deviation of 0.1, 0.3 and 1 end at P@1 .900, .893 and .857, Quadra at 0.3 and 1 times its
        usual weights at .872 and .854.

        Args:
            generator: of the random numbers.
            square: mean over examples of Σx².
            fourth: mean over examples of Σx⁴.
        """
        if isinstance(self.input, SparseLinear):
            _normal(self.input, [_scaled(_FIRST_ORDER, square)], generator)
            return
        layer = self.input
        assert isinstance(layer, SparseQuadratic)
        gains = {
            letter: _QUADRATIC * branch.gain for letter, branch in layer.formula.branches.items()
        }
        if layer.linear is not None:
            letters = layer.letters(Term.FIRST_ORDER)
            _normal(layer.linear, [_scaled(gains[x], square) for x in letters], generator)
        if layer.squared is not None:
            # Their gains are for E[x⁴] = 3, a normal's; Σx⁴ is measured here instead.
            letters = layer.letters(Term.SQUARED_INPUT)
            scales = [_scaled(3**0.5 * gains[x], fourth) for x in letters]
            _normal(layer.squared, scales, generator)


def _layer(inputs: int, outputs: int, quadratic: str | None) -> nn.Module:
    if quadratic is None:
        return nn.Linear(inputs, outputs)
    return QuadraticLinear(inputs, outputs, form=quadratic)


def _squared(features: sparse.csr_matrix) -> sparse.csr_matrix:
    parts = (features.data * features.data, features.indices, features.indptr)
    return sparse.csr_matrix(parts, shape=features.shape)


def _scaled(gain: float, power: float) -> float:
    return gain * power**-0.5 if power > 0 else gain


def _normal(layer: SparseLinear, scales: list[float], generator: torch.Generator) -> None:
    """Draw columns side by side, one standard deviation for each group of equal width."""
    for part, scale in zip(layer.weight.chunk(len(scales), dim=1), scales, strict=True):
        # In stretches, since a bfloat16 part is drawn in float32.
        for rows in part.split(1 << 16):
            rows.copy_(torch.randn(rows.shape, generator=generator) * scale)
