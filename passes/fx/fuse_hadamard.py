"""Makes one operator of the linear layers of a product and the element-wise operations behind them.

    act_fn(gate_proj(x)) * up_proj(x)     →  quadratic_linear(x, …, form="T4", gate="silu")
    a(x) * b(x) + c(x)                    →  quadratic_linear(x, …, form="Quadra")
    QuadraticLinear(n, N, form="T2_4")    →  quadratic_linear(x, …, form="T2_4")

Every module's own forward is searched, so that it does not matter whether the model as a whole can
be traced. Layers stay where they are, and so do their parameters; the module whose forward computes
the product calls the operator with their weights. See :mod:`qcompile.fused` for what happens when
such a layer changes later.
"""

from __future__ import annotations

import contextlib
import copy
import operator
import textwrap
from collections import Counter
from typing import Any

import torch
from torch import fx, nn
from torch.nn.parameter import is_lazy

from qcompile.fused import Fusion, Part, fuse, fusion_of, parameter_types, unfuse
from qcompile.passes.base import Pass, PassResult
from qcompile.passes.fx.hadamard_sites import Refusal, Site, find_sites
from qcompile.passes.fx.layers import ROOT
from qcompile.passes.fx.linear_branches import Branch
from qcompile.passes.fx.own_forward import OwnForward, trace_own_forward
from qcompile.passes.fx.tracing import locate, scratch_copy
from qcompile.report import Entry, Report
from qcompile.triton_kernels.quadratic_linear.op import quadratic_linear

__all__ = ["ALREADY", "FuseHadamard", "fuse_again"]

ALREADY = "already fused"


class FuseHadamard(Pass[nn.Module]):
    """Fuses products of linear layers into calls of one operator.

    A module that is fused changes its class to one of the same name derived from it; the graph of
    a ``GraphModule`` is rewritten. A model that has been fused comes back as it is.
    """

    @property
    def name(self) -> str:
        """The name that reports and errors use."""
        return "fuse"

    def call(self, model: nn.Module) -> PassResult[nn.Module]:
        """Fuse, and report each product of linear layers."""
        report = Report()
        try:
            copied = scratch_copy(model)
        except Exception as error:  # an attribute may refuse with anything at all
            report.problems.append(f"{self.name}: {locate('copying the model', error, model)}")
            return PassResult(model, False, report)
        copies = dict(copied.named_modules())
        unknown: Counter[str] = Counter()
        for name, module in model.named_modules():
            if not _is_searched(module):
                continue
            try:
                found = _fuse_module(module, copies[name])
            except Exception as error:  # a module's forward may raise anything at all
                if any(isinstance(child, nn.Linear) for child in module.children()):
                    unknown[f"{type(module).__name__} ({_short(error)})"] += 1
                continue
            report.entries += [self._entry(name, module, *what) for what in found]
        if unknown:
            listed = "; ".join(f"{count} × {what}" for what, count in unknown.items())
            report.notes.append(f"not searched for products, as torch.fx cannot follow: {listed}")
        if not report.modified and all(entry.reason != ALREADY for entry in report.entries):
            report.problems.append(f"{self.name}: {report.summary()}.")
        return PassResult(model, report.modified, report)

    def _entry(self, name: str, module: nn.Module, status: Any, reason: str) -> Entry:
        count = sum(p.numel() for p in module.parameters() if not is_lazy(p))
        return Entry(
            pass_name=self.name,
            name=name or ROOT,
            kind=type(module).__name__,
            status=status,
            reason=reason,
            parameters=(count, count),
        )


def fuse_again(module: nn.Module) -> None:
    """Fuse one module whose fusion was lost, as it is when a model is pickled."""
    _fuse_module(module, scratch_copy(module))


def _is_searched(module: nn.Module) -> bool:
    """Return whether a module may compute a product of layers in a forward of its own."""
    from qcompile.nn.quadratic import QuadraticBlock, QuadraticLinear

    if isinstance(module, torch.jit.ScriptModule) or not any(True for _ in module.parameters()):
        return False
    kind = type(module)
    if kind.__module__.startswith("qcompile."):
        return isinstance(module, QuadraticLinear | QuadraticBlock)
    has_forward = kind.forward is not nn.Module.forward
    return has_forward and not kind.__module__.startswith("torch.nn.")


def _obstacle(module: Any) -> str:
    """Say why a quadratic layer is left alone, if it is."""
    from qcompile.nn.quadratic import QuadraticBlock, QuadraticLinear

    if isinstance(module, QuadraticBlock):
        return "a block computes its branches apart"
    if isinstance(module, QuadraticLinear) and module.has_bilinear:
        return f"{module.form} has xᵀWx, which the operator does not compute"
    if isinstance(module, QuadraticLinear) and module.memory:
        return f"memory={module.memory} has its own way of computing the layer"
    return ""


def _short(error: Exception) -> str:
    """Return the first sentence of an error."""
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    return textwrap.shorten(line.partition(". ")[0], 100, placeholder=" …")


Outcome = tuple[str, str]
"""Status and reason, as a report enters them."""


def _fuse_module(module: nn.Module, copied: nn.Module) -> list[Outcome]:
    """Fuse what a module's own forward computes, and say what was done with each product.

    Args:
        module: changed in place.
        copied: a copy without hooks, to trace.

    Raises:
        Exception: whatever the forward raises when it is traced.
    """
    if "forward" in vars(module):
        raise ValueError("its forward was replaced on the instance")
    reason = _obstacle(module)
    if reason:
        return [("skipped", reason)]
    if isinstance(module, fx.GraphModule):
        return _fuse_graph(module)
    earlier = fusion_of(module)
    change = "" if earlier is None else earlier.misfit(module)
    if earlier is not None and not change:
        return [("skipped", ALREADY)]
    unfuse(module)
    unfuse(copied)
    try:
        found = _fuse_forward(module, copied)
    finally:
        if earlier is not None and fusion_of(module) is None:
            fuse(module, earlier)  # it runs the original forward as long as it does not fit
    if change and not any(status == "rewritten" for status, _ in found):
        found.append(("skipped", f"fused before, but {change}: its original forward runs"))
    return found


def _fuse_graph(module: fx.GraphModule) -> list[Outcome]:
    graph = copy.deepcopy(module.graph)
    sites = find_sites(graph, module)
    outcomes = _outcomes(graph, sites)
    if any(isinstance(found, Site) for found in sites):
        _rewrite(graph, sites)
        module.graph = graph
    return outcomes


def _fuse_forward(module: nn.Module, copied: nn.Module) -> list[Outcome]:
    """Fuse in the current mode, and in the other one if the forward can be traced there, too."""
    now, other = module.training, not module.training
    own = {now: trace_own_forward(copied, module, now)}
    with contextlib.suppress(Exception):
        own[other] = trace_own_forward(copied, module, other)
    sites = {mode: find_sites(traced.graph, module) for mode, traced in own.items()}
    outcomes = _outcomes(own[now].graph, sites[now])
    fused = [mode for mode in own if any(isinstance(found, Site) for found in sites[mode])]
    if not fused:
        return outcomes
    chosen = [found for mode in fused for found in sites[mode] if isinstance(found, Site)]
    fusion = _fusion(module, [own[mode] for mode in fused], chosen)
    for mode in fused:
        _rewrite(own[mode].graph, sites[mode])
        compiled: Any = fx.GraphModule(module, own[mode].graph, type(module).__name__)
        fusion.forwards[mode] = type(compiled).forward
    fuse(module, fusion)
    if now not in fused:
        where = "training" if other else "evaluation"
        outcomes += [
            (status, f"{reason}, in {where} mode only") for status, reason in map(_outcome, chosen)
        ]
    return outcomes


def _fusion(module: nn.Module, fused: list[OwnForward], sites: list[Site]) -> Fusion:
    """Record what the rewritten forwards take for granted."""
    parts: dict[str, None] = {}
    attributes: dict[tuple[str, str], Any] = {}
    for traced in fused:
        parts |= dict.fromkeys(traced.inlined)
        attributes |= traced.attributes
    for site in sites:
        called = [str(node.target) for node in site.nodes if node.op == "call_module"]
        parts |= dict.fromkeys(sorted(called))
    shapes: dict[str, torch.Size | None] = {}
    for branch in (branch for site in sites for branch in site.branches):
        names = [name for name in (branch.weight, branch.bias) if name]
        shapes |= {name: module.get_parameter(name).shape for name in names}
        if not branch.bias and branch.weight == f"{branch.label}.weight":
            shapes[f"{branch.label}.bias"] = None  # a layer may get one later
    return Fusion(
        forwards={True: None, False: None},
        arguments=fused[0].arguments,
        fixed=fused[0].fixed,
        parts=tuple(Part.of(module, name) for name in parts),
        shapes=shapes,
        attributes=attributes,
        types=parameter_types(module) if any(t.reads_types for t in fused) else None,
    )


def _outcomes(graph: fx.Graph, sites: list[Site | Refusal]) -> list[Outcome]:
    """Report the calls of the operator that are there already, and what is found."""
    count = sum(node.target is quadratic_linear for node in graph.nodes)
    return [("skipped", ALREADY)] * count + [_outcome(found) for found in sites]


def _outcome(found: Site | Refusal) -> Outcome:
    if isinstance(found, Refusal):
        return "skipped", f"{found.layers}: {found.reason}"
    gate = f", {found.gate} gate" if found.gate != "none" else ""
    activation = f", {found.activation}" if found.activation != "none" else ""
    return "rewritten", f"{found.layers} fused: {found.form}{gate}{activation}"


def _rewrite(graph: fx.Graph, sites: list[Site | Refusal]) -> None:
    """Put one call in the place of each site's nodes."""
    calls: dict[fx.Node, fx.Node] = {}
    for site in sites:
        if isinstance(site, Site):
            # What a site reads may have been another one's result.
            source = calls.get(site.source, site.source)
            calls[site.final] = _put_call(graph, site, source)
    graph.lint()


def _put_call(graph: fx.Graph, site: Site, source: fx.Node) -> fx.Node:
    def read(branch: Branch | None, attribute: str) -> fx.Node | None:
        name = getattr(branch, attribute, "")
        if branch is None or not name:
            return None
        tensor = graph.get_attr(name)
        if branch.turned and attribute == "weight":
            tensor = graph.call_method("t", (tensor,))
        if branch.rows == (0, branch.height):
            return tensor
        return graph.call_function(operator.getitem, (tensor, slice(*branch.rows)))

    branches = [*site.branches, None, None][:3]
    options: dict[str, Any] = {"form": site.form}
    options |= {"gate": site.gate, "activation": site.activation}
    with graph.inserting_before(site.final):
        weights = [read(branch, "weight") for branch in branches]
        biases = [read(branch, "bias") for branch in branches]
        call = graph.call_function(quadratic_linear, (source, *weights, *biases), options)
    call.meta = dict(site.final.meta)
    site.final.replace_all_uses_with(call)
    for node in reversed([node for node in graph.nodes if node in site.nodes]):
        sources = node.all_input_nodes
        graph.erase_node(node)
        for unused in sources:
            if unused.op == "get_attr" and not unused.users:
                graph.erase_node(unused)
    return call
