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
