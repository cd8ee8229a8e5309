"""Blocks of a recipe. The docstring under a field is its help text: meaning, unit, default, when to change it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from simplerl.config.base import Frozen, SourceField
from simplerl.types import ImportanceMode

STOP = ("</s>", "<|im_end|>", "<|endoftext|>")


class LoraConfig(Frozen):
    """Low-rank adapters (arXiv:2106.09685), through `peft`. Only they are trained; exports have them merged."""

    rank: int = Field(default=16, ge=1)
    """Rank of each adapter. Default 16. Raise it if accuracy stays below that of full training."""

    alpha: float = Field(default=32.0, gt=0)
    """Scale of the adapters: their product is multiplied by alpha / rank. Default 32."""

    targets: tuple[str, ...] = ()
    """Names of the linear layers that get adapters, such as q_proj. Default (empty): all but the head."""


class ModelConfig(Frozen):
    """The base model."""

    path: str = "tiny-math-base"
    """A `transformers` folder, a Hugging Face name, or `tiny-math-base`, the embedded base model (default)."""

    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the factors of matrix products. Master weights, log-probs and losses are float32 in either case. Default
    float32. Set bfloat16 on a GPU, or on a CPU with bfloat16 instructions (`simplerl doctor` says)."""

    attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    """Attention kernel. Default sdpa, torch's own. flash_attention_2 needs a CUDA device and the package flash-attn."""

    kernels: Literal["auto", "torch"] = "auto"
    """`auto` (default): on a CPU with a C compiler, models of the Llama family run through fused C kernels. `torch`:
    torch's operators only. Results are equal up to rounding."""

    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time. Default false. Set it if
    `simplerl plan` says that an update does not fit."""

    offload: Literal["none", "activations", "weights", "all"] = "none"
    """What is stored in host memory while the GPU does not need it. `activations`: those saved for the backward pass.
    `weights`: weights, gradients and optimiser state (in a cluster only). Default none. Results do not depend on it."""

    trust_remote_code: bool = False
    """Run Python code that comes with a model. Default false. Set it only for a model whose code you have read."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device of the models. Default auto: CUDA if there is a GPU, else the CPU."""

    lora: LoraConfig | None = None
    """Train low-rank adapters instead of the weights. None (default): train every weight."""

    @property
    def offloads_activations(self) -> bool:
        return self.offload in ("activations", "all")

    @property
    def offloads_weights(self) -> bool:
        return self.offload in ("weights", "all")


class DataConfig(Frozen):
    """The training problems and the prompt that presents them."""

    source: SourceField
    """The data set: a name of `simplerl data list`, or a table with its settings."""

    levels: tuple[int, ...] = ()
    """Keep only problems of these levels. Default (empty): all."""

    template: str = "chat"
    """Prompt template: qwen25-math-cot, qwen25-math-cot-v0, qwen-boxed, abel, or chat (default), the tokenizer's."""

    max_prompt_tokens: int = Field(default=1024, ge=1)
    """Longest prompt, in tokens. Longer ones are dropped and counted. Default 1,024."""


class RolloutConfig(Frozen):
    """Sampling of responses for training."""

    prompts_per_step: int = Field(default=1024, ge=1)
    """Problems per rollout batch. Default 1,024."""

    samples_per_prompt: int = Field(default=8, ge=1)
    """Responses per problem. Default 8. Group methods (grpo) need at least 2."""

    temperature: float = Field(default=1.0, gt=0)
    """Sampling temperature. Default 1. The learner's log-probs use it too, see `train.logprob_temperature`."""

    top_p: float = Field(default=1.0, gt=0, le=1)
    """Nucleus sampling: sample from the smallest set of tokens with this probability. Default 1: every token."""

    top_k: int = Field(default=0, ge=0)
    """Sample from the k likeliest tokens. Default 0: every token."""

    max_tokens: int = Field(default=3000, ge=1)
    """Longest response, in tokens. A response truncated there is graded as it is. Default 3,000."""

    stop: tuple[str, ...] = STOP
    """Strings that end a response, in addition to the tokenizer's end tokens."""

    @property
    def sequences(self) -> int:
        """Responses per rollout batch."""
        return self.prompts_per_step * self.samples_per_prompt


class TrainConfig(Frozen):
    """Length of the run, and the use of each rollout batch."""

    steps: int | None = Field(default=None, ge=1)
    """Rollout batches to train on. None (default): as many as `data_epochs` passes over the data have."""

    data_epochs: int = Field(default=1, ge=1)
    """Passes over the data; they set the schedule's horizon if `steps` is None. Default 1. An incomplete last batch of
    a pass continues into the next one, so every problem is used equally often."""

    minibatch_size: int = Field(default=128, ge=1)
    """Sequences per optimiser step. Default 128. Must divide the sequences of a rollout batch."""

    ppo_epochs: int = Field(default=1, ge=1)
    """Passes over each rollout batch. Default 1."""

    micro_batch_tokens: int = Field(default=8192, ge=1)
    """Tokens that a model computes at once, padding included. Default 8,192. Lower it if memory is short; on a CPU
    1,024 to 4,096 are faster for small models. Results do not depend on it."""

    packing: bool | None = None
    """Concatenate sequences instead of padding them. None (default): if the C kernels run (`model.kernels`), which then
    also compute a prompt once for all of its responses. Results do not depend on it."""

    cpu_threads: int | None = Field(default=None, ge=1)
    """Micro-batches computed at once, each in a worker thread with gradients of its own. None (default): one per core
    on a CPU, 8 at most, and one on a GPU. Set 1 if memory is short. Results are equal up to rounding."""

    critic_warmup_steps: int = Field(default=0, ge=0)
    """Steps at the start that train the critic only, with a frozen actor. Default 0."""

    logprob_temperature: Literal["sampling", "one"] = "sampling"
    """Temperature of the learner's log-probs: that of sampling (default), or 1 as in the released v0 code."""

    mismatch_limit: float = Field(default=0.5, gt=0)
    """Largest mean |engine - learner| difference of log-probs per token, in nats; beyond it the run stops. Default
    0.5."""

    staleness: int = Field(default=0, ge=0)
    """Age, in updates, of the weights that sample a batch, compared with the weights that are trained on it. Default 0:
    sampling and training take turns. Set 1 if engine and learner have processors of their own: they then run at the
    same time. Which weights sample a batch never depends on timing."""

    importance: ImportanceMode | None = None
    """Correction for the policy that sampled: each token's loss is multiplied by pi / pi_sampled. `truncated`: at most
    `importance_limit`. `masked`: 0 beyond it. None (default): truncated if `staleness` > 0, else none."""

    importance_limit: float = Field(default=2.0, gt=1)
    """Limit of the ratio pi / pi_sampled, and 1 / limit for `masked`. Default 2."""

    probe_tokens: int = Field(default=16, ge=0)
    """Tokens sampled after each weight sync to check that the engine has the learner's weights. Default 16. 0: no
    check."""

    probe_limit: float | None = Field(default=None, gt=0)
    """Largest mean difference of log-probs in that check, in nats. None (default): 0.001 in float32, 0.1 in
    bfloat16."""


class SFTTrainConfig(Frozen):
    """Length of supervised fine-tuning, and its batches."""

    steps: int | None = Field(default=None, ge=1)
    """Optimiser steps. None (default): as many as `data_epochs` passes over the data have."""

    data_epochs: int = Field(default=3, ge=1)
    """Passes over the data. Default 3. An incomplete last batch of a pass continues into the next one."""

    batch_size: int = Field(default=64, ge=1)
    """Sequences per optimiser step. Default 64."""

    max_response_tokens: int = Field(default=16384, ge=1)
    """Longest response, in tokens. Longer ones are left out and counted: a truncated one would teach the model not to
    end. Default 16,384."""

    micro_batch_tokens: int = Field(default=16384, ge=1)
    """Tokens that a model computes at once. Default 16,384. Lower it if memory is short. Results do not depend on
    it."""

    packing: bool = True
    """Concatenate sequences (default) instead of padding them. Results do not depend on it."""

    cpu_threads: int | None = Field(default=None, ge=1)
    """Micro-batches computed at once, see `cpu_threads` of reinforcement learning."""

    validation: float = Field(default=0.0, ge=0, lt=1)
    """Share of the problems held out from training; their loss is measured at every evaluation. Default 0."""


class EvalSet(Frozen):
    """One benchmark evaluated during training."""

    name: str
    """Name of the benchmark, see `simplerl data list`; with `path`, any name for it."""

    path: str | None = None
    """Your own problems: a .jsonl, .json (both also .gz) or .parquet file. None (default): the benchmark `name`."""

    limit: int | None = Field(default=None, ge=1)
    """Evaluate the first `limit` problems only. None (default): all."""


class EvalConfig(Frozen):
    """Evaluation of the current policy during training. It never changes training's random choices."""

    every: int = Field(default=0, ge=0)
    """Steps between evaluations; the first is before step 1. Default 0: no evaluation."""

    sets: tuple[EvalSet, ...] = ()
    """The benchmarks to evaluate on."""

    temperatures: tuple[float, ...] = (0.0,)
    """Sampling temperatures; each benchmark is answered once with each. Default 0: greedy."""

    max_tokens: int | None = Field(default=None, ge=1)
    """Longest response, in tokens. None (default): as in training."""

    template: str | None = None
    """Prompt template, see `data.template`. None (default): as in training."""


class CheckpointConfig(Frozen):
    """Checkpoints to resume from, and exports for other tools."""

    every: int = Field(default=4, ge=1)
    """Steps between checkpoints. Default 4."""

    keep: int = Field(default=2, ge=1)
    """Complete checkpoints to keep; older ones are deleted. Default 2."""

    export_every: int = Field(default=0, ge=0)
    """Steps between exported `transformers` folders. Default 0: export at the end of the run only."""


class TrackConfig(Frozen):
    """Trackers in addition to `metrics.jsonl`, which is always written."""

    tensorboard: bool = False
    """Write TensorBoard event files into the run folder. Default false."""

    wandb: Literal["off", "offline", "online"] = "off"
    """Log to Weights & Biases. Default off. `offline` writes files that `wandb sync` uploads later."""

    project: str = "simplerl"
    """Project name at Weights & Biases."""


class ClusterConfig(Frozen):
    """Processes of a run on a Ray cluster. By default everything runs in one process."""

    ray: str | None = None
    """A cluster's address, or "auto": the cluster that RAY_ADDRESS names (as `ray job submit` does), else a new one on
    this machine. None (default): no cluster."""

    learners: int = Field(default=1, ge=1)
    """Learner ranks that the models are sharded over, each with a GPU if the cluster has GPUs. Default 1."""

    engines: int = Field(default=1, ge=1)
    """Engines, each with a GPU if the cluster has GPUs. Default 1. Add engines if the learner waits for rollouts."""

    colocated: bool = False
    """Learner i and engine i share GPU i and take turns. Default false. Needs equal numbers and `engine.sleep`."""

    transfer: Literal["store", "direct"] = "store"
    """Weight sync: `store` (default) through Ray's object store; `direct` from GPU to GPU by vLLM's weight transfer
    (NCCL, or CUDA IPC if colocated)."""

    verifiers: int = Field(default=0, ge=0)
    """Verifier processes in the cluster, one core each. Default 0: the run's own process judges responses."""

    heartbeat_timeout: float = Field(default=30.0, gt=0)
    """Seconds without a heartbeat after which a process counts as hung and is killed. Default 30."""

    restarts: int = Field(default=10, ge=0)
    """How many times lost engines may be restarted; the same number for lost verifiers, and for lost learners, after
    which the run resumes from its last checkpoint. Default 10."""


# --- distillation -----------------------------------------------------------------------------------------------------


class DistillDataConfig(Frozen):
    """The problems that the teacher answers."""

    source: SourceField
    """The data set: a name of `simplerl data list`, or a table with its settings."""

    levels: tuple[int, ...] = ()
    """Keep only problems of these levels. Default (empty): all."""

    limit: int | None = Field(default=None, ge=1)
    """Number of problems, drawn by the seed. None (default): all."""

    benchmarks: tuple[str, ...] = ()
    """Leave out problems that occur in one of these benchmarks: equal text up to format, or 13 common words."""


class DistillSampling(Frozen):
    """Sampling of the teacher's responses."""

    samples_per_problem: int = Field(default=4, ge=1)
    """Responses per problem. Default 4."""

    temperature: float = Field(default=1.0, ge=0)
    """Sampling temperature; 0 is greedy. Default 1."""

    top_p: float = Field(default=1.0, gt=0, le=1)
    """Nucleus sampling. Default 1: every token."""

    max_tokens: int = Field(default=16384, ge=1)
    """Longest response, in tokens. A truncated response is never kept. Default 16,384."""


class FilterConfig(Frozen):
    """Rules that select training data from the correct and complete responses."""

    per_problem: int = Field(default=1, ge=1)
    """Most responses kept per problem. Default 1."""

    choose: Literal["first", "shortest", "longest"] = "first"
    """Which of several responses to keep: by sample number (default) or by length; ties by sample number."""

    min_tokens: int = Field(default=1, ge=1)
    """Shortest response kept, in the teacher's tokens; if a teacher does not count, 4 characters are one token."""

    max_tokens: int | None = Field(default=None, ge=1)
    """Longest response kept, in the same unit. None (default): no limit."""

    code: bool = False
    """Keep responses with program code. Default false."""

    loops: bool = False
    """Keep responses that end in a loop. Default false."""

    other_letters: float = Field(default=0.0, ge=0, le=1)
    """Largest share of letters that are neither Latin nor Greek. Default 0: a response in two languages is left
    out."""


# --- pipelines --------------------------------------------------------------------------------------------------------


class RecipeStage(Frozen):
    """A stage that runs a recipe."""

    run: Literal["distill", "sft", "train"]
    recipe: str
    """Name of a shipped recipe, or a path that ends in .toml."""

    set: Mapping[str, Any] = {}
    """Settings that replace the recipe's. `{STAGE}` in a text is replaced by what an earlier stage made: a model
    folder, or a distillation's file of responses."""


class EvalStage(Frozen):
    """Evaluation of a model on a suite."""

    run: Literal["eval"]
    model: str
    """`{STAGE}`, a model folder, a name of the hub, or tiny-math-base."""

    suite: str
    """See `simplerl eval --suite`."""

    label: str | None = None
    """Name of the model in the table. None (default): the stage's name."""

    trained: bool = True
    """Use the suite's settings for trained models (default), or those for base models."""


class ReportStage(Frozen):
    """A table of all earlier evaluations, and the report of the training runs."""

    run: Literal["report"]
    runs: tuple[str, ...] = ()
    """Training stages to show on the page."""
