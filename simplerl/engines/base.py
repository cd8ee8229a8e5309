"""What every inference engine offers. An engine is handed requests and gives finished rollouts back one by one."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from simplerl.config import PluginConfig
from simplerl.errors import EngineError
from simplerl.types import Request, Rollout

if TYPE_CHECKING:
    import torch


class EngineConfig(PluginConfig):
    """Settings every engine has."""

    receives: ClassVar[bool] = False
    """Whether it is a `Receiver` too."""

    max_batch: int = 256
    """Sequences decoded at once."""

    sleep: bool = False
    """Give memory back while the learner works: after a step's rollouts, until it hands over its weights."""


ASLEEP = "the engine is asleep and has no weights to answer with; hand them over first (load_weights)"
"""What an engine says that is asked while it sleeps."""


class Engine(Protocol):
    """A source of rollouts. Rollouts may finish in any order; which ones, and what they say, depends on the
    requests and their order alone, never on timing."""

    def submit(self, requests: Sequence[Request]) -> Iterator[Rollout]:
        """Starts the requests and yields each rollout as it finishes."""
        ...

    def load_weights(self, weights: Iterator[tuple[str, torch.Tensor]], version: int) -> None:
        """Replaces every weight, by its `transformers` name. Later rollouts carry `version`. It wakes an engine.

        Under `model.lora` adapters come alone, for each matrix `NAME.lora_A.weight` [rank, in] and `NAME.lora_B.weight`
        [out, rank]; until they come the model is the base's.
        """
        ...

    def sleep(self) -> None:
        """Gives back what memory it can; weights come before the next request. Once more changes nothing.

        Called only where `engine.sleep` asks for it: an engine that cannot sleep leaves this method out.
        """
        ...

    def close(self) -> None: ...


class Receiver(Protocol):
    """An engine that receives weights from a learner in another process (`cluster.transfer=direct`).

    Its `Config` sets `receives`. `init_transfer` is called first, and again whenever the group changes. Each weight
    sync then calls `begin_update`, `receive_weights` once or more, and `finish_update`.
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
