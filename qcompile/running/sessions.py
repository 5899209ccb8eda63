"""onnxruntime sessions over a model, with and without the plugin."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np

from qcompile.errors import ExportError

Feeds = Mapping[str, np.ndarray]

LONGEST_RUN = 600.0
"""Seconds after which a run is ended: a file may hold a loop without end."""


class RunTooLongError(ExportError):
    """A run took longer than :data:`LONGEST_RUN`, and was ended."""


class Session:
    """One model in onnxruntime, on the CPU.

    Args:
        model: path of an ONNX file.
        plugin: whether the operators of domain ``qcompile`` run in the plugin; otherwise their
            function bodies run.
        literal: compute what the graph says; otherwise onnxruntime may quantise the activations
            of layers whose weights are quantised, as it does when it serves.

    Raises:
        ExportError: onnxruntime does not load the model.
        PluginError: the plugin cannot be found or loaded.
    """

    def __init__(self, model: Path, *, plugin: bool, literal: bool = True) -> None:
        import onnxruntime

        self.model = model
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.add_session_config_entry("session.disable_quant_qdq", "1" if literal else "0")
        if plugin:
            from qcompile.plugin import session_options

            options = session_options(options)
        try:
            self._session = onnxruntime.InferenceSession(
                str(model), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            raise ExportError(
                f"{model.name}: onnxruntime does not load it: {brief(error)}"
            ) from error

    @property
    def inputs(self) -> list[Any]:
        """Name, shape and type of every input, as onnxruntime tells them."""
        return self._session.get_inputs()

    @property
    def outputs(self) -> list[Any]:
        """Likewise of every output."""
        return self._session.get_outputs()

    @property
    def output_names(self) -> list[str]:
        """Names of the outputs."""
        return [output.name for output in self.outputs]

    def run(self, feeds: Feeds) -> dict[str, Any]:
        """Return every output by name.

        Raises:
            ExportError: onnxruntime fails on these inputs.
            RunTooLongError: it takes longer than :data:`LONGEST_RUN`.
        """
        import onnxruntime

        options = onnxruntime.RunOptions()
        watch = threading.Timer(LONGEST_RUN, setattr, (options, "terminate", True))
        watch.daemon = True
        watch.start()
        try:
            return self.timed(feeds, options)
        except ExportError as error:
            if options.terminate:
                raise RunTooLongError(
                    f"{self.model.name}: a run takes longer than {LONGEST_RUN:g} seconds."
                ) from error
            raise
        finally:
            watch.cancel()

    def timed(self, feeds: Feeds, options: Any = None) -> dict[str, Any]:
        """Do as :meth:`run` does, without the watch, whose thread would count as latency."""
        try:
            values = self._session.run(None, dict(feeds), options)
        except Exception as error:
            raise ExportError(f"{self.model.name}: onnxruntime fails: {brief(error)}") from error
        return dict(zip(self.output_names, values, strict=True))

    def cycled(self, calls: Sequence[Feeds]) -> Callable[[], object]:
        """Return a call that takes the next of ``calls`` each time, to be timed."""
        endless = cycle(calls)
        return lambda: self.timed(next(endless))


def brief(error: BaseException) -> str:
    """Return an error's text on one line, cut to a readable length."""
    return " ".join(str(error).split())[:400] or type(error).__name__
