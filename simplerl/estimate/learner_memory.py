"""The learner's memory, moment by moment: what it always holds, scoring, and the passes of an update."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from simplerl.config import TensorSpec
from simplerl.estimate.activations import (
    Head,
    backward_work,
    cached_casts,
    copied_weights,
    forward_work,
    head,
    kept,
    kept_once,
)
from simplerl.estimate.load import ExecutionMode, Load, Models
from simplerl.estimate.shapes import Shape

Parts = dict[str, float]
"""Bytes by what they are for."""


def total(parts: Parts) -> float:
    return math.fsum(parts.values())


def largest(moments: list[Parts]) -> Parts:
    """The moment that takes the most."""
    return max(moments, key=total)


@dataclass(frozen=True, slots=True)
class Learner:
    """Everything the learner's memory follows from."""

    shape: Shape
    way: ExecutionMode
    load: Load
    models: Models

    # --- always there -------------------------------------------------------------------------------------------------

    @property
    def actor(self) -> int:
        """Trained parameters of the actor."""
        return self.shape.parameters if self.way.adapted is None else self.way.adapters(self.shape)

    @property
    def critic(self) -> int:
        """Parameters of the critic, all of them trained."""
        return self.shape.critic_parameters if self.models.critic else 0

    def always(self) -> Parts:
        """Float32 master weights of every model and moments of trained tensors, unless the host stores them."""
        shape = self.shape
        if "weights" in self.way.waiting:
            return {"parameters": 0.0, "moments": 0.0}
        adapters = 0 if self.way.adapted is None else self.actor
        weights = shape.parameters * (1 + self.models.copied) + adapters + self.critic
        return {"parameters": 4 * weights / self.way.ranks, "moments": self.moments / self.way.ranks}

    @property
    def moments(self) -> int:
        """Bytes of the moments of all models, on all ranks."""
        optimizers = self.way.optimizers
        return sum(optimizers[name].state_bytes(each) for name, tensors in self.trained.items() for each in tensors)

    @property
    def trained(self) -> dict[str, tuple[TensorSpec, ...]]:
        """The tensors that are trained, by model."""
        shape = self.shape
        sizes = ((shape.vocab, shape.hidden), (shape.hidden,), (1, shape.hidden), (1,))
        head, norm, value_head, bias = (TensorSpec(size, in_layer=False) for size in sizes)
        body = (*shape.layer_tensors * shape.layers, head, norm)
        whole = (*body, head) if not shape.tied else body
        actor = whole if self.way.adapted is None else self.way.adapter_tensors(shape)
        return {"actor": actor} | ({"critic": (*body, value_head, bias)} if self.models.critic else {})

    def on_host(self) -> float:
        """Bytes of what waits in the memory of hosts, that of all ranks together."""
        way = replace(self.way, waiting=())
        whole, waiting = replace(self, way=way), 0.0
        if "weights" in self.way.waiting:
            trained = self.actor + self.critic
            waiting += self.way.ranks * (math.fsum(whole.always().values()) + whole.gradients(trained))
        if "activations" in self.way.waiting:
            ways = [(way, False)] + [(replace(way, adapted=None), True)] * self.models.critic
            waiting += self.way.ranks * max(Passes(whole, each, critic).kept_bytes for each, critic in ways)
        return waiting

    # --- scoring ------------------------------------------------------------------------------------------------------

    def scoring(self) -> Parts:
        """The moment of scoring that takes the most; no policy's logits where nothing is to be scored."""
        moments: list[Parts] = [{}]
        plain = replace(self.way, adapted=None)
        if self.models.scores_policy:
            moments.append(self._scored(self.way, frozen=self.way.adapted is not None, policy=True))
        if self.models.reference:
            moments.append(self._scored(plain, frozen=True, policy=True))
        if self.models.critic and self.load.keeps_values:
            moments.append(Passes(self, plain, critic=True).forward())
        elif self.models.critic:
            moments.append(self._scored(plain, frozen=False, policy=False))
        return largest(moments)

    def _scored(self, way: ExecutionMode, *, frozen: bool, policy: bool) -> Parts:
        load, cpu_threads = self.load, way.cpu_threads
        work = forward_work(self.shape, way, load.scored)
        states = 4 * self.shape.hidden * load.scored_responses
        logits = head(self.shape, load.scored_responses, entropy=False).forward if policy else 0
        layers = {"workspace": cpu_threads * work, "logits": 0.0}
        ends = {"workspace": float(cpu_threads * states), "logits": cpu_threads * logits}
        casts = {"cast weights": cpu_threads * cached_casts(self.shape, way, frozen=frozen)}
        return largest([layers, ends]) | casts | self.gathered(training=False)

    # --- updating -----------------------------------------------------------------------------------------------------

    def updating(self) -> Parts:
        """The moment of an update that takes the most."""
        moments = Passes(self, self.way, critic=False).moments()
        if self.models.critic:
            moments += Passes(self, replace(self.way, adapted=None), critic=True).moments()
        return largest([*moments, self.stepping()])

    def stepping(self) -> Parts:
        """The optimizers' step, one tensor at a time."""
        workspace = max(
            self.way.optimizers[name].workspace_bytes(tensor, self.way.device)
            for name, tensors in self.trained.items()
            for tensor in tensors
        )
        return {"gradients": self.gradients(self.actor + self.critic), "workspace": workspace}

    def gradients(self, trained: int) -> float:
        """Bytes of so many parameters' gradients on a rank; sharded ones go to the host with the weights."""
        return 0.0 if "weights" in self.way.waiting else 4 * trained / self.way.ranks

    def gathered(self, *, training: bool) -> Parts:
        """What is whole on a rank: all outside of layers and two layers, with two layers' gradients when training; and
        what is outside of the reference's layers, which nothing shards again after scoring."""
        if not self.way.sharded:
            return {}
        shape = self.shape
        whole = self.way.adapted is None or self.models.critic
        layers = 2 * shape.layer_parameters * (2 if training and whole else 1)
        return {"gathered layers": 4 * (shape.outer_parameters * (1 + self.models.copied) + layers)}


@dataclass(frozen=True, slots=True)
class Passes:
    """Forward and backward pass of one model in an update."""

    learner: Learner
    way: ExecutionMode
    critic: bool

    def moments(self) -> list[Parts]:
        return [self.forward() | self._gradients(self._before()), self._logits(), self._layers(), self._end()]

    def forward(self) -> Parts:
        """The end of the forward pass."""
        shape, way, load = self._sizes
        parts = self._kept(layers=0)
        cast = cached_casts(shape, way, frozen=way.adapted is not None)
        gone = way.checkpointing or "activations" in way.waiting
        parts["cast weights"] = way.cpu_threads * max(cast, 0 if gone else shape.layers * self._copied)
        parts["logits"] = way.cpu_threads * self._head.forward
        if gone:
            work = forward_work(shape, way, load.tokens)
            parts["workspace"] = way.cpu_threads * max(0.0, work - self._head.forward)
        return parts | self.learner.gathered(training=True)

    @property
    def kept_bytes(self) -> float:
        """Bytes that all lanes keep for the gradient."""
        return self._kept(layers=0)["activations"]

    def _logits(self) -> Parts:
        """The backward pass at the head: its gradient is there beside the logits."""
        whole = 0 if self.critic or self.way.adapted is not None else 4 * self._sizes[0].head
        parts = self._kept(layers=0)
        parts["logits"] = self.way.cpu_threads * self._head.backward
        return parts | self._gradients(self._before() + whole) | self.learner.gathered(training=True)

    def _layers(self) -> Parts:
        """The backward pass at the last layer."""
        shape, way, load = self._sizes
        buffered = self._trains_head and (shape.tied or load.parts == 1 or way.sharded)
        parts = self._kept(layers=1)
        parts["workspace"] = way.cpu_threads * backward_work(shape, way, load.tokens)
        parts["logits"] = way.cpu_threads * self._head.left
        return (
            parts | self._gradients(self._before() + 4 * buffered * shape.head) | self.learner.gathered(training=True)
        )

    def _end(self) -> Parts:
        """The backward pass at the embedding: every gradient is there, and the embedding's new one beside its sum."""
        shape, way, load = self._sizes
        again = load.parts > 1
        new = shape.head * (again if self.critic else again + shape.tied)
        if way.sharded:
            # Gradients outside of layers whole, and once more for their reduction; a tied head's in a buffer.
            new = 2 * shape.outer_parameters + (shape.tied and not self.critic) * shape.head
        extra = 0 if way.adapted is not None else 4 * new
        parts = {
            "workspace": way.cpu_threads * 2 * 4 * shape.hidden * load.tokens,
            "logits": way.cpu_threads * self._head.left,
        }
        own = self.learner.gradients(self._trained)
        other = self._before() - (own if again else 0)
        return parts | self._gradients(other + own + extra) | self.learner.gathered(training=True)

    def _before(self) -> float:
        """Bytes of gradients that are there when this model's pass begins: every model's where micro-batches went
        before; else the critic's, which comes first."""
        learner = self.learner
        actor, critic = map(learner.gradients, (learner.actor, learner.critic))
        if self._sizes[2].parts > 1:
            return actor + critic
        return 0 if self.critic else critic

    def _kept(self, layers: int) -> Parts:
        """What is kept for the gradient, with `layers` computed again where checkpoints are, or back from the host."""
        shape, way, load = self._sizes
        layer = kept(shape, way, load.longest)
        each = layer * shape.layers
        copies = self._copied * shape.layers
        if way.checkpointing:
            each, copies = 4 * shape.hidden * shape.layers + layer * layers, self._copied * layers
        once = kept_once(shape, way)
        if "activations" in way.waiting:
            each, copies, once = layer * layers, self._copied * layers, 0
        whole = load.tokens * (each + once) + 4 * shape.hidden * load.responses
        return {"activations": way.cpu_threads * whole, "cast weights": way.cpu_threads * copies}

    def _gradients(self, each: float) -> Parts:
        return {"gradients": self.way.cpu_threads * each}

    @property
    def _copied(self) -> float:
        return copied_weights(self._sizes[0], self.way)

    @property
    def _trains_head(self) -> bool:
        return not self.critic and self.way.adapted is None

    @property
    def _trained(self) -> int:
        return self.learner.critic if self.critic else self.learner.actor

    @property
    def _head(self) -> Head:
        if self.critic:
            return Head(0, 0, 0)
        found = head(self.learner.shape, self.learner.load.responses, entropy=self.learner.models.entropy)
        return found._replace(left=0.0) if "activations" in self.way.waiting else found

    @property
    def _sizes(self) -> tuple[Shape, ExecutionMode, Load]:
        return self.learner.shape, self.way, self.learner.load
