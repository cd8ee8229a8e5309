"""Errors a user can act on. Each message states the fault, the numbers and the remedy."""


class SimpleRLError(Exception):
    """Base of every error that this package raises on purpose. The command line prints it without a traceback."""


class ConfigError(SimpleRLError, ValueError):
    """A recipe, an override or a combination of settings is wrong."""


class DataError(SimpleRLError, ValueError):
    """A data set is missing, damaged, or has the wrong format."""


class EngineError(SimpleRLError, RuntimeError):
    """An inference engine broke its contract; the message names the request."""


class CheckpointError(SimpleRLError, RuntimeError):
    """A checkpoint is torn, missing, or does not fit this run."""


class NonFiniteError(SimpleRLError, ArithmeticError):
    """A loss or a gradient is NaN or Inf. The update was refused and changed no weight."""


class RemoteError(SimpleRLError, RuntimeError):
    """A service gave no answer before the time limit, or an answer that cannot be used."""


class DependencyError(SimpleRLError, ImportError):
    """A package is missing or outside the supported range."""


class ClusterError(SimpleRLError, RuntimeError):
    """The cluster lacks a resource, or lost more processes than `cluster.restarts` allows."""


class WorkerLost(ClusterError):
    """A process of the cluster died, or sent no heartbeat in time."""


class InputLost(WorkerLost):
    """An input of a task was lost with the process that made it. The process that runs the task may be alive."""
