"""onnxruntime sessions over a model, with and without the plugin."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from qcompile.errors import ExportError

Feeds = Mapping[str, np.ndarray]


class Session:
    """One model in onnxruntime, on the CPU.

    Args:
        model: path of an ONNX file.
        plugin: whether the operators of domain ``qcompile`` run in the plugin; otherwise their
            function bodies run.

    Raises:
        ExportError: onnxruntime does not load the model.
        PluginError: the plugin cannot be found or loaded.
    """

    def __init__(self, model: Path, *, plugin: bool) -> None:
        import onnxruntime

        self.model = model
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        if plugin:
            try:
                from qcompile.plugin import session_options
            except ImportError as error:  # TEMP
                from qcompile.errors import PluginError

                raise PluginError(str(error)) from error

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
    def output_names(self) -> list[str]:
        """Names of the outputs."""
        return [output.name for output in self._session.get_outputs()]

    def run(self, feeds: Feeds) -> dict[str, Any]:
        """Return every output by name.

        Raises:
            ExportError: onnxruntime fails on these inputs.
        """
        try:
            values = self._session.run(None, dict(feeds))
        except Exception as error:
            raise ExportError(f"{self.model.name}: onnxruntime fails: {brief(error)}") from error
        return dict(zip(self.output_names, values, strict=True))


def brief(error: BaseException) -> str:
    """Return an error's text on one line, cut to a readable length."""
    return " ".join(str(error).split())[:400] or type(error).__name__
