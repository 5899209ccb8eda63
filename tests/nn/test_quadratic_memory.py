"""Hybrid back-propagation: every level computes, counts and differentiates as level 0 does."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

import qcompile
from qcompile.config import FORMS, NORMS
from qcompile.errors import ConfigurationError
from qcompile.models import qvgg7
from qcompile.nn import (
    QuadraticBlock,
    QuadraticConv1d,
    QuadraticConv2d,
    QuadraticConv3d,
    QuadraticLinear,
)
from qcompile.nn.quadratic import elementwise, hybrid

CONVOLUTIONS = {1: QuadraticConv1d, 2: QuadraticConv2d, 3: QuadraticConv3d}
LEVELS = (1, 3)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """Let the small inputs of these tests take several chunks, the last one shorter."""
    monkeypatch.setitem(elementwise.CHUNK_ELEMENTS, "cpu", 100)
    monkeypatch.setitem(hybrid.PART_ELEMENTS, "cpu", 400)


def layer(dims, form, dtype=torch.float64, **options):
    if not dims:
        return QuadraticLinear(5, 3, form=form, dtype=dtype, **options)
    options = {"padding": 1, "groups": 2, "padding_mode": "reflect"} | options
    return CONVOLUTIONS[dims](4, 6, 3, form=form, dtype=dtype, **options)


def inputs(dims, dtype=torch.float64):
    return torch.randn(5, *([4, 7, 6, 5][: dims + 1] if dims else [5]), dtype=dtype)


def randomised(module):
    """Scales and offsets that are neither one nor zero."""
    for parameter in module.parameters():
        if parameter.dim() == 1:
            nn.init.normal_(parameter)
    return module


def step(module, x, *, scale=1.0, context=None):
    """Return output, gradients by name and buffers after forward and backward."""
    module.zero_grad()
    x = x.clone().requires_grad_(x.is_floating_point())
    with context or torch.enable_grad():
        y = module(x)
    weights = torch.linspace(-1, 2, y.numel(), dtype=torch.float64).view(y.shape).to(y.dtype)
    (y * weights * scale).sum().backward()
    gradients = {"x": x.grad} | {name: p.grad for name, p in module.named_parameters()}
    return y.detach(), gradients, dict(module.named_buffers())


def at_level(module, level):
    other = copy.deepcopy(module)
    for part in other.modules():
        if hasattr(part, "memory"):
            part.memory = level
    return other


def agree(module, x, level, rtol=1e-9, **options):
    """Compare two steps with level 0's: same bits forward and in buffers, same gradients."""
    twin = at_level(module, level)
    for _ in range(2):
        expected, right, buffers = step(module, x, **options)
        got, gradients, own = step(twin, x, **options)
        assert torch.equal(got, expected)
        for name, gradient in right.items():
            if gradient is None:
                assert gradients[name] is None, name
            else:
                largest = gradient.abs().max().clamp(min=1).item()
                torch.testing.assert_close(
                    *(gradients[name], gradient), rtol=rtol, atol=rtol * largest, msg=name
                )
        assert own.keys() == buffers.keys()
        for name, buffer in buffers.items():
            assert torch.equal(own[name], buffer), name


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("batch_norm", NORMS)
@pytest.mark.parametrize("dims", [0, 1, 2, 3])
@pytest.mark.parametrize("form", FORMS)
def test_blocks(form, dims, batch_norm, level):
    block = QuadraticBlock(layer(dims, form), batch_norm, nn.ReLU() if dims != 1 else nn.SiLU())
    agree(randomised(block), inputs(dims), level)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("bias", [True, False, "a"])
@pytest.mark.parametrize("dims", [0, 2])
@pytest.mark.parametrize("form", FORMS)
def test_layers(form, dims, bias, level):
    module = randomised(layer(dims, form, bias=bias))
    agree(module, inputs(dims), level)
    unbatched = inputs(dims)[0]
    agree(module, unbatched, level)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(
    "options",
    [
        {"padding": "same", "padding_mode": "zeros", "kernel_size": (2, 4)},
        {"padding": "same", "padding_mode": "circular", "kernel_size": (2, 3)},
        {"padding": "same", "padding_mode": "zeros", "dilation": 2, "groups": 4},
        {"padding": "valid", "padding_mode": "zeros"},
        {"padding": (2, 0), "padding_mode": "zeros", "stride": (2, 1)},
        {"padding": (0, 1), "padding_mode": "replicate", "stride": 3},
    ],
)
@pytest.mark.parametrize("form", ["T1L", "T2_4", "Quadra"])
def test_geometries(form, options, level):
    options = {"padding": 1, "groups": 2, "kernel_size": 3} | options
    module = QuadraticConv2d(4, 8, form=form, dtype=torch.float64, **options)
    agree(module, inputs(2), level)
    agree(QuadraticBlock(module, "both", nn.Tanh()), inputs(2), level)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("batch_norm", ["branch", "both"])
@pytest.mark.parametrize("form", FORMS)
def test_gradients_are_those_of_finite_differences(form, batch_norm, level):
    block = QuadraticBlock(layer(0, form), batch_norm, nn.Softplus(), memory=level)
    block = randomised(block)
    names, parameters = zip(*block.named_parameters(), strict=True)

    def function(x, *values):
        return torch.func.functional_call(block, dict(zip(names, values, strict=True)), (x,))

    x = inputs(0).requires_grad_()
    assert torch.autograd.gradcheck(function, (x, *parameters))


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("form", ["T1L", "T3", "T2_4", "Quadra"])
def test_gradients_of_gradients(form, level):
    block = randomised(QuadraticBlock(layer(0, form), "both", nn.Tanh()))
    results = []
    for module in (block, at_level(block, level)):
        x = (inputs(0) if not results else results[0][0]).detach().requires_grad_()
        (first,) = torch.autograd.grad(module(x).pow(2).sum(), x, create_graph=True)
        first.pow(2).sum().backward()
        results.append((x, x.grad, *(p.grad for p in module.parameters())))
    for expected, got in zip(*results, strict=True):
        if expected is not None:
            torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(
    "activation",
    [
        *(nn.CELU(0.5), nn.ELU(0.7), nn.GELU(), nn.GELU("tanh"), nn.Hardsigmoid(), nn.Hardswish()),
        *(nn.Hardtanh(-0.3, 0.4), nn.LeakyReLU(0.2), nn.LogSigmoid(), nn.Mish(), nn.ReLU6()),
        *(nn.SELU(), nn.Sigmoid(), nn.Softplus(2.0, 1.0), nn.Softsign(), nn.Tanh()),
        *(nn.ReLU(inplace=True), nn.PReLU(6, dtype=torch.float64), nn.Sequential(nn.ReLU()), None),
    ],
    ids=repr,
)
def test_activations(activation, level):
    agree(QuadraticBlock(layer(2, "Quadra"), "branch", activation), inputs(2), level)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(
    ("dims", "activation", "pool"),
    [
        (2, nn.ReLU(), nn.MaxPool2d(2)),
        (2, None, nn.MaxPool2d((3, 2), stride=(2, 1), padding=(1, 0), ceil_mode=True)),
        (2, nn.SiLU(), nn.MaxPool2d(2, dilation=2)),
        (3, nn.Tanh(), nn.MaxPool3d(2, stride=1)),
        (1, nn.ReLU(), nn.MaxPool1d(2)),
        (2, nn.PReLU(dtype=torch.float64), nn.MaxPool2d(2)),
        (2, nn.ReLU(), nn.AvgPool2d(2)),
    ],
    ids=repr,
)
def test_poolings(dims, activation, pool, level):
    block = QuadraticBlock(layer(dims, "Quadra"), "both", activation, pool)
    agree(randomised(block), inputs(dims), level)
    agree(QuadraticBlock(layer(dims, "T2"), "none", activation, pool), inputs(dims), level)


NORM_OPTIONS = [
    {"momentum": None},
    {"affine": False},
    {"track_running_stats": False},
    {"eps": 0.1, "momentum": 0.7},
]


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("options", NORM_OPTIONS, ids=str)
def test_kinds_of_batch_norm(options, level):
    block = QuadraticBlock(layer(2, "Quadra"), "both", nn.ReLU())
    for name in ("norm_a", "norm"):
        setattr(block, name, nn.BatchNorm2d(6, dtype=torch.float64, **options))
    agree(block, inputs(2), level)


@pytest.mark.parametrize("level", LEVELS)
def test_evaluation_mode_and_frozen_batch_norms(level):
    block = randomised(QuadraticBlock(layer(2, "T2_4"), "both", nn.ReLU()))
    with torch.no_grad():
        block(3 * inputs(2) + 1)
    agree(block.eval(), inputs(2), level)
    agree(block.train(), inputs(2), level)
    block.norm_b.eval()
    agree(block, inputs(2), level)


@pytest.mark.parametrize("level", LEVELS)
def test_only_what_is_needed_gets_a_gradient(level):
    block = QuadraticBlock(layer(2, "Quadra"), "both", nn.ReLU())
    names = [name for name, _ in block.named_parameters()]
    x = inputs(2)
    for wanted in ([names[0]], [names[1], "norm.weight"], ["norm_c.bias"], names[2:5]):
        for name, parameter in block.named_parameters():
            parameter.requires_grad_(name in wanted)
        agree(block, x, level)
        frozen = at_level(block, level)
        y = frozen(x)  # an input that needs none
        y.sum().backward()
        got = [name for name, p in frozen.named_parameters() if p.grad is not None]
        assert sorted(got) == sorted(wanted)
    block.requires_grad_(False)
    agree(block, x, level)
    assert not at_level(block, level)(x).requires_grad


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("form", FORMS)
def test_autocast(form, level):
    block = QuadraticBlock(layer(2, form, torch.float32, bias=False), "both", nn.ReLU())
    model = nn.Sequential(block, nn.Flatten(), QuadraticLinear(6 * 42, 3, form=form))
    twin = at_level(model, level)
    x = inputs(2, torch.float32)
    results = []
    for module in (model, twin):
        context = torch.autocast("cpu", dtype=torch.bfloat16)
        results.append(step(module, x, context=context))
    (expected, right, buffers), (got, gradients, own) = results
    assert got.dtype == torch.bfloat16
    assert torch.equal(got, expected)
    assert all(torch.equal(own[name], buffer) for name, buffer in buffers.items())
    exact = step(model, x)[1]
    for name, gradient in right.items():
        assert gradients[name].dtype == gradient.dtype
        errors = [(g - exact[name]).norm() for g in (gradient, gradients[name])]
        assert errors[1] <= 1.2 * errors[0] + 1e-2 * exact[name].norm() + 1e-3, name


@pytest.mark.parametrize("level", LEVELS)
def test_scaled_losses_give_scaled_gradients(level):
    block = at_level(QuadraticBlock(layer(2, "Quadra"), "both", nn.ReLU()), level)
    x = inputs(2)
    plain, scaled = step(block, x)[1], step(block, x, scale=1024.0)[1]
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for name, gradient in plain.items():
        if gradient is not None:
            torch.testing.assert_close(scaled[name], 1024 * gradient)
    optimizer = torch.optim.SGD(block.parameters(), lr=0.1)
    scaler.scale(block(x).sum()).backward()
    scaler.step(optimizer)
    scaler.update()


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("form", ["T1L", "T2_4", "Quadra"])
def test_channels_last(form, level):
    block = QuadraticBlock(layer(2, form, torch.float32, bias=False), "both", nn.ReLU())
    block = block.to(memory_format=torch.channels_last)
    x = inputs(2, torch.float32).to(memory_format=torch.channels_last)
    agree(block, x, level, rtol=1e-4)
    y = at_level(block, level)(x)
    assert y.stride() == block(x).stride()


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_around_a_block(reentrant, level):
    block = QuadraticBlock(layer(2, "Quadra"), "both", nn.ReLU())

    class Around(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return checkpoint(self.inner, x, use_reentrant=reentrant)

    x = inputs(2)
    twin = Around(at_level(block, level))
    for _ in range(2):
        expected, right, buffers = step(block, x)
        got, gradients, own = step(twin, x)
        assert torch.equal(got, expected)
        for name, buffer in buffers.items():  # counted once, which checkpointing level 0 does not
            assert torch.equal(own[f"inner.{name}"], buffer), name
        for name, gradient in right.items():
            if gradient is not None:
                torch.testing.assert_close(
                    gradients[name if name == "x" else f"inner.{name}"], gradient
                )


@pytest.mark.parametrize("level", LEVELS)
def test_backward_twice(level):
    block = at_level(QuadraticBlock(layer(2, "Quadra"), "both", nn.ReLU()), level)
    loss = block(inputs(2)).pow(2).sum()
    loss.backward(retain_graph=True)
    first = [p.grad.clone() for p in block.parameters() if p.grad is not None]
    loss.backward()
    second = [p.grad for p in block.parameters() if p.grad is not None]
    for once, twice in zip(first, second, strict=True):
        torch.testing.assert_close(twice, 2 * once)


def test_distributed_data_parallel(tmp_path):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    try:
        block = QuadraticBlock(layer(2, "Quadra"), "both", nn.ReLU())
        x = inputs(2)
        expected = step(copy.deepcopy(block), x)[1]
        parallel = nn.parallel.DistributedDataParallel(at_level(block, 3))
        gradients = step(parallel, x)[1]
        for name, gradient in expected.items():
            key = name if name == "x" else f"module.{name}"
            if gradient is not None:
                torch.testing.assert_close(gradients[key], gradient)
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("form", ["T1", "T2_4", "Quadra"])
def test_compiled_blocks(form, level):
    block = QuadraticBlock(layer(2, form, torch.float32, bias=False), "both", nn.ReLU())
    twin = at_level(block, level)
    twin.compile(fullgraph=True, backend="aot_eager")
    x = inputs(2, torch.float32)
    expected, right, buffers = step(block, x)
    got, gradients, own = step(twin, x)
    torch.testing.assert_close(got, expected)
    for name, buffer in buffers.items():
        assert torch.equal(own[name], buffer), name
    for name, gradient in right.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("level", LEVELS)
def test_traces_and_transforms_see_plain_operators(level):
    block = QuadraticBlock(layer(0, "Quadra"), "none", nn.Tanh(), memory=level)
    x = inputs(0)
    assert torch.equal(torch.fx.symbolic_trace(block)(x), block(x))
    program = torch.export.export(block, (x,))
    assert torch.equal(program.module()(x), block(x))
    jacobian = torch.func.vmap(torch.func.jacrev(block))(x)
    torch.testing.assert_close(jacobian, torch.func.vmap(torch.func.jacrev(at_level(block, 0)))(x))


def saved(module, x):
    """Count the bytes that autograd keeps beside parameters and input."""
    own = {tensor.untyped_storage().data_ptr() for tensor in [x, *module.parameters()]}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = module(x)
    kept.pop(y.untyped_storage().data_ptr(), None)
    del y
    return sum(kept.values())


def test_level_one_keeps_the_branches_and_level_three_nothing_of_the_batch():
    layers = QuadraticConv2d(8, 8, 3, padding=1, bias=False)
    block = QuadraticBlock(layers, "both", nn.ReLU())
    x = torch.randn(4, 8, 16, 16, requires_grad=True)
    activation = x.numel() * 4
    constants = 4 * 2 * 8 * 4
    assert saved(block, x) >= 6 * activation
    assert saved(at_level(block, 1), x) == 3 * activation + constants
    assert saved(at_level(block, 3), x) == constants


@pytest.mark.parametrize(
    ("form", "one", "three"),
    [("T1", 0, 0), ("T2", 0, 0), ("T3", 1, 0), ("T4", 2, 0), ("T2_4", 2, 0), ("Quadra", 2, 0)],
)
def test_layers_keep_no_more_than_their_factors(form, one, three):
    module = QuadraticLinear(8, 8, form=form)
    x = torch.randn(64, 8, requires_grad=True)
    activation = x.numel() * 4
    assert saved(at_level(module, 1), x) == one * activation
    assert saved(at_level(module, 3), x) == three * activation


@pytest.mark.parametrize(
    ("form", "batch_norm", "share"),
    [
        ("Quadra", "both", 4 / 3),
        ("T2", "none", 1),
        ("Quadra", "none", 11 / 9),
        ("T4", "none", 4 / 3),
    ],
)
def test_operations_of_level_three(form, batch_norm, share):
    block = QuadraticBlock(QuadraticConv2d(4, 4, 3, form=form), batch_norm)
    counts = []
    for level in (0, 1, 3):
        x = torch.randn(2, 4, 8, 8, requires_grad=True)
        with FlopCounterMode(display=False) as counter:
            at_level(block, level)(x).sum().backward()
        counts.append(counter.get_total_flops())
    assert counts[1] == counts[0]
    assert counts[2] / counts[0] == pytest.approx(share)


def test_the_network_trains_to_the_same_weights():
    models = []
    for level in (0, 1, 3):
        torch.manual_seed(3)
        model = qvgg7(4, scale=1 / 16, memory=level).double()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        for _ in range(3):
            x, labels = torch.randn(6, 3, 32, 32).double(), torch.randint(4, (6,))
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), labels).backward()
            optimizer.step()
        models.append(model.state_dict())
    for name, expected in models[0].items():
        for other in models[1:]:
            torch.testing.assert_close(other[name], expected)


def test_transform_sets_the_level():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3))
    new = qcompile.transform(model, "Quadra", batch_norm="branch", memory=3)
    assert (new[0].memory, new[3].memory) == (3, 3)
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(new(x), model(x))
    with pytest.raises(ConfigurationError, match=r"memory must be .* got 2"):
        qcompile.transform(model, "Quadra", memory=2)


def test_levels_are_checked_shown_and_copied():
    module = QuadraticLinear(3, 4, memory=3)
    assert eval(repr(module)).memory == 3
    assert copy.deepcopy(module).memory == 3
    block = QuadraticBlock(module, memory=1)
    assert "memory=1" in repr(block)
    for wrong in (2, True, "auto", None):
        with pytest.raises(ConfigurationError, match="memory must be 0"):
            block.memory = wrong
    assert block.memory == 1


def test_batch_norms_that_cannot_be_repeated_are_refused():
    block = QuadraticBlock(QuadraticConv2d(3, 4, 3), "outer", memory=3)
    block.norm = nn.GroupNorm(2, 4)
    with pytest.raises(ConfigurationError, match="cannot repeat GroupNorm: set memory=0"):
        block(torch.randn(2, 3, 8, 8))
    block.memory = 0
    assert block(torch.randn(2, 3, 8, 8)).shape == (2, 4, 6, 6)
    single = QuadraticBlock(QuadraticLinear(3, 4), memory=3)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        single(torch.randn(1, 3))
