"""How a strategy is chosen and remembered, with a clock and tensors that need no GPU."""

import json
import subprocess
import sys

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from qcompile.errors import ConfigurationError
from qcompile.triton_kernels import dispatch
from qcompile.triton_kernels.dispatch import Choices, Dispatcher, can_measure
from qcompile.triton_kernels.quadratic_linear import call as quadratic_linear_call
from qcompile.triton_kernels.quadratic_linear.call import FUSED_DEPTH, QuadraticLinearCall
from qcompile.triton_kernels.quadratic_linear.forms import FORMS
from qcompile.triton_kernels.quadratic_linear.problem import Problem
from qcompile.triton_kernels.quadratic_linear.strategies import Strategy
from qcompile.triton_kernels.quadratic_linear.tiles import NARROW


def problem(rows=33, depth=16, columns=8, *, form="Quadra", dtype=torch.bfloat16, **more):
    letters = FORMS[form].letters
    x = torch.randn(rows, depth).to(dtype)
    weights = {letter: torch.randn(columns, depth).to(dtype) for letter in letters}
    return Problem(x, weights, dict.fromkeys(letters), form, "none", "none", **more)


class Clock:
    """Gives each strategy the seconds that a table says, and counts how often it was asked."""

    def __init__(self, seconds, default=1.0):
        self.seconds, self.default, self.asked = seconds, default, []

    def __call__(self, run):
        (name,) = run.args
        self.asked.append(name)
        seconds = self.seconds.get(name, self.default)
        if isinstance(seconds, Exception):
            raise seconds
        return seconds


def _name(strategy):
    return "/".join(x for x in (strategy.kind, strategy.tile, strategy.engine) if x)


def call(*size, training=False, **more):
    return QuadraticLinearCall(problem(*size, **more), training)


def kind(problem, training=False):
    return QuadraticLinearCall(problem, training).kind()


def dispatcher(seconds, path=None, default=1.0):
    clock = Clock(seconds, default)
    return Dispatcher(Choices(path), clock), clock


def test_the_fastest_is_chosen_once():
    chooser, clock = dispatcher({"concat": 0.5, "plain": 0.9})
    assert chooser.choose(call()) == "concat"
    assert sorted(clock.asked) == sorted(call().names())
    asked = len(clock.asked)
    assert chooser.choose(call()) == "concat"
    assert chooser.choose(call(rows=64)) == "concat"  # the next power of two is 64, too
    assert len(clock.asked) == asked
    chooser.choose(call(rows=65))
    assert len(clock.asked) > asked


def test_plain_torch_is_kept_unless_another_is_clearly_faster():
    for seconds, wanted in ((1.0, "plain"), (0.98, "plain"), (0.96, "concat")):
        chooser, _ = dispatcher({"concat": seconds, "plain": 1.0}, default=2.0)
        assert chooser.choose(call()) == wanted


@pytest.mark.parametrize("engine", ["kept", "narrow"])
def test_in_training_only_the_best_tile_is_tried_with_own_products(engine):
    every = call(training=True).names()
    libraries = [name for name in every if name.endswith("/library")]
    best = libraries[1]
    own = best.removesuffix("library") + engine
    chooser, clock = dispatcher({best: 0.5, own: 0.4})
    assert chooser.choose(call(training=True)) == own
    assert [name for name in clock.asked if name.endswith(f"/{engine}")] == [own]
    chooser, _ = dispatcher({best: 0.5, own: 0.6})
    assert chooser.choose(call(training=True)) == best


def test_only_short_rows_of_half_precision_are_recomputed_beside_their_gradients(monkeypatch):
    def engines(**more):
        names = QuadraticLinearCall(problem(**more), True).names()
        return {name.rpartition("/")[2] for name in names if name.startswith("fused")}

    assert engines(depth=NARROW) == {"library", "kept", "narrow"}
    assert engines(depth=NARROW + 1) == {"library", "kept"}
    assert engines(depth=NARROW, dtype=torch.float32) == {"library"}
    monkeypatch.setattr(quadratic_linear_call, "precision", lambda dtype: "tf32")
    assert engines(depth=NARROW, dtype=torch.float32) == {"library", "kept"}
    training = QuadraticLinearCall(problem(depth=NARROW), True)
    assert training.rule().endswith("/narrow")
    assert QuadraticLinearCall(problem(depth=NARROW), False).rule().endswith("/library")


def test_what_does_not_run_here_is_not_chosen():
    from triton.runtime.errors import OutOfResources

    refusals = (OutOfResources(1, 0, "shared memory"), torch.OutOfMemoryError("full"))
    for refusal in refusals:
        chooser, _ = dispatcher({"plain": 0.9}, default=refusal)
        assert chooser.choose(call()) == "plain"
    chooser, _ = dispatcher({"concat": ValueError("a fault of ours")})
    with pytest.raises(ValueError, match="a fault of ours"):
        chooser.choose(call())
    chooser, _ = dispatcher({"plain": torch.OutOfMemoryError("full")}, default=0.1)
    with pytest.raises(torch.OutOfMemoryError):
        chooser.choose(call())


def test_choices_outlive_the_process(tmp_path):
    path = tmp_path / "folder" / "choices.json"
    first, clock = dispatcher({"concat": 0.5}, path)
    first.choose(call())
    assert clock.asked
    assert [p.name for p in path.parent.iterdir()] == [path.name]  # nothing temporary is left
    second, clock = dispatcher({}, path)
    assert second.choose(call()) == "concat"
    assert not clock.asked


def test_processes_add_to_one_file(tmp_path):
    path = tmp_path / "choices.json"
    one, _ = dispatcher({"concat": 0.5}, path)
    other, _ = dispatcher({"concat": 0.5}, path)
    one.choose(call())
    other.choose(call(depth=32))
    assert len(json.loads(path.read_text())) == 2


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        '{"kind": 3}',
        "\x00\xff",
        "[" * 100_000,
        "{" + " " * dispatch.MOST_BYTES + "}",
    ],
    ids=["empty", "torn", "list", "null", "number", "binary", "deep", "huge"],
)
def test_a_broken_file_is_as_good_as_none(tmp_path, text):
    path = tmp_path / "choices.json"
    path.write_text(text)
    chooser, clock = dispatcher({"concat": 0.5}, path)
    assert chooser.choose(call()) == "concat"
    assert clock.asked
    assert "concat" in json.loads(path.read_text()).values()


@pytest.mark.parametrize("name", ["fused/1x1x1x1/library", "fused/../../x/kept", "rm", "concat/a"])
def test_a_name_from_the_file_must_be_a_candidate(tmp_path, name):
    path = tmp_path / "choices.json"
    chooser, _ = dispatcher({"concat": 0.5}, path)
    chooser.choose(call())
    path.write_text(json.dumps(dict.fromkeys(json.loads(path.read_text()), name)))
    chooser, clock = dispatcher({"concat": 0.5}, path)
    assert chooser.choose(call()) == "concat"
    assert clock.asked


def test_a_folder_that_cannot_be_written_does_no_harm(tmp_path):
    (tmp_path / "file").write_text("")
    chooser, _ = dispatcher({"concat": 0.5}, tmp_path / "file" / "choices.json")
    assert chooser.choose(call()) == "concat"


def test_without_measuring_depth_decides_and_nothing_is_remembered(tmp_path):
    path = tmp_path / "choices.json"
    chooser, clock = dispatcher({"concat": 0.5}, path)
    assert chooser.choose(call(depth=FUSED_DEPTH), measure=False).startswith("fused/")
    assert chooser.choose(call(depth=FUSED_DEPTH + 1), measure=False) == "plain"
    assert not clock.asked
    assert not path.exists()
    chooser.choose(call(depth=FUSED_DEPTH))
    assert chooser.choose(call(depth=FUSED_DEPTH), measure=False) == "concat"


def test_single_precision_without_tensor_cores_is_not_fused_unmeasured():
    assert call(dtype=torch.float32).rule() == "plain"
    assert call(dtype=torch.float32, lowered=torch.bfloat16).rule().startswith("fused/")


def test_kinds_tell_apart_what_matters():
    base = problem()
    transposed = Problem(base.x.t().contiguous().t(), *list(vars(base).values())[1:])
    others = [
        problem(depth=15),
        problem(columns=9),
        problem(rows=65),
        problem(form="T4"),
        problem(dtype=torch.float16),
        Problem(*list(vars(base).values())[:4], "silu", "none"),
        Problem(*list(vars(base).values())[:4], "none", "silu"),
        transposed,
    ]
    kinds = {kind(p) for p in (base, *others)} | {kind(base, True)}
    assert len(kinds) == len(others) + 2
    assert kind(problem(rows=40)) == kind(base)
    lowered = problem(lowered=torch.float16)
    assert kind(lowered) == kind(problem(dtype=torch.float16))


def test_nothing_is_measured_while_somebody_watches():
    x = torch.randn(3)
    assert can_measure(x)
    with FlopCounterMode(display=False):
        assert not can_measure(x)
    with FakeTensorMode() as mode:
        assert not can_measure(mode.from_tensor(x))
    assert not can_measure(mode.from_tensor(x))


def test_strategies_have_names():
    for training in (False, True):
        for name in call(training=training).names():
            assert _name(Strategy.parse(name)) == name
    for wrong in ("", "fused", "fused/64x64x64x8/both", "plain/kept", "eager"):
        with pytest.raises(ConfigurationError, match="no strategy"):
            Strategy.parse(wrong)


def test_dispatch_needs_no_triton():
    script = (
        "import sys; sys.modules['triton'] = None\n"
        "from qcompile.triton_kernels import dispatch\n"
        "from qcompile.triton_kernels.quadratic_linear import op\n"
        "assert dispatch.cache_path() is None\n"
        "import torch\n"
        "x = torch.ones(2, 3)\n"
        "assert op.quadratic_linear(x, torch.ones(4, 3), torch.ones(4, 3)).eq(9).all()\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=300)
