"""The learner's memory: what it always holds, and the peaks of scoring and of updating."""

from __future__ import annotations

from dataclasses import dataclass, replace

from simplerl.config import TensorSpec
from simplerl.estimate.activations import (
    LogitsBytes,
    autocast_cache,
    backward_workspace,
    copied_weights,
    final_norm_per_token,
    forward_workspace,
    logits_bytes,
    saved_per_token,
)
from simplerl.estimate.breakdown import Breakdown, largest, total
from simplerl.estimate.execution import ExecutionMode, MicroBatchSizes, RequiredModels
from simplerl.estimate.shapes import Shape


@dataclass(frozen=True, slots=True)
class LearnerMemory:
    """Memory of one learner process."""

    shape: Shape
    mode: ExecutionMode
    micro_batch: MicroBatchSizes
    models: RequiredModels

    # --- always held --------------------------------------------------------------------------------------------------

    @property
    def actor(self) -> int:
        """Trained parameters of the actor."""
        return self.shape.parameters if self.mode.lora_targets is None else self.mode.adapter_parameters(self.shape)

    @property
    def critic(self) -> int:
        """Parameters of the critic; all of them are trained."""
        return self.shape.critic_parameters if self.models.critic else 0

    def always(self) -> Breakdown:
        """Float32 master weights of every model and optimizer states of trained ones, unless they are offloaded."""
        if "weights" in self.mode.offloaded:
            return {"parameters": 0.0, "moments": 0.0}
        adapters = 0 if self.mode.lora_targets is None else self.actor
        weights = self.shape.parameters * (1 + self.models.separate_reference) + adapters + self.critic
        return {"parameters": 4 * weights / self.mode.ranks, "moments": self.moments / self.mode.ranks}

    @property
    def moments(self) -> int:
        """Bytes of the moments of all models, on all ranks."""
        optimizers = self.mode.optimizers
        return sum(optimizers[name].state_bytes(tensor) for name, tensors in self.trained.items() for tensor in tensors)

    @property
    def trained(self) -> dict[str, tuple[TensorSpec, ...]]:
        """The tensors that are trained, by model."""
        shape = self.shape
        sizes = ((shape.vocab, shape.hidden), (shape.hidden,), (1, shape.hidden), (1,))
        head, norm, value_head, bias = (TensorSpec(size, in_layer=False) for size in sizes)
        body = (*shape.layer_tensors * shape.layers, head, norm)
        policy = (*body, head) if not shape.tied else body
        actor = policy if self.mode.lora_targets is None else self.mode.adapter_tensors(shape)
        return {"actor": actor} | ({"critic": (*body, value_head, bias)} if self.models.critic else {})

    def offloaded_bytes(self) -> float:
        """Bytes that all ranks together offload to the memory of their hosts."""
        mode = replace(self.mode, offloaded=())
        on_device, offloaded = replace(self, mode=mode), 0.0
        if "weights" in self.mode.offloaded:
            gradients = on_device.gradient_bytes(self.actor + self.critic)
            offloaded += self.mode.ranks * (total(on_device.always()) + gradients)
        if "activations" in self.mode.offloaded:
            passes = [PassMemory(on_device, mode, critic=False)]
            if self.models.critic:
                passes.append(PassMemory(on_device, replace(mode, lora_targets=None), critic=True))
            offloaded += self.mode.ranks * max(each.activations for each in passes)
        return offloaded

    # --- scoring ------------------------------------------------------------------------------------------------------

    def scoring(self) -> Breakdown:
        """The peak of scoring, beside what is always held."""
        peaks: list[Breakdown] = [{}]
        without_lora = replace(self.mode, lora_targets=None)
        if self.models.scores_policy:
            peaks.append(self._score(self.mode, frozen=self.mode.lora_targets is not None, policy=True))
        if self.models.reference:
            peaks.append(self._score(without_lora, frozen=True, policy=True))
        if self.models.critic:
            peaks.append(self._score(without_lora, frozen=False, policy=False))
        return largest(peaks)

    def _score(self, mode: ExecutionMode, *, frozen: bool, policy: bool) -> Breakdown:
        """The peak of a forward pass that saves nothing: in a layer, or at the head."""
        tokens, responses = self.micro_batch.scored_tokens, self.micro_batch.scored_response_tokens
        states = 4 * self.shape.hidden * responses
        logits = logits_bytes(self.shape, responses, entropy_gradient=False).forward if policy else 0
        in_layer = {"workspace": mode.cpu_threads * forward_workspace(self.shape, mode, tokens), "logits": 0.0}
        at_head = {"workspace": float(mode.cpu_threads * states), "logits": mode.cpu_threads * logits}
        casts = {"cast weights": mode.cpu_threads * autocast_cache(self.shape, mode, frozen=frozen)}
        return largest([in_layer, at_head]) | casts | self.gathered(training=False)

    # --- updating -----------------------------------------------------------------------------------------------------

    def updating(self) -> Breakdown:
        """The peak of an update, beside what is always held."""
        peaks = PassMemory(self, self.mode, critic=False).peaks()
        if self.models.critic:
            peaks += PassMemory(self, replace(self.mode, lora_targets=None), critic=True).peaks()
        return largest([*peaks, self.optimizer_step()])

    def optimizer_step(self) -> Breakdown:
        """The optimizers' step, one tensor at a time."""
        workspace = max(
            self.mode.optimizers[name].workspace_bytes(tensor, self.mode.device)
            for name, tensors in self.trained.items()
            for tensor in tensors
        )
        return {"gradients": self.gradient_bytes(self.actor + self.critic), "workspace": workspace}

    def gradient_bytes(self, parameters: int) -> float:
        """Bytes of the gradients of parameters on one rank. Gradients of offloaded weights are offloaded too."""
        return 0.0 if "weights" in self.mode.offloaded else 4 * parameters / self.mode.ranks

    def gathered(self, *, training: bool) -> Breakdown:
        """Parameters that FSDP has gathered on a rank: all outside of layers, and two layers.

        When training, the gradients of two layers come to it. The reference's parameters outside of its layers are
        never sharded again after scoring.
        """
        if not self.mode.sharded:
            return {}
        shape = self.shape
        has_layer_gradients = training and (self.mode.lora_targets is None or self.models.critic)
        layers = 2 * shape.layer_parameters * (2 if has_layer_gradients else 1)
        outer = shape.outer_parameters * (1 + self.models.separate_reference)
        return {"gathered layers": 4 * (outer + layers)}


@dataclass(frozen=True, slots=True)
class PassMemory:
    """Memory of the forward and backward pass of one model in an update."""

    learner: LearnerMemory
    mode: ExecutionMode
    critic: bool

    def peaks(self) -> list[Breakdown]:
        """The four points of a pass at which memory may peak."""
        forward = self.end_of_forward() | self._gradients(self._gradients_before())
        return [forward, self._at_head(), self._at_last_layer(), self._at_embedding()]

    def end_of_forward(self) -> Breakdown:
        """The end of the forward pass."""
        shape, mode, micro_batch = self._sizes
        peak = self._saved(layers=0)
        not_held = mode.checkpointing or "activations" in mode.offloaded
        casts = autocast_cache(shape, mode, frozen=mode.lora_targets is not None)
        copies = 0 if not_held else shape.layers * self._copied_weights
        peak["cast weights"] = mode.cpu_threads * max(casts, copies)
        peak["logits"] = mode.cpu_threads * self._logits.forward
        if not_held:
            workspace = forward_workspace(shape, mode, micro_batch.tokens)
            peak["workspace"] = mode.cpu_threads * max(0.0, workspace - self._logits.forward)
        return peak | self.learner.gathered(training=True)

    @property
    def activations(self) -> float:
        """Bytes that all threads save for the gradient."""
        return self._saved(layers=0)["activations"]

    def _at_head(self) -> Breakdown:
        """The backward pass at the head, whose gradient is held beside the logits."""
        head = 4 * self._sizes[0].head_parameters if self._trains_head else 0
        peak = self._saved(layers=0)
        peak["logits"] = self.mode.cpu_threads * self._logits.backward
        return peak | self._gradients(self._gradients_before() + head) | self.learner.gathered(training=True)

    def _at_last_layer(self) -> Breakdown:
        """The backward pass at the last layer."""
        shape, mode, micro_batch = self._sizes
        holds_head_gradient = self._trains_head and (shape.tied or micro_batch.per_update == 1 or mode.sharded)
        peak = self._saved(layers=1)
        peak["workspace"] = mode.cpu_threads * backward_workspace(shape, mode, micro_batch.tokens)
        peak["logits"] = mode.cpu_threads * self._logits.after_backward
        head = 4 * holds_head_gradient * shape.head_parameters
        return peak | self._gradients(self._gradients_before() + head) | self.learner.gathered(training=True)

    def _at_embedding(self) -> Breakdown:
        """The backward pass at the embedding: all gradients are held, and the embedding's new one beside its sum."""
        shape, mode, micro_batch = self._sizes
        accumulates = micro_batch.per_update > 1
        new = shape.head_parameters * (accumulates if self.critic else accumulates + shape.tied)
        if mode.sharded:
            # Gradients outside of layers in full, and once more for their reduction; a tied head's in a buffer.
            new = 2 * shape.outer_parameters + (shape.tied and not self.critic) * shape.head_parameters
        extra = 0 if mode.lora_targets is not None else 4 * new
        peak = {
            "workspace": mode.cpu_threads * 2 * 4 * shape.hidden * micro_batch.tokens,
            "logits": mode.cpu_threads * self._logits.after_backward,
        }
        own = self.learner.gradient_bytes(self._trained_parameters)
        others = self._gradients_before() - (own if accumulates else 0)
        return peak | self._gradients(others + own + extra) | self.learner.gathered(training=True)

    def _gradients_before(self) -> float:
        """Bytes of gradients that are held when this model's pass starts.

        From the second micro-batch on these are the gradients of every model. In the first one the critic's pass comes
        before the actor's.
        """
        learner = self.learner
        actor, critic = map(learner.gradient_bytes, (learner.actor, learner.critic))
        if learner.micro_batch.per_update > 1:
            return actor + critic
        return 0 if self.critic else critic

    def _saved(self, layers: int) -> Breakdown:
        """Activations and weight copies saved for the gradient.

        `layers` of them have been recomputed from their checkpoints, or are back from the host.
        """
        shape, mode, micro_batch = self._sizes
        layer = saved_per_token(shape, mode, micro_batch.longest_sequence)
        all_layers, copies = layer * shape.layers, self._copied_weights * shape.layers
        if mode.checkpointing:
            all_layers = 4 * shape.hidden * shape.layers + layer * layers
            copies = self._copied_weights * layers
        final_norm = final_norm_per_token(shape, mode)
        if "activations" in mode.offloaded:
            all_layers, copies, final_norm = layer * layers, self._copied_weights * layers, 0
        states = 4 * shape.hidden * micro_batch.response_tokens
        activations = micro_batch.tokens * (all_layers + final_norm) + states
        return {"activations": mode.cpu_threads * activations, "cast weights": mode.cpu_threads * copies}

    def _gradients(self, per_thread: float) -> Breakdown:
        return {"gradients": self.mode.cpu_threads * per_thread}

    @property
    def _copied_weights(self) -> float:
        return copied_weights(self._sizes[0], self.mode)

    @property
    def _trains_head(self) -> bool:
        return not self.critic and self.mode.lora_targets is None

    @property
    def _trained_parameters(self) -> int:
        return self.learner.critic if self.critic else self.learner.actor

    @property
    def _logits(self) -> LogitsBytes:
        if self.critic:
            return LogitsBytes(0, 0, 0)
        responses, models = self.learner.micro_batch.response_tokens, self.learner.models
        logits = logits_bytes(self.learner.shape, responses, entropy_gradient=models.entropy_gradient)
        return logits._replace(after_backward=0.0) if "activations" in self.mode.offloaded else logits

    @property
    def _sizes(self) -> tuple[Shape, ExecutionMode, MicroBatchSizes]:
        return self.learner.shape, self.mode, self.learner.micro_batch
