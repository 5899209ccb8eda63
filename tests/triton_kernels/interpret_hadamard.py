"""The kernels of the Hadamard epilogue in Triton's interpreter, against float64."""

import itertools

import torch
from guarded import LAYOUTS, UNITS, Guarded

from qcompile.triton_kernels.elementwise.activations import ACTIVATE
from qcompile.triton_kernels.elementwise.backward import launch_backward
from qcompile.triton_kernels.elementwise.terms import Branches, Constants, Term
from qcompile.triton_kernels.elementwise.walk import walk_over
from qcompile.triton_kernels.hadamard.gpu import compute, gradients
from qcompile.triton_kernels.hadamard.reference import (
    epilogue_backward_reference,
    epilogue_reference,
)
from qcompile.triton_kernels.hadamard.spec import Spec

PLAIN = [
    Spec(),
    Spec("square"),
    Spec("none", activation="relu"),
    Spec(gate="gelu", activation="gelu_tanh"),
]
SCALED = [
    Spec(gate="silu", activation="gelu", outer=True),
    Spec(activation="relu"),
    Spec("square", activation="tanh", outer=True),
    Spec("none", activation="sigmoid"),
]
SHAPES = [(), (5, 33), (2, 3, 5, 4), (40, 3, 3), (2, 3, 1, 3, 2)]


def close(got, wanted, dtype, size, what):
    error = (got.double() - wanted).abs()
    assert (error <= 8 * UNITS[dtype] * (size + wanted.abs())).all(), (what, error.max().item())


def case(shape, dtype, layouts, spec, has_c, constants, channels):
    """Compare outputs and all gradients of one call."""
    guarded = Guarded()
    what = (shape, dtype, layouts, spec, has_c, constants)
    count = 1 + (spec.product == "pair") + has_c
    given = [guarded.make(shape, dtype, layout) for layout in layouts[:count]]
    grad = guarded.make(shape, dtype, layouts[-1])
    a = given[0]
    b = given[1] if spec.product == "pair" else None
    c = given[-1] if has_c else None
    of_constants = torch.float64 if dtype == torch.float64 else torch.float32
    scales = shifts = None
    if constants:
        rows = (spec.slots(has_c), shape[channels])
        scales = torch.randn(rows).to(of_constants) if "scale" in constants else None
        shifts = torch.randn(rows).to(of_constants) if "shift" in constants else None
    spec = Spec(spec.product, spec.gate, spec.activation, channels, spec.outer)
    exact = [None if x is None else x.double() for x in (a, b, c, scales, shifts)]
    y = compute(a, b, c, scales, shifts, spec)
    close(y, epilogue_reference(*exact, spec), dtype, 10 * _largest(exact), what)
    needs = [x is not None for x in (a, b, c, scales, shifts)]
    found = gradients(grad, a, b, c, scales, shifts, spec, needs)
    branches, *rest = epilogue_backward_reference(grad.double(), *exact, spec)
    size = 30 * _largest(exact) ** 3 * max(1.0, grad.abs().max().item())
    wanted = branches + [x for x in rest if x is not None]
    for x, w in zip(found, wanted, strict=True):
        # Constants sum over what the outer batch norm has rounded in half precision.
        own = dtype if x.shape == a.shape or dtype.itemsize == 2 else of_constants
        close(x, w, own, size * max(1, w.numel() and a.numel() // w.numel()) ** 0.5, what)
    guarded.check(what)


def _largest(tensors):
    return max([1.0] + [x.abs().max().item() for x in tensors if x is not None and x.numel()])


def check_layouts():
    """Every layout, alone or mixed with others, over some shapes that fill no tile."""
    for number, (shape, layout) in enumerate(itertools.product(SHAPES, LAYOUTS)):
        if number % 4 > 1 or (shape == () and layout != "contiguous"):
            continue
        mixed = (layout, "contiguous", layout, layout) if number % 3 else (layout,) * 4
        if number % 2 or not shape:
            case(shape, torch.float32, mixed, PLAIN[0], True, "", -1)
        else:
            channels = 1 if len(shape) > 2 else -1
            case(shape, torch.float32, mixed, SCALED[1], True, "scale shift", channels)


def check_forms():
    """Every form with and without constants in float64, some in every other type."""
    flat, matrix = (3, 350), (37, 5)
    layouts = ["contiguous"] * 4
    for has_c in (False, True):
        for spec in PLAIN:
            case(flat, torch.float64, layouts, spec, has_c, "", -1)
        for spec in SCALED:
            case(matrix, torch.float64, layouts, spec, has_c, "scale shift", -1)
    for dtype in UNITS:
        case(flat, dtype, layouts, PLAIN[3], True, "", -1)
        case(matrix, dtype, layouts, SCALED[0], True, "scale shift", -1)
        case((2, 3, 4), dtype, layouts, SCALED[0], True, "scale shift", 1)
    for constants in ("scale", "shift"):
        case((3, 5), torch.float32, layouts, PLAIN[3], True, constants, -1)


def check_activations():
    """Every activation in its tails, its middle and where it changes its formula."""
    z = torch.cat([torch.linspace(-30, 30, 601), torch.linspace(-0.6, 0.6, 601)]).double()
    grad = torch.randn(z.shape, dtype=torch.float64)
    for name in ACTIVATE:
        spec = Spec("none", activation=name)
        wanted = epilogue_reference(z, None, None, None, None, spec)
        slopes = epilogue_backward_reference(grad, z, None, None, None, None, spec)[0][0]
        for dtype, unit in ((torch.float64, 1e-14), (torch.float32, 1e-5)):
            x = z.to(dtype)
            got = compute(x, None, None, None, None, spec)
            rtol, atol = unit, unit
            torch.testing.assert_close(got.double(), wanted, rtol=rtol, atol=atol)
            (got,) = gradients(
                grad.to(dtype), x, None, None, None, None, spec, [True, *[False] * 4]
            )
            torch.testing.assert_close(got.double(), slopes, rtol=rtol, atol=atol)


def check_in_place():
    """Gradients written over the branches, which may be slices, are those written beside them."""
    for layout, dtype in itertools.product(("contiguous", "columns", "channels"), UNITS):
        guarded = Guarded()
        shape, term = (3, 5, 11), Term("pair", "silu", "gelu")
        grad, *given = (guarded.make(shape, dtype, layout) for _ in range(4))
        walk, _ = walk_over([grad, *given], None)
        beside = [walk.empty(x) for x in given]
        launch_backward(walk, grad, Branches(*given), Constants(), term, beside)
        launch_backward(walk, grad, Branches(*given), Constants(), term, given)
        assert all(torch.equal(x, y) for x, y in zip(given, beside, strict=True))
        guarded.check((layout, dtype))


def check_corners():
    """Empty tensors, one tensor in every role, NaN and infinity."""
    for shape in ((0,), (0, 3), (2, 0, 3), (3, 0)):
        x = torch.randn(shape)
        assert compute(x, x, x, None, None, Spec()).shape == shape
        found = gradients(x, x, x, x, None, None, Spec(), [True] * 3 + [False] * 2)
        assert [y.shape for y in found] == [shape] * 3
    x = torch.randn(5, 7)
    assert torch.equal(compute(x, x, x, None, None, Spec()), x * x + x)
    odd = torch.tensor([float("nan"), float("inf"), -float("inf"), 0.0, -0.0])
    for name in ("none", "relu"):
        spec = Spec("none", activation=name)
        wanted = epilogue_reference(odd, None, None, None, None, spec)
        got = compute(odd, None, None, None, None, spec)
        torch.testing.assert_close(got, wanted, rtol=0, atol=0, equal_nan=True)


if __name__ == "__main__":
    torch.manual_seed(0)
    check_layouts()
    check_forms()
    check_activations()
    check_in_place()
    check_corners()
    print("checked")
