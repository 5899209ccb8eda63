"""Figures in a file that TensorBoard reads.

TensorBoard's own writer buffers and writes in a thread, where a full disk shows as a traceback of
that thread, or not at all. Here every report is on its way to the disk when the call returns, whole
or not at all.
"""

from __future__ import annotations

import io
import itertools
import os
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from qcompile.errors import ConfigurationError

__all__ = ["EventFile"]

_numbers = itertools.count()


class EventFile:
    """One event file, new in its folder.

    Args:
        folder: where it goes; made if need be.

    Raises:
        ConfigurationError: tensorboard is not installed, or the file cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        try:
            from tensorboard.compat.proto.event_pb2 import Event
            from tensorboard.compat.proto.summary_pb2 import Summary
            from tensorboard.summary.writer.record_writer import RecordWriter
        except ImportError as error:
            raise ConfigurationError(
                "TensorBoard is not installed: python -m pip install 'torch-qcompile[train]', or "
                f"leave out --tensorboard. ({error})"
            ) from error
        self._event, self._summary, self._writer = Event, Summary, RecordWriter
        name = f"{int(time.time())}.{socket.gethostname()}.{os.getpid()}.{next(_numbers)}"
        self.path = folder / f"events.out.tfevents.{name}"
        self._size = 0
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._append([Event(wall_time=time.time(), file_version="brain.Event:2")])
        except OSError as error:
            raise ConfigurationError(
                f"{self.path}: cannot be written: {error.strerror}. Free space, name another "
                "folder, or leave out --tensorboard."
            ) from error

    def report(self, scalars: Mapping[str, float], step: int) -> None:
        """Add figures of a step.

        Args:
            scalars: figures by name.
            step: where the run is.

        Raises:
            OSError: they cannot be written; the file is as it was, and the next may be tried.
        """
        self._report(
            [self._summary.Value(tag=tag, simple_value=x) for tag, x in scalars.items()], step
        )

    def report_histograms(self, histograms: Mapping[str, Mapping[str, Any]], step: int) -> None:
        """Add histograms of a step.

        Args:
            histograms: by name, the fields of TensorBoard's ``HistogramProto``.
            step: where the run is.

        Raises:
            OSError: as :meth:`report`.
        """
        from tensorboard.compat.proto.summary_pb2 import HistogramProto

        self._report(
            [
                self._summary.Value(tag=tag, histo=HistogramProto(**fields))
                for tag, fields in histograms.items()
            ],
            step,
        )

    def _report(self, values: list[Any], step: int) -> None:
        now = time.time()
        self._append(
            [
                self._event(wall_time=now, step=step, summary=self._summary(value=[value]))
                for value in values
            ]
        )

    def _append(self, events: list[Any]) -> None:
        records = io.BytesIO()
        writer = self._writer(records)
        for event in events:
            writer.write(event.SerializeToString())
        try:
            with self.path.open("ab") as file:
                file.write(records.getvalue())
        except OSError:
            with suppress(OSError):  # half a record would hide all that follow it
                os.truncate(self.path, self._size)
            raise
        self._size += records.tell()
