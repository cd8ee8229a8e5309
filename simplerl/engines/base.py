"""The engine protocol: requests in, finished rollouts out, one by one."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from simplerl.config import PluginConfig
from simplerl.errors import EngineError
from simplerl.types import Metrics, Request, Rollout

if TYPE_CHECKING:
    from torch import Tensor

Weights = Iterable[tuple[str, "Tensor"]]
"""Weights by their `transformers` names."""


class EngineConfig(PluginConfig):
    """Settings every engine has. Class variables declare what the engine can do."""

    can_receive_weights: ClassVar[bool] = False
    """True if the engine is a `Receiver` too."""

    packages: ClassVar[tuple[str, ...]] = ()
    """Packages whose versions must agree on every node of a cluster."""

    max_batch: int = 256
    """Sequences decoded at once."""

    sleep: bool = False
    """Free memory while the learner works: from the end of a step's rollouts to the next weight sync."""


ASLEEP = "the engine is asleep and has no weights to answer with; load them first (load_weights)"
"""Error text for a request that reaches a sleeping engine."""


class Engine:
    """A source of rollouts: the base class of every engine.

    Rollouts may finish in any order. Which ones there are, and what they say, depends on the requests and their order
    alone, never on timing.
    """

    can_sleep: bool = False
    """True if `sleep` frees memory."""

    def submit(self, requests: Sequence[Request]) -> Iterator[Rollout]:
        """Start the requests and yield each rollout as it finishes."""
        raise NotImplementedError

    def load_weights(self, weights: Weights, version: int) -> None:
        """Replace every weight and wake up if asleep. Later rollouts carry `version`.

        Under `model.lora` the adapters come alone, for each matrix `NAME.lora_A.weight` [rank, in] and
        `NAME.lora_B.weight` [out, rank]; before the first load the model is the base model.
        """
        raise NotImplementedError

    def sleep(self) -> None:
        """Free memory until `load_weights`. Called only if `can_sleep`; calling it twice changes nothing."""

    def metrics(self) -> Metrics:
        """Counts since the engine was built, for the records of every step."""
        return {}

    def take_events(self) -> list[str]:
        """What happened since the last call, one line of text each, such as a lost and restarted process."""
        return []

    def close(self) -> None:
        """Free memory; stop threads and processes."""


class Receiver(Protocol):
    """An engine that receives weights from a learner in another process (`cluster.transfer=direct`).

    Its `Config` sets `can_receive_weights`. `init_transfer` is called first, and again whenever the group changes.
    Each weight sync then calls `begin_update`, `receive_weights` once or more, and `finish_update`.
    """

    def init_transfer(self, how: Mapping[str, Any]) -> None:
        """Joins the group that weights come through; `how` is what the transfer's own interface asks for."""
        ...

    def begin_update(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Makes ready for weights of these names and shapes. Raises `EngineError`, unchanged, where they do not fit."""
        ...

    def receive_weights(self, what: Mapping[str, Any]) -> None:
        """Takes weights, some or all, that the learner sends meanwhile; `what` describes them."""
        ...

    def finish_update(self, version: int) -> None:
        """All are there; as `load_weights` at its end."""
        ...


def generate(engine: Engine, requests: Sequence[Request]) -> list[Rollout]:
    """Every rollout, in the order of the requests. Raises `EngineError` when the engine breaks its contract."""
    finished: dict[str, Rollout] = {}
    for rollout in engine.submit(requests):
        finished[rollout.request_id] = checked(rollout)
    missing = [request.id for request in requests if request.id not in finished]
    if missing:
        raise EngineError(f"{len(missing)} of {len(requests)} requests never finished, the first is {missing[0]}")
    return [finished[request.id] for request in requests]


def checked(rollout: Rollout) -> Rollout:
    """The rollout, if it has one finite log-prob per token and at least one token."""
    tokens, logprobs = len(rollout.token_ids), len(rollout.sampled_logprobs)
    if tokens != logprobs:
        raise EngineError(
            f"rollout of {rollout.request_id} has {tokens} tokens but {logprobs} log-probs; "
            "the engine must return one per token"
        )
    if tokens == 0:
        raise EngineError(f"rollout of {rollout.request_id} has no tokens; an end token counts as one")
    for position, value in enumerate(rollout.sampled_logprobs):
        if not math.isfinite(value):
            raise EngineError(f"rollout of {rollout.request_id}: the log-prob of token {position} is {value}")
    return rollout
