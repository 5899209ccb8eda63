"""Run ready-made models with and without the plugin; needs only numpy and onnxruntime.

    python plugin_smoke.py LIBRARY FOLDER

FOLDER holds what ``onnxruntime_versions.py`` writes: pairs of NAME.onnx and NAME.npz, the latter
with the input ``hidden`` and one array for each output. Exit status 1 if any answer is wrong.
"""

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnxruntime

CPU = ["CPUExecutionProvider"]


def run(path, hidden, library=None):
    """Return the outputs, and the types of the operators that ran."""
    options = onnxruntime.SessionOptions()
    options.enable_profiling = True
    with tempfile.TemporaryDirectory() as folder:
        options.profile_file_prefix = str(Path(folder) / "profile")
        if library:
            options.register_custom_ops_library(library)
        session = onnxruntime.InferenceSession(str(path), options, providers=CPU)
        outputs = session.run(None, {"hidden": hidden})
        events = json.loads(Path(session.end_profiling()).read_text())
    return outputs, {event.get("args", {}).get("op_name") for event in events}


def check(path, library):
    """Return what is wrong with a model's answers, or an empty text."""
    data = dict(np.load(path.with_suffix(".npz")))
    hidden = data.pop("hidden")
    operator = path.stem.split("-")[0]
    for where in (None, library):
        outputs, ran = run(path, hidden, where)
        if (operator in ran) != bool(where):
            return "the wrong implementation ran"
        for found, (name, expected) in zip(outputs, sorted(data.items()), strict=True):
            if not np.allclose(found, expected, rtol=1e-5, atol=2e-5):
                return f"{name} differs {'with' if where else 'without'} the plugin"
    return ""


def main():
    """Check every model of the folder and print one line for each."""
    library, folder = sys.argv[1:]
    failures = 0
    for path in sorted(Path(folder).glob("*.onnx")):
        wrong = check(path, library)
        failures += bool(wrong)
        print(f"onnxruntime {onnxruntime.__version__}  {path.stem:<24} {wrong or 'ok'}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
