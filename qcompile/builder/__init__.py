"""Searches which layers of a quadratic network pay, and takes out those that do not.

QuadraLib's auto-builder (Xu et al., MLSys 2022, section 4.4): replace, train, rank layers by what
they cost and what they are needed for, take the worst out, tune.
"""

from qcompile.builder.build import autobuild
from qcompile.builder.plan import BuildConfig
from qcompile.builder.result import BuildResult, Step

__all__ = ["BuildConfig", "BuildResult", "Step", "autobuild"]
