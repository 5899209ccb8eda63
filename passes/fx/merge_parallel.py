"""Merges the parallel convolutions, or linear layers, of one input into one that is wider.

    conv_a(x), conv_b(x), conv_c(x)              →  split(conv(x)), 3·C channels
    norm_a(conv_a(x)), norm_b(conv_b(x)), …      →  split(norm(conv(x))), one batch norm of 3·C

Exact up to rounding: a channel's sum is the same, whatever channels are computed beside it, and a
batch norm treats each channel on its own. This is a pass over a ``torch.fx`` graph, since the
calls change and not only the modules; branches of quadratic blocks are seen like calls by hand.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  torch's own name for it
from torch import fx, nn

from qcompile.errors import PassError
from qcompile.passes.base import Pass, PassResult
from qcompile.passes.fx.layers import ROOT, hooks_of
from qcompile.report import Entry, Report

__all__ = ["MergeParallel"]

_CONVOLUTIONS: dict[Any, type[Any]] = {
    torch.conv1d: nn.Conv1d,
    torch.conv2d: nn.Conv2d,
    torch.conv3d: nn.Conv3d,
}
_LAYERS: tuple[type[Any], ...] = (nn.Linear, *_CONVOLUTIONS.values())
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@dataclass(frozen=True)
class _Branch:
    """One product with a weight in the graph.

    Args:
        node: the call.
        source: what is multiplied.
        kind: the layer that would compute it.
        options: stride and the like, as that layer's constructor takes them.
        weight: [outputs, ...].
        bias: [outputs] or ``None``.
    """

    node: fx.Node
    source: fx.Node
    kind: type[Any]
    options: tuple[tuple[str, Any], ...]
    weight: nn.Parameter
    bias: nn.Parameter | None

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Weight and bias, if any."""
        return [self.weight] if self.bias is None else [self.weight, self.bias]

    @property
    def likeness(self) -> tuple[Any, ...]:
        """What branches must have in common to be merged."""
        flags = {(p.dtype, p.device, p.requires_grad) for p in self.parameters}
        shape = tuple(self.weight.shape[1:])
        return self.source, self.kind, self.options, shape, tuple(sorted(flags, key=str))


class MergeParallel(Pass[nn.Module]):
    """Merges in a model that ``torch.fx.symbolic_trace`` can follow.

    The result is a ``GraphModule`` with new parameters in the merged layers, so make the optimiser
    afterwards; a model without parallel layers comes back as it is. A linear layer followed by a
    batch norm is taken to have a two-dimensional input.
    """

    @property
    def name(self) -> str:
        """The name that reports and errors use."""
        return "merge"

    def call(self, model: nn.Module) -> PassResult[nn.Module]:
        """Merge, and report each group of parallel layers.

        Raises:
            PassError: the model cannot be traced.
        """
        try:
            graph = _Tracer().trace(model)
        except Exception as error:  # a model's forward may raise anything at all
            raise PassError(
                f"merging changes the calls of a model, and {type(model).__name__} cannot be "
                f"traced by torch.fx: {error}. Merge a part that can be, and put it back."
            ) from error
        traced = fx.GraphModule(model, graph, type(model).__name__)
        report = Report()
        for branches in _groups(traced):
            reason = _obstacle(traced, branches)
            after = None if reason else _merge(traced, branches)
            report.entries.append(_entry(branches, reason, after))
        if not report.modified:
            return PassResult(model, False, report)
        graph.eliminate_dead_code()
        _delete_unused_parameters(traced)
        traced.delete_all_unused_submodules()
        graph.lint()
        traced.recompile()
        return PassResult(traced, True, report)


class _Tracer(fx.Tracer):
    """Looks inside quadratic layers and blocks; sparse layers stay whole."""

    def is_leaf_module(self, module: nn.Module, qualified_name: str) -> bool:
        """Return whether to record the call of ``module`` without looking inside."""
        from qcompile.nn.hashed import Hashed
        from qcompile.nn.row_sparse import RowSparse

        whole = isinstance(module, (*_LAYERS, Hashed, RowSparse))
        return whole or super().is_leaf_module(module, qualified_name)


def _groups(traced: fx.GraphModule) -> list[list[_Branch]]:
    """List the groups of two or more branches that could be one."""
    groups: dict[tuple[Any, ...], list[_Branch]] = {}
    for node in traced.graph.nodes:
        branch = _branch(traced, node)
        if branch is not None:
            groups.setdefault(branch.likeness, []).append(branch)
    return [group for group in groups.values() if len(group) > 1]


def _branch(traced: fx.GraphModule, node: fx.Node) -> _Branch | None:
    if not node.args or not isinstance(node.args[0], fx.Node):
        return None
    if node.op == "call_module" and len(node.args) == 1:
        module = traced.get_submodule(str(node.target))
        if type(module) in _LAYERS and "weight" in module._parameters and not hooks_of(module):
            layer: Any = module
            options = _options_of(layer)
            return _Branch(node, node.args[0], type(layer), options, layer.weight, layer.bias)
        return None
    if node.op != "call_function" or node.kwargs:
        return None
    kind = nn.Linear if node.target is F.linear else _CONVOLUTIONS.get(node.target)
    tensors = [_parameter(traced, argument) for argument in node.args[1:3]]
    if kind is None or not tensors or tensors[0] is None:
        return None
    bias = tensors[1] if len(tensors) > 1 else None
    if len(node.args) > 2 and node.args[2] is not None and bias is None:
        return None
    given: tuple[Any, ...] = node.args[3:]
    names = ("stride", "padding", "dilation", "groups")[: len(given)]
    options = () if kind is nn.Linear else tuple(zip(names, map(_fixed, given), strict=True))
    return _Branch(node, node.args[0], kind, options, tensors[0], bias)


def _options_of(layer: Any) -> tuple[tuple[str, Any], ...]:
    if isinstance(layer, nn.Linear):
        return ()
    names = ("stride", "padding", "dilation", "groups", "padding_mode")
    return tuple((name, getattr(layer, name)) for name in names)


def _fixed(value: Any) -> Any:
    return tuple(value) if isinstance(value, list | tuple) else value


def _parameter(traced: fx.GraphModule, argument: Any) -> nn.Parameter | None:
    if not isinstance(argument, fx.Node) or argument.op != "get_attr":
        return None
    owner, _, name = str(argument.target).rpartition(".")
    return traced.get_submodule(owner)._parameters.get(name)


def _uses(traced: fx.GraphModule) -> Counter[int]:
    """Count how often each parameter is read: by a call of its module, or directly."""
    uses: Counter[int] = Counter()
    for node in traced.graph.nodes:
        if node.op == "call_module":
            uses.update(id(p) for p in traced.get_submodule(str(node.target)).parameters())
        elif node.op == "get_attr":
            found = _parameter(traced, node)
            uses[id(found)] += len(node.users)
    return uses


def _obstacle(traced: fx.GraphModule, branches: Sequence[_Branch]) -> str:
    """Say why branches cannot become one, if they cannot."""
    groups = dict(branches[0].options).get("groups", 1)
    if groups != 1:
        return f"convolutions of {groups} groups would interleave their channels"
    uses = _uses(traced)
    if any(uses[id(p)] > 1 for branch in branches for p in branch.parameters):
        return "a parameter of them is used elsewhere, too"
    return ""


def _merge(traced: fx.GraphModule, branches: Sequence[_Branch]) -> list[nn.Module]:
    """Rewrite the graph and return the new modules."""
    merged = _wider(branches)
    widths = [len(branch.weight) for branch in branches]
    ends = [branch.node for branch in branches]
    modules = [merged]
    norms = _norms(traced, branches)
    with traced.graph.inserting_before(branches[0].node):
        value = traced.graph.call_module(_add(traced, merged), (branches[0].source,))
        if norms:
            joint = _joint_norm(norms)
            modules.append(joint)
            ends = [next(iter(branch.node.users)) for branch in branches]
            value = traced.graph.call_module(_add(traced, joint), (value,))
        dims = 0 if branches[0].kind is nn.Linear else branches[0].weight.dim() - 2
        pieces = traced.graph.call_function(torch.split, (value, widths, -1 - dims))
        for index, end in enumerate(ends):
            piece = traced.graph.call_function(operator.getitem, (pieces, index))
            end.replace_all_uses_with(piece)
    for end in reversed(ends):
        traced.graph.erase_node(end)
    if norms:
        for branch in branches:
            traced.graph.erase_node(branch.node)
    return modules


def _wider(branches: Sequence[_Branch]) -> nn.Module:
    """Make the layer that computes all branches."""
    first = branches[0]
    outputs, inputs = sum(len(branch.weight) for branch in branches), first.weight.shape[1]
    has_bias = any(branch.bias is not None for branch in branches)
    sizes: tuple[Any, ...] = (inputs, outputs)
    if first.kind is not nn.Linear:
        sizes += (tuple(first.weight.shape[2:]),)
    merged: nn.Module = first.kind(*sizes, **dict(first.options), bias=has_bias, device="meta")
    biases = [
        branch.weight.new_zeros(len(branch.weight)) if branch.bias is None else branch.bias
        for branch in branches
    ]
    trainable = first.weight.requires_grad
    weight = torch.cat([branch.weight.detach() for branch in branches])
    merged.register_parameter("weight", nn.Parameter(weight, requires_grad=trainable))
    if has_bias:
        joined = torch.cat([bias.detach() for bias in biases])
        merged.register_parameter("bias", nn.Parameter(joined, requires_grad=trainable))
    return merged


def _norms(traced: fx.GraphModule, branches: Sequence[_Branch]) -> list[Any]:
    """Return the batch norms that follow the branches, if they can become one."""
    norms: list[Any] = []
    for branch in branches:
        users = list(branch.node.users)
        if len(users) != 1 or users[0].op != "call_module":
            return []
        norm: Any = traced.get_submodule(str(users[0].target))
        called = sum(node.target == users[0].target for node in traced.graph.nodes)
        if type(norm) not in _NORMS or hooks_of(norm) or called != 1:
            return []
        if norm.num_features != len(branch.weight):
            return []
        norms.append(norm)
    return norms if len({_kind_of_norm(norm) for norm in norms}) == 1 else []


def _kind_of_norm(norm: Any) -> tuple[Any, ...]:
    counted = norm.num_batches_tracked
    return (
        *(type(norm), norm.eps, norm.momentum, norm.affine, norm.training),
        *(p.requires_grad for p in norm.parameters()),
        None if counted is None else int(counted),
    )


def _joint_norm(norms: Sequence[Any]) -> nn.Module:
    first = norms[0]
    joint: nn.Module = type(first)(
        sum(norm.num_features for norm in norms),
        eps=first.eps,
        momentum=first.momentum,
        affine=first.affine,
        track_running_stats=first.track_running_stats,
    )
    for name, like in first._parameters.items():
        if like is not None:
            values = torch.cat([getattr(norm, name).detach() for norm in norms])
            setattr(joint, name, nn.Parameter(values, requires_grad=like.requires_grad))
    for name, like in first._buffers.items():
        if like is not None:
            several = [getattr(norm, name) for norm in norms]
            setattr(joint, name, torch.cat(several) if like.dim() else like.clone())
    return joint.train(first.training)


def _delete_unused_parameters(traced: fx.GraphModule) -> None:
    """Forget what only merged calls have read, in modules that the graph never calls whole."""
    called = {str(node.target) for node in traced.graph.nodes if node.op == "call_module"}
    read = {str(node.target) for node in traced.graph.nodes if node.op == "get_attr"}
    for name, module in traced.named_modules():
        if not any(name == target or name.startswith(f"{target}.") for target in called):
            for key in list(module._parameters):
                if f"{name}.{key}" not in read:
                    del module._parameters[key]


def _add(traced: fx.GraphModule, module: nn.Module) -> str:
    """Give the graph a module and return the name it goes by."""
    kind = "norm" if isinstance(module, _NORMS) else "layer"
    number = sum(name.startswith(f"merged_{kind}") for name in traced._modules)
    name = f"merged_{kind}_{number}"
    traced.add_submodule(name, module)
    return name


def _entry(branches: Sequence[_Branch], reason: str, after: list[nn.Module] | None) -> Entry:
    owners = [str(branch.node.target) for branch in branches if branch.node.op == "call_module"]
    stack = list((branches[0].node.meta.get("nn_module_stack") or {}).values())
    owner = owners or [str(stack[-1][0]) if stack else ROOT]
    before = sum(p.numel() for branch in branches for p in branch.parameters)
    if after:
        layer: Any = after[0]
        before_after = (before, sum(p.numel() for p in layer.parameters()))
        norm = f" and {type(after[1]).__name__}" if len(after) > 1 else ""
        reason = f"one {type(layer).__name__}{norm} of {len(layer.weight)} channels"
    else:
        before_after = (before, before)
    return Entry(
        pass_name="merge",
        name=", ".join(owner),
        kind=f"{len(branches)} × {branches[0].kind.__name__}",
        status="rewritten" if after else "skipped",
        reason=reason,
        parameters=before_after,
    )
