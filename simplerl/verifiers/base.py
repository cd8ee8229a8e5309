"""The verifier protocol: a problem and a response in, a `Verdict` out. Nothing here imports torch.

A verifier is a plug-in: a file or a folder in `simplerl/verifiers/`, or a user's own file, with a `Config` (optional)
and `build(config) -> Verifier`. Three more functions of the module are optional:

- `check(config)`: raises `ConfigError` if the verifier cannot be built here. It is called before a run's folder is
  written and before models are loaded. Default: nothing is checked.
- `is_usable(problem) -> bool`: False for a problem that this verifier can never judge; such problems are dropped
  from training data and counted. Default: the problem has a question and an answer.
- `same_answer(a, b) -> bool`: True if two extracted answers are votes for the same one (maj@k). Default: equal text.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any, Literal

from simplerl import plugins
from simplerl.config import PluginConfig, plugin_config
from simplerl.types import Metrics, Problem, Rollout, Verdict

DEFAULT_VERIFIER = "math"
"""The verifier of evaluations that name none."""

Mode = Literal["reward", "evaluation"]
"""`reward`: accept only the required format. `evaluation`: also the published fallbacks, for models without it."""


class Verifier:
    """Judges responses. Must not raise on any text: a crash of its own is a verdict `error`.

    Override `verify`, or `submit` if judging waits for something, so that other responses are judged meanwhile.
    """

    def verify(self, problem: Problem, rollout: Rollout) -> Verdict:
        """Judge a whole response."""
        return self.submit(problem, rollout).result()

    def submit(self, problem: Problem, rollout: Rollout) -> Future[Verdict]:
        """Start judging a response. Safe from any thread."""
        return done(self.verify(problem, rollout))

    def warm_up(self) -> None:
        """Start in the background what the first response would wait for."""

    def metrics(self) -> Metrics:
        """Counts since the verifier was built, for the records of every step."""
        return {}

    def take_events(self) -> list[str]:
        """What happened since the last call, one line of text each, such as a lost and restarted process."""
        return []

    def close(self) -> None:
        """Stop processes and threads. A closed verifier judges nothing."""


def done(verdict: Verdict) -> Future[Verdict]:
    """A future that already holds its result."""
    future: Future[Verdict] = Future()
    future.set_result(verdict)
    return future


def usable_problems(name: str, path: str | None = None) -> Callable[[Problem], bool]:
    """The `is_usable` of a verifier plug-in."""
    return getattr(plugins.load("verifiers", name, path), "is_usable", lambda problem: problem.has_answer)


def build_verifier(config: PluginConfig) -> Verifier:
    """The verifier of these settings. Every command builds its verifiers with this function."""
    return plugins.load("verifiers", config.name, config.path).build(config)


def check_verifier(config: PluginConfig) -> None:
    """Raise `ConfigError` if `build_verifier` would refuse these settings on this machine."""
    getattr(plugins.load("verifiers", config.name, config.path), "check", lambda config: None)(config)


def evaluation_config(name: str, settings: Mapping[str, Any] | None = None) -> PluginConfig:
    """Settings of the verifier `name` for evaluations: in the mode `evaluation`, if it has modes and none is set.

    `settings` are those of a recipe's `[verifier]` table. Raises `ConfigError`.
    """
    table = {"name": name} | dict(settings or {})
    module = plugins.load("verifiers", name, table.get("path"))
    if "mode" in getattr(module, "Config", PluginConfig).model_fields:
        table = {"mode": "evaluation"} | table
    return plugin_config("verifiers", "verifier", None, table)


def same_answer(verifier_name: str) -> Callable[[str, str], bool]:
    """The verifier's function that tells if two answers are the same; string equality if it has none.

    Verifiers that are not shipped (a user's own file) compare strings too: reading results runs no such file.
    """
    if verifier_name not in plugins.available("verifiers"):
        return operator.eq
    return getattr(plugins.load("verifiers", verifier_name), "same_answer", operator.eq)
