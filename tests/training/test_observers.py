"""What a run tells those who watch."""

import dataclasses
import io
import resource
from contextlib import contextmanager

import pytest
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from qcompile.errors import ConfigurationError, QCompileWarning
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


def events_in(folder):
    events = EventAccumulator(str(folder))
    events.Reload()
    return events


@contextmanager
def files_of_at_most(size):
    """Fail to write what lies beyond, as a full disk does."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_tensorboard_gets_the_figures(tmp_path):
    told(TensorBoard(tmp_path))
    events = events_in(tmp_path)
    losses = [(event.step, event.value) for event in events.Scalars("train/loss")]
    assert losses == [(30, 1.25), (100, 1.25)]
    assert [event.step for event in events.Scalars("train/P@1")] == [30]
    assert events.Scalars("test/nDCG@1")[0].value == 0.5


def test_tensorboard_warns_once_without_room_and_goes_on_with_room(tmp_path):
    board = TensorBoard(tmp_path)
    board.evaluated(1, 1, METRICS)
    (file,) = tmp_path.iterdir()
    before = file.read_bytes()
    with files_of_at_most(len(before) + 20):
        with pytest.warns(QCompileWarning, match=r"cannot be written: File too large.*step 2 "):
            board.evaluated(2, 2, METRICS)
        board.evaluated(3, 3, METRICS)  # a second warning would be an error here
        assert file.read_bytes() == before
    board.evaluated(4, 4, METRICS)
    with files_of_at_most(file.stat().st_size), pytest.warns(QCompileWarning, match="step 5 "):
        board.evaluated(5, 5, METRICS)
    board.closed()
    assert [event.step for event in events_in(tmp_path).Scalars("test/PSP@1")] == [1, 4]


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_tensorboard_needs_a_folder(tmp_path, place):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match=r"file.*cannot be written: .*name another"):
        TensorBoard(tmp_path / place)


def test_two_boards_in_one_folder_have_a_file_each(tmp_path):
    for _ in range(2):
        told(TensorBoard(tmp_path))
    assert len(list(tmp_path.iterdir())) == 2
