"""Products of linear layers, spelled in every way that a test asks for."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import fx, nn

from qcompile.triton_kernels.quadratic_linear.op import quadratic_linear

GATES = ("none", "relu", "gelu", "gelu_tanh", "silu", "sigmoid", "tanh")
_MODULES = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "gelu_tanh": lambda: nn.GELU(approximate="tanh"),
    "silu": nn.SiLU,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
}
_FUNCTIONS = {
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": lambda z: F.gelu(z, approximate="tanh"),
    "silu": F.silu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
}
MULTIPLY = {
    "operator": lambda a, b: a * b,
    "function": torch.mul,
    "named": lambda a, b: torch.mul(input=a, other=b),
    "alias": torch.multiply,
    "method": lambda a, b: a.mul(b),
    "in place": lambda a, b: a.mul_(b),
}
ADD = {
    "operator": lambda a, b: a + b,
    "function": torch.add,
    "named": lambda a, b: torch.add(a, other=b, alpha=1),
    "method": lambda a, b: a.add(b),
    "in place": lambda a, b: a.add_(b),
}
SQUARE = {
    "product": lambda z: z * z,
    "operator": lambda z: z**2,
    "function": torch.square,
    "power": lambda z: torch.pow(z, 2),
    "method": lambda z: z.pow(2.0),
}
LAYERS = ("module", "sequential", "function", "matmul", "named matmul", "chunk", "split", "slice")


@dataclass(frozen=True)
class Spelling:
    """How a product is written.

    Args:
        form: quadratic form.
        layers: one of :data:`LAYERS`; the last three split one wide layer.
        bias: of the layers.
        gate: activation of a factor.
        activation: of the result.
        activated_by: ``module`` or ``function``.
        multiply: key of :data:`MULTIPLY`.
        add: key of :data:`ADD`.
        square: key of :data:`SQUARE`.
        swapped: whether operands stand the other way round.
    """

    form: str = "T4"
    layers: str = "module"
    bias: bool = True
    gate: str = "none"
    activation: str = "none"
    activated_by: str = "module"
    multiply: str = "operator"
    add: str = "operator"
    square: str = "product"
    swapped: bool = False


class Product(nn.Module):
    """act(gate(a(x)) * b(x) + c(x)) over 5 inputs and 7 outputs, as a spelling says."""

    def __init__(self, spelling: Spelling) -> None:
        super().__init__()
        self.spelling = spelling
        factors = {"T2": 0, "T3": 1}.get(spelling.form, 2)
        added = spelling.form in ("T2", "T2_4", "Quadra")
        self.together = spelling.layers in ("chunk", "split", "slice") and factors > 1
        self.with_first_order_addend = spelling.form == "Quadra"
        self.parts = factors + (self.with_first_order_addend and self.together)
        if self.together:
            self.wide = nn.Linear(5, 7 * self.parts, spelling.bias)
        else:
            for letter in "ab"[:factors]:
                self._make(letter)
        if added and not (self.together and self.with_first_order_addend):
            self._make("c")
        for name in ("gate", "activation"):
            kind = getattr(spelling, name)
            make = _MODULES.get(kind) if spelling.activated_by == "module" else None
            setattr(self, f"{name}_module", make() if make else None)

    def _make(self, letter: str) -> None:
        layer = nn.Linear(5, 7, self.spelling.bias)
        if self.spelling.layers == "sequential":
            layer = nn.Sequential(nn.Identity(), layer)
        if self.spelling.layers in ("function", "matmul", "named matmul"):
            if self.spelling.layers != "function":
                layer.weight = nn.Parameter(layer.weight.detach().t().contiguous())
            self.register_parameter(f"w_{letter}", layer.weight)
            self.register_parameter(f"b_{letter}", layer.bias)
        else:
            self.add_module(letter, layer)

    def _call(self, letter: str, x: torch.Tensor) -> torch.Tensor:
        if self.spelling.layers in ("matmul", "named matmul"):
            weight, bias = getattr(self, f"w_{letter}"), getattr(self, f"b_{letter}")
            if self.spelling.layers == "named matmul" and bias is not None:
                return torch.add(bias, torch.matmul(x, weight))
            return x @ weight if bias is None else x @ weight + bias
        if self.spelling.layers != "function":
            return getattr(self, letter)(x)
        return F.linear(x, getattr(self, f"w_{letter}"), getattr(self, f"b_{letter}"))

    def _activate(self, name: str, z: torch.Tensor) -> torch.Tensor:
        kind, module = getattr(self.spelling, name), getattr(self, f"{name}_module")
        if kind == "none":
            return z
        return _FUNCTIONS[kind](z) if module is None else module(z)

    def _pieces(self, x: torch.Tensor) -> list[torch.Tensor]:
        wide = self.wide(x)
        if self.spelling.layers == "chunk":
            return [torch.chunk(wide, self.parts, -1)[i] for i in range(self.parts)]
        if self.spelling.layers == "split":
            pieces = wide.split([7] * self.parts, dim=-1)
            return [pieces[i] for i in range(self.parts)]
        return [wide[..., 7 * i : 7 * i + 7] for i in range(self.parts)]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        s = self.spelling
        square = SQUARE[s.square]
        if s.form == "T2":
            return self._activate("activation", self._call("c", square(x)))
        if s.form == "T3":
            return self._activate("activation", square(self._call("a", x)))
        pieces = self._pieces(x) if self.together else [self._call("a", x), self._call("b", x)]
        left, right = self._activate("gate", pieces[0]), pieces[1]
        y = MULTIPLY[s.multiply](*((right, left) if s.swapped else (left, right)))
        if s.form != "T4":
            if len(pieces) > 2:
                c = pieces[2]
            else:
                c = self._call("c", square(x) if s.form == "T2_4" else x)
            y = ADD[s.add](*((c, y) if s.swapped else (y, c)))
        return self._activate("activation", y)


def fused_calls(model: nn.Module, **arguments: object) -> list[dict]:
    """Return the options of each fused call that runs when ``model`` is called."""
    graph = fx.symbolic_trace(model, arguments).graph
    return [node.kwargs for node in graph.nodes if node.target is quadratic_linear]
