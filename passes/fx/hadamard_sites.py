"""Finds products of linear layers in a graph that one fused operator can compute.

    activation(gate(a(x)) * b(x) + c(x))

with branches of :mod:`qcompile.passes.fx.linear_branches`, in any order and spelling. Products of
linear layers that the operator cannot compute are answered with the reason.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from torch import fx, nn

from qcompile.fused import call_hooks_of
from qcompile.passes.fx.linear_branches import (
    GATES,
    Branch,
    Branches,
    Factor,
    argument,
    operation,
)

__all__ = ["Refusal", "Site", "find_sites"]


@dataclass(frozen=True)
class Site:
    """What one call of the fused operator can compute.

    Args:
        form: name of the quadratic form.
        gate: activation of the first factor.
        activation: of the result.
        branches: a, b and c, as far as the form has them.
        source: what all of them read.
        final: the node whose value the call computes.
        nodes: all that the call takes the place of.
    """

    form: str
    gate: str
    activation: str
    branches: tuple[Branch, ...]
    source: fx.Node
    final: fx.Node
    nodes: frozenset[fx.Node]

    @property
    def layers(self) -> str:
        """Names of the layers, for people."""
        return ", ".join(dict.fromkeys(branch.label for branch in self.branches))


@dataclass(frozen=True)
class Refusal:
    """A product of linear layers that stays as it is.

    Args:
        layers: their names.
        reason: why.
    """

    layers: str
    reason: str


def find_sites(graph: fx.Graph, module: nn.Module) -> list[Site | Refusal]:
    """List the products of linear layers in a graph, in order.

    Args:
        graph: traced from ``module`` or a copy of it.
        module: with its hooks.
    """
    return list(_Finder(graph, module).find())


class _Finder:
    def __init__(self, graph: fx.Graph, module: nn.Module) -> None:
        self._nodes = list(graph.nodes)
        self._module = module
        self._branches = Branches(module)
        self._taken: set[fx.Node] = set()

    def find(self) -> Iterator[Site | Refusal]:
        """Yield products first, then linear layers of a square, since a product may be one."""
        for look in (self._product, self._of_square):
            for node in self._nodes:
                found = None if node in self._taken else look(node)
                if isinstance(found, Site):
                    found = self._with_activation(found)
                    self._taken |= found.nodes
                if found is not None:
                    yield found

    def _product(self, node: fx.Node) -> Site | Refusal | None:
        pair = self._factors(node)
        if pair is None:
            return None
        first, second = pair if pair[1].gate == "none" else pair[::-1]
        labels = ", ".join(dict.fromkeys(factor.label for factor in pair))
        a, b = first.branch, second.branch
        reason = first.reason or second.reason
        if a is None or b is None or reason:
            return Refusal(labels, reason)
        same = a.computes == b.computes
        reason = self._mismatch(a, b)
        if second.gate != "none":
            reason = reason or "both factors are activated"
        if same and first.gate != "none" and a.value is b.value:
            reason = reason or "one layer is multiplied with its own activation"
        if reason:
            return Refusal(labels, reason)
        form = "T3" if same and first.gate == "none" else "T4"
        nodes = frozenset({node, *first.nodes, *second.nodes})
        branches = (a,) if form == "T3" else (a, b)
        site = Site(form, first.gate, "none", branches, a.source, node, nodes)
        wider = self._with_addend(site)
        reason = "" if wider else self._obstacle(site)
        return Refusal(labels, reason) if reason else wider or site

    def _factors(self, node: fx.Node) -> tuple[Factor, Factor] | None:
        """Return the factors of a product, if both come from linear layers."""
        if operation(self._module, node) == "glu":
            return self._halves(node)
        square = self._square(node)
        if square is None and (operation(self._module, node) != "mul" or _has_out(node)):
            return None
        left = self._branches.factor(square or argument(node, 0, "input"))
        right = self._branches.factor(square or argument(node, 1, "other"))
        return None if left is None or right is None else (left, right)

    def _halves(self, node: fx.Node) -> tuple[Factor, Factor] | None:
        """Read a gated linear unit, which multiplies one half by the sigmoid of the other."""
        whole = self._branches.at(argument(node, 0, "input"))
        if isinstance(whole, Factor):
            return whole, whole
        if whole is None:
            return None
        child: Any = self._module.get_submodule(str(node.target)) if node.op == "call_module" else 0
        dim = child.dim if child else argument(node, 1, "dim", -1)
        reason = f"{whole.label} is split along dimension {dim}, not along the last, -1"
        hooks = call_hooks_of(child) if child else ""
        if hooks or whole.outputs % 2:
            reason = f"GLU has {hooks}" if hooks else f"{whole.label} has an odd number of outputs"
        if dim != -1 or hooks or whole.outputs % 2:
            return (Factor(whole.label, reason=reason),) * 2
        (start, end), middle = whole.rows, (whole.rows[0] + whole.rows[1]) // 2
        gated, plain = whole.part(node, (middle, end)), whole.part(node, (start, middle))
        return (
            Factor(whole.label, gated, "sigmoid", whole.nodes),
            Factor(whole.label, plain, "none", whole.nodes),
        )

    def _square(self, node: Any) -> fx.Node | None:
        """Return what a node is the square of."""
        if not isinstance(node, fx.Node):
            return None
        kind = operation(self._module, node)
        base = argument(node, 0, "input")
        squares = (
            kind == "square"
            or (kind == "pow" and argument(node, 1, "exponent") == 2)
            or (kind == "mul" and argument(node, 1, "other") is base)
        )
        return base if squares and isinstance(base, fx.Node) and not _has_out(node) else None

    def _mismatch(self, a: Branch, b: Branch) -> str:
        if a.source is not b.source:
            return "they read different inputs"
        if a.outputs != b.outputs:
            return f"they have {a.outputs} and {b.outputs} outputs"
        return "" if a.kind == b.kind else "their weights differ in type or device"

    def _obstacle(self, site: Site) -> str:
        """Say what else happens to the values that a fused call would not compute."""
        for node in self._nodes:
            others = node in site.nodes and node is not site.final and set(node.users) - site.nodes
            if others:
                return f"the value {node.name} is used elsewhere, too"
        places = [place for place, node in enumerate(self._nodes) if node in site.nodes]
        for node in self._nodes[places[0] : places[-1] + 1]:
            # What the layers have computed nobody else sees.
            own = node in site.nodes and argument(node, 0, "input") in site.nodes
            if not own and _mutates(self._module, node):
                return f"{node.name} changes a value in place between the layers"
        return ""

    def _with_addend(self, site: Site) -> Site | None:
        """Take in a third linear layer that is added to the product, if there is one."""
        user = _only_user(site.final)
        adds = user is not None and operation(self._module, user) == "add" and not _has_out(user)
        if user is None or not adds or site.form == "T3":  # beside a square: a product more
            return None
        operands = argument(user, 0, "input"), argument(user, 1, "other")
        found = self._branches.at(operands[1] if operands[0] is site.final else operands[0])
        if not isinstance(found, Branch) or argument(user, 2, "alpha", 1) != 1:
            return None
        nodes = {*site.nodes, *found.nodes, user}
        form, first = "Quadra", site.branches[0]
        if self._square(found.source) is site.source:
            form, nodes = "T2_4", {*nodes, found.source}
            found = replace(found, source=site.source)
        branches = (first, site.branches[-1], found)
        wider = replace(site, form=form, branches=branches, final=user, nodes=frozenset(nodes))
        fits = found.value not in site.nodes and not self._mismatch(first, found)
        free = fits and not self._taken & wider.nodes
        return wider if free and not self._obstacle(wider) else None

    def _of_square(self, node: fx.Node) -> Site | Refusal | None:
        """Read a linear layer of x∘x."""
        found = self._branches.at(node)
        branch = found if isinstance(found, Branch) else None
        source = self._square(branch.source) if branch else None
        if branch is None or source is None or branch.source in self._taken:
            return None
        user = _only_user(node)
        if user is not None and isinstance(self._branches.at(user), Branch):
            return None  # with a bias, of which the user's turn comes
        nodes = frozenset({*branch.nodes, branch.source})
        site = Site("T2", "none", "none", (branch,), source, node, nodes)
        reason = self._obstacle(site)
        return Refusal(site.layers, reason) if reason else site

    def _with_activation(self, site: Site) -> Site:
        """Take in the activation that alone reads the result, if there is one."""
        user = _only_user(site.final)
        kind = "" if user is None else operation(self._module, user)
        if user is None or kind not in GATES or argument(user, 0, "input") is not site.final:
            return site
        if user.op == "call_module" and call_hooks_of(self._module.get_submodule(str(user.target))):
            return site
        wider = replace(site, activation=kind, final=user, nodes=site.nodes | {user})
        return site if self._obstacle(wider) else wider


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _has_out(node: fx.Node) -> bool:
    return node.kwargs.get("out") is not None


def _mutates(module: nn.Module, node: fx.Node) -> bool:
    """Return whether a node may change a tensor that existed before."""
    if node.op == "call_module":
        inner = module.get_submodule(str(node.target)).modules()
        return any(getattr(child, "inplace", False) for child in inner)
    name = str(getattr(node.target, "__name__", node.target)).partition(".")[0]
    in_place = name.endswith("_") and not name.endswith("__")
    special = name in ("setitem", "iadd", "imul", "isub", "itruediv", "ipow", "__setitem__")
    return in_place or special or _has_out(node) or bool(node.kwargs.get("inplace"))
