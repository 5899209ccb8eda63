"""How commands print: tables for people, JSON for programs, progress for those who watch."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, Task, TextColumn
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from qcompile.report import Report


def progress_console() -> Console:
    """Return the console that progress and remarks go to: stderr."""
    return Console(stderr=True, highlight=False)


class _KnownPart(BarColumn):
    """A bar while it is known how much of a step is done."""

    def render(self, task: Task) -> ProgressBar | Text:  # type: ignore[override]
        return super().render(task) if task.completed else Text()


@contextmanager
def progress_bar(title: str) -> Iterator[Callable[[str, float | None], None]]:
    """Show a line of text that says what is going on, and a bar where its end is known.

    Yields:
        What to call with the line and the part that is done, from 0 to 1, or ``None``.
    """
    columns = SpinnerColumn(), TextColumn("{task.description}", markup=False), _KnownPart()
    with Progress(*columns, console=progress_console(), transient=True) as progress:
        task = progress.add_task(title, total=1.0)

        def tell(line: str, part: float | None) -> None:
            # A step that is complete would stop the spinner.
            progress.update(task, description=line, completed=min(part or 0.0, 0.999))

        yield tell


def result_console() -> Console:
    """Return the console that results go to: stdout, unwrapped where it is no terminal."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=200)
    return console


def print_json(value: dict[str, Any]) -> None:
    """Print a result for programs."""
    print(json.dumps(value, indent=2, ensure_ascii=False))


def print_pairs(pairs: dict[str, Any], title: str | None = None) -> None:
    """Print names and values, one pair a line."""
    table = Table(title=title, show_header=False, box=None, title_justify="left")
    for name, value in pairs.items():
        table.add_row(name, str(value))
    result_console().print(table, markup=False)


def print_rows(rows: Sequence[Mapping[str, str]], title: str | None = None) -> None:
    """Print a table of rows with the same columns: names on the left, figures on the right."""
    table = Table(title=title)
    for place, heading in enumerate(rows[0]):
        table.add_column(heading, justify="right" if place else "left")
    for row in rows:
        table.add_row(*row.values())
    result_console().print(table, markup=False)


def print_report(report: Report) -> None:
    """Print what happened to each module or node."""
    console = result_console()
    console.print(report.summary(), markup=False)
    for problem in report.problems:
        console.print(f"not done: {problem}", markup=False)
    for note in report.notes:
        console.print(f"note: {note}", markup=False)
    if not report.entries:
        return
    table = Table(box=None, header_style="bold")
    for heading in ("module", "type", "", "what and why"):
        table.add_column(heading, overflow="fold")
    table.add_column("parameters", justify="right")
    table.add_column("FLOPs", justify="right")
    for entry in report.entries:
        table.add_row(
            entry.name or "(the model itself)",
            entry.kind,
            entry.status,
            entry.reason,
            _change(entry.parameters),
            _change(entry.flops),
        )
    console.print(table, markup=False)


def _change(pair: tuple[int | None, int | None]) -> str:
    before, after = pair
    if before is None or after is None or before == after == 0:
        return ""
    return f"{before:,}" if before == after else f"{before:,} → {after:,}"
