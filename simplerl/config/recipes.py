"""Recipes: one experiment each, a TOML file read into a frozen tree. `kind` is the command that runs it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from simplerl.config.base import AlgorithmField, EngineField, Frozen, RewardField, TeacherField, VerifierField
from simplerl.config.blocks import (
    STOP,
    CheckpointConfig,
    ClusterConfig,
    DataConfig,
    DistillDataConfig,
    DistillSampling,
    EvalConfig,
    EvalStage,
    FilterConfig,
    ModelConfig,
    RecipeStage,
    ReportStage,
    RolloutConfig,
    SFTTrainConfig,
    TrackConfig,
    TrainConfig,
)
from simplerl.config.optimizers import ActorField, CriticField, OptimizerConfig, SFTActorField
from simplerl.errors import ConfigError
from simplerl.types import ImportanceMode, Transfer


def _no_check(recipe: TrainingRecipe) -> None:
    """For a plug-in whose `Config` checks nothing against the rest of the recipe."""


class TrainingRecipe(Frozen):
    """Settings of every training run, whatever its loss."""

    description: str = ""
    seed: int = 0
    model: ModelConfig = ModelConfig()
    data: DataConfig
    train: TrainConfig | SFTTrainConfig
    engine: EngineField = Field(default="embedded", validate_default=True)
    verifier: VerifierField = Field(default="math", validate_default=True)
    reward: RewardField = Field(default="simplerl", validate_default=True)
    actor: ActorField = Field(default="adamw", validate_default=True)
    eval: EvalConfig = EvalConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    track: TrackConfig = TrackConfig()
    cluster: ClusterConfig = ClusterConfig()

    @model_validator(mode="after")
    def _attention(self) -> Self:
        if self.model.attention == "flash_attention_2" and self.model.device == "cpu":
            raise ConfigError("model.attention=flash_attention_2 needs CUDA but model.device=cpu; use sdpa")
        if self.model.attention == "eager" and self.train.packing:
            raise ConfigError("train.packing=true needs model.attention=sdpa or flash_attention_2, not eager")
        return self

    @model_validator(mode="after")
    def _offload(self) -> Self:
        if self.model.offloads_weights and self.cluster.ray is None:
            raise ConfigError(
                f"model.offload={self.model.offload} needs learners of a cluster, whose weights FSDP2 moves; set "
                "cluster.ray=auto (cluster.learners=1 will do), or model.offload=activations"
            )
        return self

    @model_validator(mode="after")
    def _optimizers(self) -> Self:
        learners = self.cluster.learners if self.cluster.ray is not None else 1
        for block, optimizer in self.optimizers.items():
            if self.model.offloads_weights and not optimizer.supports_offload:
                setting = f"model.offload={self.model.offload}"
            elif learners > 1 and not optimizer.supports_sharding:
                setting = f"cluster.{learners=}"
            else:
                continue
            raise ConfigError(
                f"{block}.name={optimizer.name} cannot be used with {setting}: {optimizer.restriction}; "
                f"use {block}.name=adamw, whose state is sharded like the weights"
            )
        return self

    @model_validator(mode="after")
    def _placement(self) -> Self:
        cluster = self.cluster
        if cluster.verifiers and cluster.ray is None:
            raise ConfigError(f"cluster.verifiers={cluster.verifiers} needs cluster.ray; set it, or verifiers to 0")
        if not cluster.colocated:
            return self
        if cluster.ray is None:
            raise ConfigError("cluster.colocated=true needs cluster.ray; without, all is in one process on one GPU")
        if cluster.learners != cluster.engines:
            raise ConfigError(
                f"cluster.colocated=true puts an engine beside every learner, but cluster.learners={cluster.learners} "
                f"and cluster.engines={cluster.engines}; make them equal"
            )
        if not self.sleeps:
            raise ConfigError(
                "cluster.colocated=true: the engine must give its memory back while the learner works; "
                "set engine.sleep=true"
            )
        return self

    @model_validator(mode="after")
    def _transfer(self) -> Self:
        if self.cluster.transfer == "store":
            return self
        problem = None
        if self.cluster.ray is None:
            problem = "cluster.ray is not set: in one process weights need not travel"
        elif not getattr(self.engine, "can_receive_weights", False):
            problem = f"engine.name={self.engine.name} cannot receive them; vllm can"
        elif self.model.lora is not None:
            problem = "model.lora sends adapters only, which are small"
        elif self.model.device == "cpu":
            problem = "model.device=cpu, and it is made for GPUs"
        if problem is not None:
            raise ConfigError(f"cluster.transfer=direct: {problem}; leave it at store")
        return self

    @property
    def optimizers(self) -> dict[str, OptimizerConfig]:
        """The optimizer of each model, by the block that configures it."""
        return {"actor": self.actor}

    @property
    def transfer(self) -> Transfer | None:
        """Direct weight transfer between processes. None: through the object store, or within one process."""
        if self.cluster.transfer == "store":
            return None
        return "ipc" if self.cluster.colocated else "nccl"

    @property
    def sleeps(self) -> bool:
        """True if the engine frees its memory while the learner works."""
        return getattr(self.engine, "sleep", False)


class Recipe(TrainingRecipe):
    """Reinforcement learning: `simplerl train`."""

    kind: Literal["train"] = "train"
    rollout: RolloutConfig = RolloutConfig()
    algorithm: AlgorithmField = Field(default="ppo", validate_default=True)
    train: TrainConfig = TrainConfig()
    critic: CriticField = Field(default="adamw", validate_default=True)

    @property
    def optimizers(self) -> dict[str, OptimizerConfig]:
        return {"actor": self.actor, "critic": self.critic}

    @property
    def logprob_temperature(self) -> float:
        """Temperature of the learner's log-probs."""
        return self.rollout.temperature if self.train.logprob_temperature == "sampling" else 1.0

    @property
    def importance(self) -> ImportanceMode:
        """Correction of a token's loss for the policy that sampled it."""
        return self.train.importance or ("truncated" if self.train.staleness else "none")

    @property
    def response_limit(self) -> int:
        """Longest response, in tokens."""
        return self.rollout.max_tokens

    @property
    def stop(self) -> tuple[str, ...]:
        return self.rollout.stop

    @property
    def needs_engine(self) -> bool:
        return True

    @model_validator(mode="after")
    def _combinations(self) -> Self:
        sequences, size = self.rollout.sequences, self.train.minibatch_size
        if sequences % size:
            divisors = [d for d in range(1, sequences + 1) if sequences % d == 0]
            near = sorted(sorted(divisors, key=lambda d: abs(d - size))[:2])
            raise ConfigError(
                f"train.minibatch_size={size} does not divide the {sequences} rollouts of a step "
                f"(rollout.prompts_per_step={self.rollout.prompts_per_step} x "
                f"rollout.samples_per_prompt={self.rollout.samples_per_prompt}); "
                f"{' and '.join(map(str, near))} {'do' if len(near) > 1 else 'does'}"
            )
        if self.sleeps and self.train.staleness:
            raise ConfigError(
                f"engine.sleep=true, but with train.staleness={self.train.staleness} the engine answers while the "
                "learner works; use train.staleness=0 or engine.sleep=false"
            )
        for plugin in (self.algorithm, self.reward):
            getattr(plugin, "check_recipe", _no_check)(self)
        return self


class SFTRecipe(TrainingRecipe):
    """Supervised fine-tuning on the solutions of a data set: `simplerl sft`."""

    kind: Literal["sft"]
    train: SFTTrainConfig = SFTTrainConfig()
    actor: SFTActorField = Field(default="adamw", validate_default=True)

    @property
    def logprob_temperature(self) -> float:
        return 1.0

    @property
    def response_limit(self) -> int:
        """Longest response, in tokens."""
        return self.train.max_response_tokens

    @property
    def stop(self) -> tuple[str, ...]:
        return STOP

    @property
    def needs_engine(self) -> bool:
        """True if the run evaluates; training itself samples nothing."""
        return bool(self.eval.every and self.eval.sets)

    @model_validator(mode="after")
    def _reward(self) -> Self:
        getattr(self.reward, "check_recipe", _no_check)(self)
        return self


class DistillRecipe(Frozen):
    """Distillation: a teacher's responses, filtered to the correct ones: `simplerl distill`."""

    kind: Literal["distill"]
    description: str = ""
    seed: int = 0
    teacher: TeacherField
    data: DistillDataConfig
    sampling: DistillSampling = DistillSampling()
    verifier: VerifierField = Field(default="math", validate_default=True)
    filter: FilterConfig = FilterConfig()


Stage = Annotated[RecipeStage | EvalStage | ReportStage, Field(discriminator="run")]
StageName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$")]


class PipelineRecipe(Frozen):
    """Stages that run in order: `simplerl pipeline`."""

    kind: Literal["pipeline"]
    description: str = ""
    seed: int = 0
    """Seed of every stage that does not set its own. Default 0."""

    stages: Mapping[StageName, Stage] = Field(min_length=1)
    """Stages by name, in order."""


AnyRecipe = Recipe | SFTRecipe | DistillRecipe | PipelineRecipe
KINDS: Mapping[str, type[Any]] = {
    "train": Recipe,
    "sft": SFTRecipe,
    "distill": DistillRecipe,
    "pipeline": PipelineRecipe,
}
"""Recipe classes by `kind`, which is also the command that runs them."""
