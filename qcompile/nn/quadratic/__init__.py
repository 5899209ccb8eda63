"""Quadratic neurons as torch layers, in eight forms; ``docs/quadratic.md`` compares them.

Sources: QuadraLib (Xu et al., MLSys 2022, arXiv 2204.01701, table 1) and ReLinear (Fan et al.,
"On expressivity and trainability of quadratic networks", arXiv 2110.06081).
"""

from qcompile.nn.quadratic.block import QuadraticBlock
from qcompile.nn.quadratic.convert import block_from_first_order, from_first_order
from qcompile.nn.quadratic.formulas import FORMULAS, PRESERVING_FORMS
from qcompile.nn.quadratic.layers import (
    QuadraticConv1d,
    QuadraticConv2d,
    QuadraticConv3d,
    QuadraticLayer,
    QuadraticLinear,
)

__all__ = [
    "FORMULAS",
    "PRESERVING_FORMS",
    "QuadraticBlock",
    "QuadraticConv1d",
    "QuadraticConv2d",
    "QuadraticConv3d",
    "QuadraticLayer",
    "QuadraticLinear",
    "block_from_first_order",
    "from_first_order",
]
