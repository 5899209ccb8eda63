"""Where the onnxruntime plugin lies, and how a session gets it.

onnxruntime is imported only when a function needs it.
"""

from __future__ import annotations

import os
from importlib import import_module, metadata, resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qcompile.errors import PluginError

if TYPE_CHECKING:
    import onnxruntime

LIBRARY = "libqcompile_ort.so"
VARIABLE = "QCOMPILE_LIBRARY"
OLDEST_ONNXRUNTIME = "1.17"

_DISTRIBUTION = "torch-qcompile"
_MARK = "qcompile.library"
_REMEDY = f"Reinstall {_DISTRIBUTION}, or set {VARIABLE} to the library's path."


def get_library_path() -> str:
    """Return the path of the plugin, for ``SessionOptions.register_custom_ops_library``.

    The environment variable ``QCOMPILE_LIBRARY`` overrides what was installed.

    Raises:
        PluginError: there is no such file.
    """
    override = os.environ.get(VARIABLE)
    if override:
        if Path(override).is_file():
            return str(Path(override).resolve())
        raise PluginError(f"{VARIABLE} names {override!r}, where there is no file. {_REMEDY}")
    candidates = [*_beside_package(), *_recorded_files()]
    for path in candidates:
        if path.is_file():
            return str(path.resolve())
    looked = ", ".join(str(path) for path in candidates) or "no file of the distribution"
    raise PluginError(
        f"the onnxruntime plugin {LIBRARY} was not found; looked at {looked}. {_REMEDY}"
    )


def register(session_options: onnxruntime.SessionOptions) -> None:
    """Let sessions made with ``session_options`` run qcompile's operators.

    Calling it again with the same object does nothing. Where another part of the program calls
    ``register_custom_ops_library`` itself, do not call this: onnxruntime refuses to make a
    session with one library registered twice.

    Raises:
        PluginError: the library is missing, or onnxruntime cannot load it.
    """
    if _is_registered(session_options):
        return
    path = get_library_path()
    try:
        session_options.register_custom_ops_library(path)
    except Exception as error:  # onnxruntime raises several types, none of them public
        version = getattr(import_module("onnxruntime"), "__version__", "unknown")
        raise PluginError(
            f"onnxruntime {version} cannot load {path}: {error} "
            f"Wanted: onnxruntime {OLDEST_ONNXRUNTIME} or later on x86-64 Linux. {_REMEDY}"
        ) from error
    # The mark travels with the object; onnxruntime ignores entries that it does not know.
    session_options.add_session_config_entry(_MARK, path)


def session_options(base: onnxruntime.SessionOptions | None = None) -> onnxruntime.SessionOptions:
    """Return ``base``, or new session options, with the plugin registered.

    Raises:
        PluginError: as for :func:`register`, or onnxruntime is not installed.
    """
    if base is None:
        try:
            runtime: Any = import_module("onnxruntime")
        except ImportError as error:
            raise PluginError(
                f"onnxruntime cannot be imported: {error}. "
                f"Install onnxruntime {OLDEST_ONNXRUNTIME} or later."
            ) from error
        base = runtime.SessionOptions()
    register(base)
    return base


def _is_registered(session_options: onnxruntime.SessionOptions) -> bool:
    try:
        session_options.get_session_config_entry(_MARK)
    except RuntimeError:  # there is no such entry
        return False
    return True


def _beside_package() -> list[Path]:
    runtime = resources.files("qcompile") / "runtime" / LIBRARY
    return [Path(str(runtime))]


def _recorded_files() -> list[Path]:
    # An editable install keeps compiled files apart from the sources; its record names them.
    try:
        files = metadata.files(_DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        return []
    return [Path(str(file.locate())) for file in files if file.name == LIBRARY]
