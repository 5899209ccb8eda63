"""``QuadraticLinear`` and ``QuadraticConv1d/2d/3d``: one neuron table, two kinds of branch."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from qcompile.config import Quadratic, canonical_form
from qcompile.errors import ConfigurationError, DataError
from qcompile.nn.quadratic.bilinear import check_memory, has_known_size
from qcompile.nn.quadratic.first_order import WeightType
from qcompile.nn.quadratic.formulas import FORMULAS, Formula, Term
from qcompile.nn.quadratic.geometry import Geometry, IntOrInts
from qcompile.nn.quadratic.memory import Memory, call, keeps_less
from qcompile.nn.quadratic.products import branch
from qcompile.triton_kernels.quadratic_linear.op import quadratic_linear

MEMORY_LIMIT = Quadratic.memory_limit


class QuadraticLayer(Memory, nn.Module):
    """Base of the quadratic layers: parameters, initialisation, evaluation of the formula.

    Parameters are ``weight_a``, ``bias_a``, ``weight_b`` and so on, one pair per branch of the
    formula (:data:`qcompile.nn.quadratic.FORMULAS`). ``fan_in`` is the number of inputs that one
    output sees.
    """

    form: str
    fan_in: int
    geometry: Any = None
    dims = 1
    """Spatial dimensions, which say what kind of batch norm fits; a linear layer takes the 1d."""

    _first_order_shape: tuple[int, ...]

    def _create_parameters(
        self,
        form: str,
        bias: bool | str,
        first_order_shape: tuple[int, ...],
        memory_limit: int,
        device: Any,
        dtype: torch.dtype | None,
        memory: int,
    ) -> None:
        self.memory = memory
        self.form = canonical_form(form)
        self._first_order_shape = first_order_shape
        outputs = first_order_shape[0]
        self.fan_in = math.prod(first_order_shape[1:])
        bilinear_shape = (outputs, self.fan_in, self.fan_in)
        shapes = {
            letter: bilinear_shape if branch.term is Term.BILINEAR else first_order_shape
            for letter, branch in self.formula.branches.items()
        }
        if self.formula.has_bilinear:
            count = sum(math.prod(shape) for shape in shapes.values())
            check_memory(self.form, count, dtype or torch.get_default_dtype(), memory_limit)
        with_bias = self._branches_with_bias(bias)
        for letter, shape in shapes.items():
            weight = torch.empty(shape, device=device, dtype=dtype)
            self.register_parameter(f"weight_{letter}", nn.Parameter(weight))
            offset = torch.empty(outputs, device=device, dtype=dtype)
            has_bias = letter in with_bias
            self.register_parameter(f"bias_{letter}", nn.Parameter(offset) if has_bias else None)
        self.reset_parameters()

    def _branches_with_bias(self, bias: bool | str) -> str:
        letters = "".join(self.formula.branches)
        if isinstance(bias, str):
            if not set(bias) <= set(letters):
                raise ConfigurationError(
                    f"{type(self).__name__}: {self.form} has the branches {letters!r}, "
                    f"bias={bias!r} names others."
                )
            return bias
        return letters if bias else ""

    @property
    def formula(self) -> Formula:
        """What this layer computes."""
        return FORMULAS[self.form]

    @property
    def has_bilinear(self) -> bool:
        """Whether a branch is xᵀWx."""
        return self.formula.has_bilinear

    @property
    def weight(self) -> WeightType:
        """Type, device and shape of the first-order weight, for code that casts to them."""
        some = next(self.parameters())
        return WeightType(some.dtype, some.device, torch.Size(self._first_order_shape))

    @property
    def biases(self) -> bool | str:
        """Which branches have a bias, as the constructor takes it: all, none, or their letters."""
        letters = "".join(self.formula.branches)
        present = "".join(x for x in letters if getattr(self, f"bias_{x}") is not None)
        return present if 0 < len(present) < len(letters) else bool(present)

    def reset_parameters(self) -> None:
        """Draw fresh weights (see :mod:`qcompile.nn.quadratic.formulas`); biases become zero."""
        for letter in self.formula.branches:
            self.reset_branch(letter)

    def reset_branch(self, letter: str) -> None:
        """Draw one branch afresh."""
        weight, bias = getattr(self, f"weight_{letter}"), getattr(self, f"bias_{letter}")
        fan = math.prod(weight.shape[1:])
        nn.init.normal_(weight, std=self.formula.branches[letter].gain * fan**-0.5)
        if bias is not None:
            nn.init.zeros_(bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Compute the formula, whose shapes the class describes."""
        if self.memory and keeps_less(self, x):
            return call(self, {}, (None, None), self.memory, x)
        return self._compute(x)

    def _compute(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.formula.combine(self.branches(x))
        return y

    def branches(self, x: Any) -> dict[str, Any]:
        """Return what each branch computes, by letter, before they are combined."""
        padded = self._pad(x)
        return {letter: self._branch(letter, padded) for letter in self.formula.branches}

    def _branch(self, letter: str, padded: Any) -> Any:
        term = self.formula.branches[letter].term
        weight, bias = getattr(self, f"weight_{letter}"), getattr(self, f"bias_{letter}")
        size = (self._first_order_shape[0], self.fan_in)
        return branch(term, self.geometry, padded, weight, bias, size)

    def _pad(self, x: Any) -> Any:
        return x


def _memory_repr(level: int) -> str:
    return f", memory={level}" if level else ""


class QuadraticLinear(QuadraticLayer):
    """A layer of quadratic neurons; ``docs/quadratic.md`` lists the formulas.

    Args:
        in_features: n, size of the last dimension of the input.
        out_features: N, size of the last dimension of the output.
        bias: whether every branch has a bias, or the letters of the branches that have one.
        form: name of the formula.
        device: where the parameters are made.
        dtype: floating-point type of the parameters.
        memory_limit: bytes that the weights of a form with xᵀWx may take.
        memory: what training keeps for the backward pass: 0, 1 or 3.

    Shape:
        [..., n] → [..., N]; weights are [N, n], those of xᵀWx are [N, n, n].

    Raises:
        ConfigurationError: an argument is out of range, or the weights exceed ``memory_limit``.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool | str = True,
        form: str = "Quadra",
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        memory_limit: int = MEMORY_LIMIT,
        memory: int = 0,
    ) -> None:
        super().__init__()
        if in_features < 1 or out_features < 1:
            raise ConfigurationError(
                f"QuadraticLinear: in_features and out_features must be positive, "
                f"got {in_features} and {out_features}."
            )
        self.in_features, self.out_features = in_features, out_features
        shape = (out_features, in_features)
        self._create_parameters(form, bias, shape, memory_limit, device, dtype, memory)

    def _compute(self, x: torch.Tensor) -> torch.Tensor:
        if not self._takes_operator(x):
            return super()._compute(x)
        letters = self.formula.branches
        tensors = {f"weight_{letter}": getattr(self, f"weight_{letter}") for letter in letters}
        tensors |= {f"bias_{letter}": getattr(self, f"bias_{letter}") for letter in letters}
        y: torch.Tensor = quadratic_linear(x, **tensors, form=self.form)
        return y

    def _takes_operator(self, x: Any) -> bool:
        """Return whether a kernel may compute this call, eagerly on a GPU.

        Traces and graphs get plain operators, which compilers fuse and exporters know.
        """
        return (
            isinstance(x, torch.Tensor)
            and x.is_cuda
            and not self.formula.has_bilinear
            and not torch.compiler.is_compiling()
        )

    def extra_repr(self) -> str:
        """Describe the arguments that rebuild this layer."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.biases!r}, form={self.form!r}{_memory_repr(self.memory)}"
        )


def _from_geometry(name: str) -> Any:
    return property(lambda layer: getattr(layer.geometry, name))


class _QuadraticConv(QuadraticLayer):
    """Convolution of quadratic neurons; :class:`QuadraticConv2d` documents it."""

    geometry: Geometry
    kernel_size = _from_geometry("kernel_size")
    stride = _from_geometry("stride")
    padding = _from_geometry("padding")
    dilation = _from_geometry("dilation")
    groups = _from_geometry("groups")
    padding_mode = _from_geometry("padding_mode")

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: IntOrInts,
        stride: IntOrInts = 1,
        padding: str | IntOrInts = 0,
        dilation: IntOrInts = 1,
        groups: int = 1,
        bias: bool | str = True,
        padding_mode: str = "zeros",
        form: str = "Quadra",
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        memory_limit: int = MEMORY_LIMIT,
        memory: int = 0,
    ) -> None:
        super().__init__()
        valid = in_channels > 0 and out_channels > 0 and groups > 0
        if not valid or in_channels % groups or out_channels % groups:
            raise ConfigurationError(
                f"{type(self).__name__}: in_channels ({in_channels}) and out_channels "
                f"({out_channels}) must be positive multiples of groups ({groups})."
            )
        self.in_channels, self.out_channels = in_channels, out_channels
        self.geometry = Geometry.checked(
            self.dims, kernel_size, stride, padding, dilation, groups, padding_mode
        )
        shape = (out_channels, in_channels // groups, *self.geometry.kernel_size)
        self._create_parameters(form, bias, shape, memory_limit, device, dtype, memory)

    def _pad(self, x: Any) -> Any:
        padded = self.geometry.pad_by_mode(x)
        if self.formula.has_bilinear and has_known_size(x):
            self._check_input(padded)
        return padded

    def _check_input(self, x: torch.Tensor) -> None:
        """Refuse what torch's convolution refuses, for the branches that do without it."""
        channels_first = x.dim() in (self.dims + 1, self.dims + 2)
        if not channels_first or x.shape[-self.dims - 1] != self.in_channels:
            raise DataError(
                f"{type(self).__name__} expects [batch, {self.in_channels}, "
                f"{self.dims} spatial dimensions], batch optional, got {tuple(x.shape)}."
            )
        if not self.geometry.fits(x.shape[-self.dims :]):
            raise DataError(
                f"{type(self).__name__}: kernel {self.geometry.kernel_size} with dilation "
                f"{self.geometry.dilation} is larger than the padded input {tuple(x.shape)}."
            )

    def extra_repr(self) -> str:
        """Describe the arguments that rebuild this layer."""
        g = self.geometry
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={g.kernel_size}, "
            f"stride={g.stride}, padding={g.padding!r}, dilation={g.dilation}, "
            f"groups={g.groups}, bias={self.biases!r}, padding_mode={g.padding_mode!r}, "
            f"form={self.form!r}{_memory_repr(self.memory)}"
        )


class QuadraticConv1d(_QuadraticConv):
    """:class:`QuadraticConv2d` over one spatial dimension."""

    dims = 1


class QuadraticConv2d(_QuadraticConv):
    """Convolution of quadratic neurons: the formula holds over each receptive field.

    Args:
        in_channels: channels C of the input.
        out_channels: channels O of the output.
        kernel_size: taps per dimension.
        stride: step per dimension.
        padding: margin per dimension, ``"same"`` or ``"valid"``.
        dilation: distance between taps, per dimension.
        groups: independent groups of channels.
        bias: whether every branch has a bias, or the letters of the branches that have one.
        padding_mode: ``zeros``, ``reflect``, ``replicate`` or ``circular``.
        form: name of the formula.
        device: where the parameters are made.
        dtype: floating-point type of the parameters.
        memory_limit: bytes that the weights of a form with xᵀWx may take.
        memory: what training keeps for the backward pass: 0, 1 or 3.

    Shape:
        [batch, C, *spatial] → [batch, O, *spatial'], or without the batch, as
        ``torch.nn.Conv2d``. Weights are [O, C/groups, *kernel_size], those of xᵀWx are
        [O, n, n] with n = C/groups · ∏kernel_size, in the order of a flattened kernel.

    Raises:
        ConfigurationError: an argument is out of range, or the weights exceed ``memory_limit``.
    """

    dims = 2


class QuadraticConv3d(_QuadraticConv):
    """:class:`QuadraticConv2d` over three spatial dimensions."""

    dims = 3
