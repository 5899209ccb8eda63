"""The command ``qcompile``.

Results go to stdout, progress and errors to stderr. Exit status: 0 done, 1 failed, 2 wrong usage.
Nothing here imports torch or onnxruntime before a command that needs them runs.
"""

from __future__ import annotations

import importlib
import json
import os
import sys

from qcompile.cli.parser import build_parser
from qcompile.errors import QCompileError


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit status."""
    options = build_parser().parse_args(arguments)
    command = importlib.import_module(f"qcompile.cli.{options.module}")
    try:
        return int(command.run(options) or 0)
    except QCompileError as error:
        if options.json:
            print(json.dumps({"error": {"type": type(error).__name__, "message": str(error)}}))
        print(f"qcompile {options.command}: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"qcompile {options.command}: interrupted", file=sys.stderr)
        return 1
    except BrokenPipeError:
        # The reader of our output left; say nothing more, not even at interpreter exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
