"""Errors a user can act on: each message says what, the numbers and the remedy."""


class SimpleRLError(Exception):
    """Base of every error this package raises on purpose; the command line prints it without a traceback."""


class ConfigError(SimpleRLError, ValueError):
    """A recipe, an override or a combination of settings is wrong."""


class DataError(SimpleRLError, ValueError):
    """A data set is missing, damaged, or not in the form it should be."""


class EngineError(SimpleRLError, RuntimeError):
    """An inference engine broke its contract; the message names the request."""


class CheckpointError(SimpleRLError, RuntimeError):
    """A checkpoint is torn, missing, or does not fit this run."""


class NonFiniteError(SimpleRLError, ArithmeticError):
    """A loss or a gradient is NaN or Inf; the update was refused and the weights are untouched."""


class RemoteError(SimpleRLError, RuntimeError):
    """A service gave no answer for as long as it was asked, or one of no use."""


class DependencyError(SimpleRLError, ImportError):
    """A package is missing or outside the supported range."""


class ClusterError(SimpleRLError, RuntimeError):
    """The cluster lacks something, or lost more than it may."""


class WorkerLost(ClusterError):
    """A process of the cluster died or does not answer."""


class InputLost(WorkerLost):
    """What a task was given is gone with the process that had made it; the one that should do the task may live."""
