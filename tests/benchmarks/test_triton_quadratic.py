"""The GPU benchmark's parts that need no GPU: who takes part, floors, bars, the command line."""

import json
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
import triton_quadratic
from gpu import checks, elementwise, linear, networks, prediction
from gpu.roofline import Ceilings, Work, measure_ceilings
from gpu.table import FORWARD, TRAINING, bars, rows_of, show
from gpu.timing import Result, race

COMPILED, AUTOTUNED = linear.COMPILED


@pytest.fixture
def uncompiled(monkeypatch):
    """Leave functions as they are: what is compared here is what they are asked to compute."""
    monkeypatch.setattr(torch, "compile", lambda way, **_: way)


def test_without_a_gpu_it_says_so_and_writes_nothing(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    command = [sys.executable, triton_quadratic.__file__, "--json", tmp_path / "x.json"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == triton_quadratic.NO_GPU == 2
    assert "no GPU" in ended.stderr
    assert "Nothing was measured or written" in ended.stderr
    assert not ended.stdout
    assert not list(tmp_path.iterdir())


def test_the_command_line():
    options = triton_quadratic.parsed(["--quick", "--only", "linear*"])
    assert (options.quick, options.only, options.rounds) == (True, "linear*", 11)
    assert options.json is None
    assert triton_quadratic.parsed([]).rounds == 41
    with pytest.raises(SystemExit):
        triton_quadratic.parsed(["--rounds", "0"])


def test_calls_have_names_of_their_own():
    texts = [triton_quadratic.text(about) for about, *_ in triton_quadratic.calls(False)]
    assert len(set(texts)) == len(texts)
    assert set(map(triton_quadratic.text, (a for a, *_ in triton_quadratic.calls(True))))
    quadra = [text for text in texts if fnmatch(text, "linear Quadra *x11008 forward")]
    assert quadra == ["linear Quadra 8192x4096x11008 forward"]
    assert texts[-1] == "network QVGG-7 step 512x3x32x32 forward + backward"


def test_modes_of_compilation():
    graphs = {COMPILED: "default", AUTOTUNED: "max-autotune"}
    assert linear.compile_modes(False, graphs=True) == graphs
    assert linear.compile_modes(False)[AUTOTUNED] == "max-autotune-no-cudagraphs"
    assert linear.compile_modes(True) == {COMPILED: "default"}
    assert set(graphs.values()) <= torch._inductor.list_mode_options().keys() | {"default"}


def test_a_race_is_run_in_turns_and_outlives_who_fails():
    order = []
    clock = iter(range(100))

    def timer(run):
        run()
        return next(clock) % 4

    def fails():
        raise RuntimeError("no room\nfor this")

    contestants = {"a": lambda: order.append("a"), "b": fails, "c": lambda: order.append("c")}
    results = race(contestants, 3, timer, lambda run: 5.0)
    assert order[-6:] == ["a", "c"] * 3
    assert (results["a"].ms, results["c"].ms) == (0, 1)  # of 0, 2, 0 and of 1, 3, 1
    assert results["a"].samples == [0, 2, 0]
    assert results["a"].peak_mib == 5
    assert (results["b"].ms, results["b"].error) == (None, "RuntimeError: no room")


def test_the_least_work_of_a_layer():
    case = linear.LinearCase(100, 20, 30, "Quadra")
    assert case.work(False) == Work(2 * 3 * 100 * 20 * 30, 2 * (100 * 20 + 3 * 600 + 100 * 30))
    backward = 2 * (2 * 100 * 20 + 2 * 3 * 600 + 100 * 30)
    assert case.work(True) == case.work(False) + Work(2 * case.work(False).operations, backward)
    assert linear.LinearCase(100, 20, 30, "T3").work(False).operations == 2 * 100 * 20 * 30


@pytest.mark.parametrize(
    ("options", "forward", "backward"),
    [
        ({}, 3, 5),  # a, b, y; gradient, a, b and two gradients
        ({"added": True}, 4, 5),
        ({"added": True, "activation": "relu"}, 4, 7),
        ({"product": "square"}, 2, 3),
    ],
)
def test_the_least_bytes_of_an_epilogue(options, forward, backward):
    case = elementwise.ElementwiseCase("", **options, rows=10, columns=20)
    assert case.work(False) == Work(0, forward * 10 * 20 * 2)
    assert case.work(True) == Work(0, (forward + backward) * 10 * 20 * 2)


def test_the_floor_is_the_scarcer_of_bytes_and_operations():
    ceilings = Ceilings(bytes_per_ms=100.0, operations_per_ms=1000.0)
    assert Work(5000, 200).floor_ms(ceilings) == 5.0
    assert Work(1000, 200).floor_ms(ceilings) == 2.0


def test_ceilings_count_both_directions_of_a_copy(monkeypatch):
    monkeypatch.setattr("gpu.roofline.COPIED", 1000)
    monkeypatch.setattr("gpu.roofline.SIDE", 8)
    times = iter([9.0] + [2.0] * 14 + [9.0] + [4.0] * 14)

    def timer(run):
        run()
        return next(times)

    found = measure_ceilings(timer, torch.float32, "cpu")
    assert found == Ceilings(1000.0, 2 * 8**3 / 4.0)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    "case",
    [
        linear.LinearCase(9, 5, 7, "Quadra", dtype=torch.float32),
        linear.LinearCase(9, 5, 7, "T4", "silu", torch.float32),
        linear.LinearCase(9, 5, 7, "T2_4", dtype=torch.float32),
        elementwise.ElementwiseCase("", added=True, rows=9, columns=7, dtype=torch.float32),
        elementwise.ElementwiseCase("", gate="silu", rows=9, columns=7, dtype=torch.float32),
        elementwise.ElementwiseCase(
            "", activation="relu", added=True, normalised=True, rows=9, dtype=torch.float32
        ),
    ],
    ids=lambda case: case.name or case.gate,
)
def test_contestants_compute_the_same(uncompiled, case, training):
    part = linear if isinstance(case, linear.LinearCase) else elementwise
    ways = part.contestants(case, training, False, "cpu")
    assert {"eager", COMPILED, AUTOTUNED, linear.OURS} <= ways.keys()
    if part is linear:
        assert any(name.startswith(f"{linear.OURS} fused/") for name in ways)
        assert f"{linear.OURS} concat" in ways
    wanted = ways.pop("eager")()
    for name, way in ways.items():
        torch.testing.assert_close(way(), wanted, msg=name)


@pytest.mark.parametrize("part", ["block", "network"])
def test_networks_compute_the_same(uncompiled, monkeypatch, part):
    monkeypatch.setattr(networks, "LOWERED", None)
    if part == "block":
        ways = networks.block_contestants(networks.BlockCase(4, 6, 5), True, "cpu")
    else:
        ways = networks.step_contestants(networks.NetworkCase(8, 1 / 8), True, "cpu")
    found = {name: step() for name, step in ways.items()}
    levels = {f"{linear.OURS}, level {level}" for level in (0, 1, 3)}
    assert found.keys() >= {"eager", COMPILED, *levels}
    for name, y in found.items():
        torch.testing.assert_close(y, found["eager"], rtol=1e-3, atol=1e-3, msg=name)


def test_blocks_are_compared_with_float64():
    made = list(checks.blocks("cpu"))
    assert len(made) == 3 * 5
    assert all(check.ok and check.error < 1e-4 for check in made)
    assert not checks.Check("", float("nan"), 1.0).ok


def results(eager=10.0, compiled=4.0, autotuned=3.0, ours=1.5, peak=(8.0, 4.0)):
    times = {"eager": eager, COMPILED: compiled, AUTOTUNED: autotuned, linear.OURS: ours}
    peaks = dict.fromkeys(times, peak[0]) | {linear.OURS: peak[1]}
    return {name: Result(ms, peaks[name], "" if ms else "failed") for name, ms in times.items()}


def named(rows):
    return {bar["name"]: bar for bar in bars(rows)}


def layer(k, passes=FORWARD, floor=1.2, case="Quadra", **times):
    return rows_of(("linear", case, (64, k, 64), passes), results(**times), floor)


def test_speed_ups_are_over_the_faster_of_the_compiled():
    found = named([*layer(128), *layer(256, ours=1.0), *layer(512, ours=2.0)])
    what = "forward: least speed-up over torch.compile"
    assert found[f"{what}, K ≤ 256"] == {
        "name": f"{what}, K ≤ 256",
        "value": 2.0,
        "target": 2.0,
        "ok": True,
    }
    assert found[f"{what}, K 512 to 768"]["value"] == 1.5
    assert found[f"{what}, all layers"]["value"] == 1.5
    assert not any("backward" in name for name in found)
    assert named(layer(128, ours=1.6))[f"{what}, K ≤ 256"]["ok"] is False


def test_every_layer_counts_against_being_slower():
    found = named([*layer(128), *layer(4096, TRAINING, case="T4 silu", ours=3.1)])
    bar = found["forward + backward: least speed-up over torch.compile, all layers"]
    assert (bar["value"], bar["ok"]) == (0.968, False)
    assert "forward + backward: least speed-up over torch.compile, K ≤ 256" not in found


def test_who_fails_does_not_pass():
    what = "forward: least speed-up over torch.compile, all layers"
    assert named(layer(128, ours=None))[what]["value"] == 0
    without = named(layer(128, compiled=None, autotuned=None))[what]
    assert (without["value"], without["ok"]) == (None, False)
    one = named([*layer(128, compiled=None, autotuned=None), *layer(256)])[what]
    assert (one["value"], one["ok"]) == (2.0, True)


def test_shares_of_the_roofline():
    about = ("elementwise", "a∘b", (8, 8), FORWARD)
    rows = [*layer(128, ours=1.5), *rows_of(about, results(ours=1.0), 0.84)]
    found = named(rows)
    assert found["least share of the roofline, products, forward"]["value"] == 0.8
    share = found["least share of the roofline, element-wise"]
    assert (share["value"], share["ok"]) == (0.84, False)


@pytest.mark.parametrize(("ms", "peak", "oks"), [(2.0, 7.0, (True,) * 2), (2.9, 9.0, (False,) * 2)])
def test_the_network_is_judged_by_its_fastest_level(ms, peak, oks):
    contestants = {
        f"{linear.OURS}, level 0": Result(ms, peak),
        f"{linear.OURS}, level 3": Result(3.5, 1.0),
        COMPILED: Result(3.0, 8.0),
        AUTOTUNED: Result(3.2, 6.0),
    }
    rows = rows_of(("network", "QVGG-7 step", (8, 3, 32, 32), TRAINING), contestants)
    speed, memory = bars(rows)
    assert (speed["ok"], memory["ok"]) == oks
    assert speed["name"] == "QVGG-7 step, qcompile, level 0: speed-up over torch.compile"
    assert (speed["value"], memory["value"]) == (round(3 / ms, 3), peak / 8)


def test_figures_of_other_calls_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(triton_quadratic, "machine", lambda: "a GPU")
    rows = [*layer(128), *layer(256)]
    path = tmp_path / "figures.json"
    assert triton_quadratic.record(path, ["torch"], rows, bars(rows), "a GPU") == 0
    assert json.loads(path.read_text())["machine"] == "a GPU"
    assert triton_quadratic.earlier(path) == rows
    monkeypatch.setattr(triton_quadratic, "machine", lambda: "another")
    assert triton_quadratic.earlier(path) == triton_quadratic.earlier(tmp_path / "none") == []


def test_a_run_records_call_by_call(tmp_path, monkeypatch, capsys):
    def timer(hides):
        return lambda run: (run(), 2.0 if hides else 4.0)[1]

    cases = [linear.LinearCase(8, k, 4, dtype=torch.float32) for k in (3, 5)]
    called = [
        (
            ("linear", case.name, (case.rows, case.inputs, case.outputs), FORWARD),
            lambda case=case: {linear.OURS: linear.contestants(case, False, True, "cpu")["eager"]},
            Work(1000, 10) if number == 0 else None,
            number == 0,
        )
        for number, case in enumerate(cases)
    ]
    monkeypatch.setattr(triton_quadratic, "calls", lambda quick: iter(called))
    monkeypatch.setattr(triton_quadratic, "machine", lambda: "a GPU")
    monkeypatch.setattr("gpu.timing.CudaTimer", timer)
    monkeypatch.setattr("gpu.timing.cuda_peak", lambda run: 1.0)
    monkeypatch.setattr("gpu.roofline.measure_ceilings", lambda *_: Ceilings(10.0, 1000.0))
    path = tmp_path / "figures.json"
    arguments = ["--rounds", "2", "--json", str(path)]
    assert triton_quadratic.run(triton_quadratic.parsed([*arguments, "--only", "*x5x*"])) == 1
    assert [row["size"][1] for row in json.loads(path.read_text())["rows"]] == [5]
    assert triton_quadratic.run(triton_quadratic.parsed(arguments)) == 1
    document = json.loads(path.read_text())
    times = {row["size"][1]: (row["ms"], row["share"]) for row in document["rows"]}
    assert times == {3: (2.0, 0.5), 5: (4.0, None)}
    assert all(not bar["ok"] for bar in document["bars"])  # there is no torch.compile
    assert triton_quadratic.run(triton_quadratic.parsed(["--only", "conv*"])) == 2
    assert "linear Quadra 8x3x4 forward" in capsys.readouterr().err


def test_predictions_count_bytes_and_operations(capsys):
    # A billion operations or bytes a millisecond; one product takes 2 · 10 · 20 · 30 operations.
    case, slow = linear.LinearCase(10, 20, 30, "Quadra"), Ceilings(1e9, 1e3)
    product = 12.0
    found = prediction.predicted(case, True, slow)
    own = prediction.OWN_SHARE
    assert found["torch.compile"] == pytest.approx(9 * product, rel=1e-3)
    assert found["library"] == pytest.approx(6 * product + 5 * product / own, rel=1e-3)
    assert found["kept"] == pytest.approx(9 * product / own, rel=1e-3)
    assert found["narrow"] == pytest.approx(13 * product / own, rel=1e-3)
    assert found["floor"] == pytest.approx(9 * product, rel=1e-3)
    x, y = 2 * 10 * 20, 2 * 10 * 30  # bytes
    found = prediction.predicted(case, False, Ceilings(1.0, 1e9))
    assert found["torch.compile"] == 3 * x + 7 * y
    assert found["kept"] == found["narrow"] == found["library"] == x + y
    found = prediction.predicted(case, True, Ceilings(1.0, 1e9))
    assert found["torch.compile"] == (3 * x + 7 * y) + 5 * y + (5 * x + 3 * y) + (3 * x + 3 * y)
    assert found["kept"] == 3 * x + 9 * y
    assert found["narrow"] == 4 * x + 3 * y
    assert "narrow" not in prediction.predicted(linear.LinearCase(1, 129, 1), True, slow)
    assert triton_quadratic.main(["--predict"]) == 0
    assert "predicted, not measured" in capsys.readouterr().out


def test_what_is_printed(capsys):
    rows = layer(128, compiled=None)
    show(rows, bars(rows))
    printed = capsys.readouterr().out
    assert "Quadra, 64 × 128 × 64, forward" in printed
    assert "80%" in printed
    assert "failed" in printed
    assert "ok: forward: least speed-up over torch.compile, K ≤ 256 2.0, target 2.0" in printed
