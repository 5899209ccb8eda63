"""What a run tells those who watch."""

import dataclasses
import io

from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from qcompile.training import LogLines, ProgressBar, Snapshot, TensorBoard

SNAPSHOT = Snapshot(
    step=30,
    steps=100,
    epoch=2,
    epochs=5,
    loss=1.25,
    precision=0.5,
    examples_per_second=12345.6,
    rate=0.001,
    remaining=3725.0,
)
METRICS = {"P@1": 0.5, "P@3": 0.25, "nDCG@1": 0.5, "PSP@1": 0.125}


def told(observer):
    observer.stepped(SNAPSHOT)
    observer.evaluated(30, 2, METRICS)
    observer.noted("[not] markup")
    observer.stepped(dataclasses.replace(SNAPSHOT, step=100, precision=None, remaining=0.0))
    observer.closed()


def test_a_bar_on_a_terminal_says_all_and_keeps_the_rest_above():
    out = io.StringIO()
    told(ProgressBar(Console(file=out, force_terminal=True, width=150, highlight=False)))
    text = out.getvalue()
    line = "epoch 2/5  step 30/100  12,346 examples/s  loss 1.2500  P@1 ~0.500  1:02:05 left"
    assert line in text
    assert "epoch 2: P@1 0.5000  P@3 0.2500  PSP@1 0.1250" in text
    assert "[not] markup" in text
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") == 1  # the cursor comes back


def test_a_bar_that_was_never_needed_draws_nothing():
    out = io.StringIO()
    ProgressBar(Console(file=out, force_terminal=True)).closed()
    assert not out.getvalue().strip()


def test_lines_elsewhere_come_seldom_and_at_the_end():
    out = io.StringIO()
    told(LogLines(Console(file=out, width=200)))
    lines = out.getvalue().splitlines()
    assert lines == [
        "epoch 2: P@1 0.5000  P@3 0.2500  PSP@1 0.1250",
        "[not] markup",
        "epoch 2/5  step 100/100  12,346 examples/s  loss 1.2500  0:00 left",
    ]


def test_tensorboard_gets_the_figures(tmp_path):
    told(TensorBoard(tmp_path))
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    losses = [(event.step, event.value) for event in events.Scalars("train/loss")]
    assert losses == [(30, 1.25), (100, 1.25)]
    assert [event.step for event in events.Scalars("train/P@1")] == [30]
    assert events.Scalars("test/nDCG@1")[0].value == 0.5
