"""A hidden layer that computes few of its neurons for each example."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from qcompile.config import LSH
from qcompile.nn.active_neurons import active_neurons, check_active
from qcompile.nn.hashed_linear import HashedLinear
from qcompile.nn.mixed_linear import mixed_linear
from qcompile.nn.row_sparse import late_rows, row_gradient
from qcompile.nn.targets import check_hidden
from qcompile.runtime import _core
from qcompile.uncompiled import uncompiled

__all__ = ["LSHHidden"]


class LSHHidden(HashedLinear):
    """A linear hidden layer ``[..., d] -> [..., H]`` with LSH-sparse training.

    In training each example computes ``config.active`` neurons, those whose weights are likely to
    have a large product with its input; the others output 0 and get no gradient, as in SLIDE
    (MLSys 2020, section 3). ``mode="sampled"`` takes random neurons instead, ``mode="full"`` all.
    ``config.negatives`` has no meaning here: there is no normaliser to estimate. In evaluation
    mode all neurons are computed, as by ``torch.nn.Linear``. What follows should map 0 to 0 (ReLU,
    GELU, tanh), so that an inactive neuron stays so.

    What it gains: forward and backward compute ``active / H`` of the products, and only active rows
    are trained; a dense product runs nearer to the processor's peak, though. With d = 512, 128
    examples and ``active=128``, a step of this layer on one core takes 0.7 of a dense layer's time
    at H = 4,096, 0.33 at 16,384 and 0.13 at 65,536. The output is a dense tensor with zeros, so
    what follows costs what it did.

    Gradients of weight and bias are row-sparse, see :class:`qcompile.nn.LSHLinear`; tables follow
    the weights in the same way, counting calls in training mode. In training parameters are float32
    or bfloat16, arithmetic is in float32, and the input is cast.

    Args:
        in_features: d.
        out_features: H, the number of neurons.
        bias: whether neurons have a bias.
        config: hash family, tables and sampling.
        device: of the parameters.
        dtype: of the parameters.

    Attributes:
        weight: Parameter [H, d].
        bias: Parameter [H] or None.
        unseen_flops: floating-point operations of the latest call that torch's counter, which
            knows torch's own operators, does not see.

    Raises:
        ConfigurationError: ``config.active`` is below 2.
    """

    def _adopt(self, linear: nn.Linear, config: LSH) -> None:
        check_active(config, "LSHHidden")
        super()._adopt(linear, config)
        self.unseen_flops = 0

    def forward(self, hidden: Tensor) -> Tensor:
        """Compute the active neurons, in evaluation mode all.

        Args:
            hidden: floating [..., d].

        Returns:
            [..., H]; float32 in training.

        Raises:
            DataError: ``hidden`` has the wrong type or width, or training is asked for off the CPU
                or with parameters of another type.
        """
        check_hidden(hidden, self.in_features, type(self).__name__)
        self.unseen_flops = 0
        if not self.training:
            return mixed_linear(hidden, self.weight, self.bias)
        rows = hidden.reshape(-1, self.in_features)
        return self._sampled(rows).reshape(*hidden.shape[:-1], self.out_features)

    @uncompiled
    def _sampled(self, hidden: Tensor) -> Tensor:
        self._check_trainable(hidden)
        hidden = hidden.float().contiguous()
        weight = self.weight.contiguous()
        step = self._begin_step(hidden)
        lists = active_neurons(self._tables, hidden.detach(), weight.detach(), self.config, step)
        call = _Call(lists, self)
        self.unseen_flops = 2 * len(call.places) * self.in_features
        output: Tensor = _ActiveProduct.apply(hidden, weight, self.bias, call)
        self._end_step()
        return output

    def extra_repr(self) -> str:
        """Describe the layer in one line."""
        c = self.config
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, mode={c.mode}, family={c.family}, active={c.active}"
        )


class _Call:
    """The places of one batch's output [B, H] that are computed."""

    def __init__(self, lists: list[np.ndarray], layer: LSHHidden) -> None:
        sizes = [len(ids) for ids in lists]
        columns = np.concatenate([np.empty(0, np.int64), *lists])
        offsets = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
        examples = np.repeat(np.arange(len(lists)), sizes)
        self.places = torch.from_numpy(examples * layer.out_features + columns)
        self.shape = (len(lists), layer.out_features)
        self.csr = _core.CsrProduct(
            offsets, columns, np.zeros(len(columns), np.float32), layer.out_features
        )
        self.parameters = (layer.weight, layer.bias)
        self.sparse_grad = layer.sparse_grad
        self.updates: Any = layer.row_updates if torch.is_grad_enabled() else None


class _ActiveProduct(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, call: _Call
    ) -> Tensor:
        threads = torch.get_num_threads()
        for parameter in call.parameters:
            late = late_rows(parameter, call.updates)
            if late is not None:
                call.csr.catch_up(late, threads)
        ctx.call = call
        ctx.save_for_backward(hidden, weight)
        values = torch.empty(len(call.places))
        bias = None if bias is None else bias.detach().float()
        call.csr.products(hidden.detach(), weight.detach(), bias, values, threads)
        output = torch.zeros(call.shape)
        output.view(-1)[call.places] = values
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight = (tensor.detach() for tensor in ctx.saved_tensors)
        call, threads = ctx.call, torch.get_num_threads()
        call.csr.set_values(grad_output.reshape(-1)[call.places])
        grad_hidden = torch.empty_like(hidden)
        call.csr.forward(weight, None, grad_hidden, threads)
        if call.updates is not None:
            _update(call, hidden, threads)
            return grad_hidden, None, None, None
        rows = torch.from_numpy(call.csr.rows)
        grad_rows = hidden.new_empty(len(rows), hidden.shape[1])
        call.csr.backward(hidden, grad_rows, threads)
        grad_bias = None
        if call.parameters[1] is not None:
            sums = torch.from_numpy(call.csr.column_sums())
            grad_bias = row_gradient(rows, sums, call.parameters[1], call.sparse_grad)
        return grad_hidden, row_gradient(rows, grad_rows, weight, call.sparse_grad), grad_bias, None


def _update(call: _Call, hidden: Tensor, threads: int) -> None:
    weight, bias = call.parameters
    call.csr.update(hidden, call.updates.bound(weight), threads)
    if bias is not None:
        sums = call.csr.column_sums()[:, None]
        call.updates.bound(bias).step(call.csr.rows, sums, threads)
