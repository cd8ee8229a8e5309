"""Blocks of a recipe. The docstring under a field is its help text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from simplerl.config.base import Frozen, SourceField
from simplerl.types import ImportanceMode

STOP = ("</s>", "<|im_end|>", "<|endoftext|>")
Moments = Literal["float32", "8-bit"]


def moment_bytes(numbers: int, kind: Moments) -> int:
    """Bytes of the two moments of a tensor of so many numbers.

    In 8 bits: two codes a number and two float32 scales a block of 256; a tensor of fewer than 4,096 stays float32.
    """
    if kind == "float32" or numbers < 4096:
        return 8 * numbers
    return 2 * numbers + 8 * -(-numbers // 256)


class LoraConfig(Frozen):
    """Low-rank adapters (arXiv:2106.09685), through `peft`: they alone are trained, and merged on export."""

    rank: int = Field(default=16, ge=1)
    alpha: float = Field(default=32.0, gt=0)
    """The adapters' product is scaled by alpha / rank."""

    targets: tuple[str, ...] = ()
    """Names of the linear layers that get adapters, such as q_proj; empty: all but the head."""


class ModelConfig(Frozen):
    """The base model."""

    path: str = "tiny-math-base"
    """A `transformers` folder, a Hugging Face name, or `tiny-math-base`, the embedded one."""

    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the matrix products. Master weights, log-probs and losses are float32 in either case."""

    attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    """Attention kernel; flash_attention_2 needs a CUDA device."""

    kernels: Literal["auto", "torch"] = "auto"
    """On a CPU, auto runs models of the Llama family through fused C kernels where a C compiler is at hand; torch uses
    torch's operators alone. Results do not depend on it but for rounding."""

    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""

    offload: Literal["none", "activations", "weights", "all"] = "none"
    """What waits in the host's memory until the GPU needs it: activations kept for the backward pass; in a cluster also
    weights with their gradients and moments. Results do not depend on it; on a CPU everything is there already."""

    trust_remote_code: bool = False
    """Whether code that comes with a model may run. Only for a model whose code you have read."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the models live; auto takes CUDA where there is one."""

    lora: LoraConfig | None = None
    """Train low-rank adapters of the policy instead of its weights."""

    @property
    def offloads_activations(self) -> bool:
        return self.offload in ("activations", "all")

    @property
    def offloads_weights(self) -> bool:
        return self.offload in ("weights", "all")


class DataConfig(Frozen):
    """The training problems and how they are put to the model."""

    source: SourceField
    """The data set, see `simplerl data list`."""

    levels: tuple[int, ...] = ()
    """Keep only problems of these levels; empty keeps all."""

    template: str = "chat"
    """Prompt template: qwen25-math-cot, qwen25-math-cot-v0, qwen-boxed, abel, or chat (the tokenizer's own)."""

    max_prompt_tokens: int = Field(default=1024, ge=1)
    """Longer prompts are dropped and counted."""


class RolloutConfig(Frozen):
    """How responses are sampled for training."""

    prompts_per_step: int = Field(default=1024, ge=1)
    """Different problems per rollout batch."""

    samples_per_prompt: int = Field(default=8, ge=1)
    """Responses per problem."""

    temperature: float = Field(default=1.0, gt=0)
    """Sampling temperature; the learner's log-probs use it too unless `train.logprob_temperature` says otherwise."""

    top_p: float = Field(default=1.0, gt=0, le=1)
    top_k: int = Field(default=0, ge=0)
    """0 keeps every token."""

    max_tokens: int = Field(default=3000, ge=1)
    """Response tokens at most; a response cut there is graded as it stands."""

    stop: tuple[str, ...] = STOP
    """Stop strings, beside the tokenizer's end tokens."""

    @property
    def sequences(self) -> int:
        return self.prompts_per_step * self.samples_per_prompt


class OptimiserConfig(Frozen):
    """AdamW and its schedule: linear warm-up, then cosine to a floor, or constant."""

    learning_rate: float = Field(gt=0)
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = Field(default=1e-8, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup: float = Field(default=0.03, ge=0, lt=1)
    """Share of the schedule's optimiser steps spent in linear warm-up."""

    min_lr_ratio: float = Field(default=0.1, ge=0, le=1)
    """The cosine ends at this share of the learning rate."""

    max_grad_norm: float = Field(default=1.0, gt=0)

    moments: Moments = "float32"
    """How the two moments are kept. 8-bit takes a quarter of the memory (arXiv:2110.02861, through `bitsandbytes`, the
    extra `8bit`), on one learner, and rounds: curves differ a little from those of float32."""


class TrainConfig(Frozen):
    """How long, and how each rollout batch is used."""

    steps: int | None = Field(default=None, ge=1)
    """Rollout batches to train on; empty: `data_epochs` passes over the data."""

    data_epochs: int = Field(default=1, ge=1)
    """Passes over the data; they set the schedule's horizon. An incomplete last batch of a pass runs on into the
    next pass, so every problem is used equally often."""

    minibatch_size: int = Field(default=128, ge=1)
    """Sequences per optimiser step; must divide the sequences of a rollout batch."""

    ppo_epochs: int = Field(default=1, ge=1)
    """Passes over each rollout batch."""

    micro_batch_tokens: int = Field(default=8192, ge=1)
    """Tokens a model sees at once, padding included. Results do not depend on it."""

    packing: bool | None = None
    """Put sequences one after the other instead of padding them to one length; empty: where the kernels run
    (`model.kernels`), which also compute a prompt only once for its responses. Results do not depend on it."""

    cpu_threads: int | None = Field(default=None, ge=1)
    """Micro-batches computed side by side, each in a thread with its share of the cores and with gradients of its own;
    empty: one per core on a CPU, 8 at most, and one on a GPU. Results depend on it by rounding alone."""

    critic_warmup_steps: int = Field(default=0, ge=0)
    """First so many steps train the critic alone; the actor is frozen."""

    logprob_temperature: Literal["sampling", "one"] = "sampling"
    """Temperature of the learner's log-probs: that of sampling, or 1 as in the released v0 code."""

    mismatch_limit: float = Field(default=0.5, gt=0)
    """Largest mean |engine - learner| log-prob difference; beyond it the run stops."""

    staleness: int = Field(default=0, ge=0)
    """Batches are sampled while the learner trains on earlier ones, each by weights so many steps older than those it
    is trained on; 0: sampling and training take turns. Which weights depends on this alone, never on timing."""

    importance: ImportanceMode | None = None
    """Correction for the policy that sampled: each token's loss times pi / pi_sampled, `importance_limit` at most, or 0
    where it lies beyond; empty: truncated where `staleness` > 0."""

    importance_limit: float = Field(default=2.0, gt=1)

    probe_tokens: int = Field(default=16, ge=0)
    """Tokens that the engine answers whenever it was handed new weights, to see that it has them; 0 never."""

    probe_limit: float | None = Field(default=None, gt=0)
    """Largest mean log-prob difference over these; empty: 0.001 in float32, 0.1 in bfloat16."""


class SFTTrainConfig(Frozen):
    """How long, and how the responses are put into batches."""

    steps: int | None = Field(default=None, ge=1)
    """Optimiser steps; empty: `data_epochs` passes over the data."""

    data_epochs: int = Field(default=3, ge=1)
    """Passes over the data. An incomplete last batch of a pass runs on into the next pass."""

    batch_size: int = Field(default=64, ge=1)
    """Sequences per optimiser step."""

    max_response_tokens: int = Field(default=16384, ge=1)
    """Longer responses are left out and counted: one that is cut would teach not to end."""

    micro_batch_tokens: int = Field(default=16384, ge=1)
    """Tokens a model sees at once. Results do not depend on it."""

    packing: bool = True
    """Put sequences one after the other instead of padding them to one length. Results do not depend on it."""

    cpu_threads: int | None = Field(default=None, ge=1)
    """Micro-batches computed side by side, see the same setting of reinforcement learning."""

    validation: float = Field(default=0.0, ge=0, lt=1)
    """Share of the problems kept from training, on which the loss is measured whenever the model is evaluated."""


class EvalSet(Frozen):
    """One benchmark evaluated during training."""

    name: str
    limit: int | None = Field(default=None, ge=1)
    """Only the first so many problems."""


class EvalConfig(Frozen):
    """Evaluation of the current policy during training; it never touches training's random choices."""

    every: int = Field(default=0, ge=0)
    """Evaluate before the first step and after every so many; 0 never."""

    sets: tuple[EvalSet, ...] = ()
    temperatures: tuple[float, ...] = (0.0,)
    """0 is greedy."""

    max_tokens: int | None = Field(default=None, ge=1)
    """Empty: as in training."""

    template: str | None = None
    """Prompt template, see `data.template`. Empty: as in training."""


class CheckpointConfig(Frozen):
    """What is kept to go on from, and what for others."""

    every: int = Field(default=4, ge=1)
    """Steps between checkpoints."""

    keep: int = Field(default=2, ge=1)
    """Complete checkpoints kept; older ones are deleted."""

    export_every: int = Field(default=0, ge=0)
    """Steps between exported `transformers` folders; 0 exports at the end only."""


class TrackConfig(Frozen):
    """Optional trackers beside `metrics.jsonl`, which is always written."""

    tensorboard: bool = False
    wandb: Literal["off", "offline", "online"] = "off"
    project: str = "simplerl"


class ClusterConfig(Frozen):
    """Where things run. Empty: all in one process."""

    ray: str | None = None
    """"auto": the Ray cluster that RAY_ADDRESS names (as `ray job submit` does), else a new one on this machine; or a
    cluster's address."""

    learners: int = Field(default=1, ge=1)
    """Processes that the models are sharded over, each with a GPU where there are any."""

    engines: int = Field(default=1, ge=1)
    """Engines that answer side by side, each with a GPU where there are any."""

    colocated: bool = False
    """Learner i and engine i share GPU i and take turns on it; needs as many of each, and `engine.sleep`."""

    transfer: Literal["store", "direct"] = "store"
    """How weights come to engines: through Ray's store, or from GPU to GPU by vLLM's weight transfer (NCCL, or CUDA IPC
    where colocated)."""

    verifiers: int = Field(default=0, ge=0)
    """Processes that judge answers, a core each, all over the cluster; 0: the run's own process judges them."""

    heartbeat_timeout: float = Field(default=30.0, gt=0)
    """Seconds without a sign of life after which a process counts as hung and is killed."""

    restarts: int = Field(default=10, ge=0)
    """Lost engines that are begun anew, lost verifiers too, and lost learners after which the run goes on from its last
    checkpoint; so many of each."""


# --- distillation -----------------------------------------------------------------------------------------------------


class DistillDataConfig(Frozen):
    """The problems that a teacher is asked."""

    source: SourceField
    """The data set, see `simplerl data list`."""

    levels: tuple[int, ...] = ()
    """Keep only problems of these levels; empty keeps all."""

    limit: int | None = Field(default=None, ge=1)
    """Only so many problems, drawn by the seed."""

    benchmarks: tuple[str, ...] = ()
    """Problems that occur in one of these benchmarks (exactly, but for format, or by 13 words) are not asked."""


class DistillSampling(Frozen):
    """How the teacher's responses are drawn."""

    samples_per_problem: int = Field(default=4, ge=1)
    temperature: float = Field(default=1.0, ge=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    max_tokens: int = Field(default=16384, ge=1)
    """Tokens of a response at most; a response cut there is never kept."""


class FilterConfig(Frozen):
    """Which responses become training data. Those that are right and end by themselves are looked at further."""

    per_problem: int = Field(default=1, ge=1)
    """Responses to one problem at most."""

    choose: Literal["first", "shortest", "longest"] = "first"
    """Which of several: in the order of their sample numbers, or by their tokens; equal ones by sample number."""

    min_tokens: int = Field(default=1, ge=1)
    max_tokens: int | None = Field(default=None, ge=1)
    """The window of lengths, in the teacher's tokens; four characters count as one where it does not say."""

    code: bool = False
    """Whether responses with program code may stay."""

    loops: bool = False
    """Whether responses that end in a loop may stay."""

    other_letters: float = Field(default=0.0, ge=0, le=1)
    """Share of letters that are neither Latin nor Greek at most: what changes language is left out."""


# --- pipelines --------------------------------------------------------------------------------------------------------


class RecipeStage(Frozen):
    """A stage with a recipe of its own."""

    run: Literal["distill", "sft", "train"]
    recipe: str
    """A shipped recipe or a path ending in .toml."""

    set: Mapping[str, Any] = {}
    """Settings that replace the recipe's. The text `{STAGE}` stands for what an earlier stage made: a model's folder,
    or the file of responses that a distillation kept."""


class EvalStage(Frozen):
    """A model, answering a suite."""

    run: Literal["eval"]
    model: str
    """`{STAGE}`, a model folder, a name of the hub, or tiny-math-base."""

    suite: str
    """See `simplerl eval --suite`."""

    label: str | None = None
    """What the table calls it; empty: the stage's name."""

    trained: bool = True
    """Whether the suite's settings for trained models hold."""


class ReportStage(Frozen):
    """The table of all evaluations before it, and the report of the training runs."""

    run: Literal["report"]
    runs: tuple[str, ...] = ()
    """Training stages that the page shows side by side."""
