"""``python -m qcompile`` is the command ``qcompile``."""

import sys

from qcompile.cli import main

sys.exit(main())
