"""Errors that qcompile raises.

Every message says what failed, where, why, and what to do about it.
"""


class QCompileError(Exception):
    """Base of every error that qcompile raises on purpose."""


class ConfigurationError(QCompileError, ValueError):
    """A configuration value is unknown, out of range or contradicts another."""


class TraceError(QCompileError):
    """A model cannot be traced; names the module, the source line and a way round."""


class PassError(QCompileError):
    """A pass cannot be applied, or broke what it promised to keep."""


class ExportError(QCompileError):
    """A model cannot be read, rewritten, written or verified."""


class PluginError(QCompileError):
    """The onnxruntime plugin or the compiled core cannot be found or loaded."""


class DataError(QCompileError, ValueError):
    """Input data is malformed, out of range or of the wrong shape or type."""


class TrainingError(QCompileError):
    """Training cannot go on, because the loss is no longer a number, for instance."""


class CheckpointError(QCompileError):
    """A checkpoint cannot be written, read, or continued with this configuration or data."""


class DistributedError(QCompileError):
    """Ranks of a distributed run disagree, or one of them has left."""


class QCompileWarning(UserWarning):
    """Something legal that the user most likely did not intend."""
