"""The layers that passes put in place of first-order ones."""

from qcompile.nn.lsh import LSHLinear, LSHOutput
from qcompile.nn.lsh_conv import LSHConv2d
from qcompile.nn.lsh_hidden import LSHHidden
from qcompile.nn.quadratic import (
    PRESERVING_FORMS,
    QuadraticBlock,
    QuadraticConv1d,
    QuadraticConv2d,
    QuadraticConv3d,
    QuadraticLinear,
    block_from_first_order,
    from_first_order,
)
from qcompile.nn.sparse_linear import SparseLinear

__all__ = [
    "PRESERVING_FORMS",
    "LSHConv2d",
    "LSHHidden",
    "LSHLinear",
    "LSHOutput",
    "QuadraticBlock",
    "QuadraticConv1d",
    "QuadraticConv2d",
    "QuadraticConv3d",
    "QuadraticLinear",
    "SparseLinear",
    "block_from_first_order",
    "from_first_order",
]
