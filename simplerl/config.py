"""The recipe: one TOML file read into a frozen tree. Unknown keys, wrong types and impossible combinations are errors.

The docstring under a field is its help text. Nothing here imports torch.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SerializeAsAny, ValidationError, model_validator

from simplerl import plugins
from simplerl.errors import ConfigError


class Frozen(BaseModel):
    """Base of every block of settings."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, validate_default=True)


class PluginConfig(Frozen):
    """Settings of a plug-in; its module's `Config` extends this."""

    name: str
    """Which plug-in: the name of its file."""

    path: str | None = None
    """A file of your own outside the package, instead of a shipped plug-in."""


def _plugin_config(kind: str, key: str, value: object) -> object:
    """Settings given as a name or a table, validated by the `Config` of the plug-in they name."""
    if isinstance(value, PluginConfig):
        return value
    table = {"name": value} if isinstance(value, str) else dict(value) if isinstance(value, Mapping) else None
    if table is None:
        raise ConfigError(f"{kind}: wants a name or a table with `name`, got {value!r}")
    if "name" not in table and "path" in table:
        table["name"] = Path(table["path"]).stem
    if "name" not in table:
        raise ConfigError(f"{kind}: needs `name`; available: {', '.join(plugins.available(kind))}")
    module = plugins.load(kind, table["name"], table.get("path"))
    config: type[PluginConfig] = getattr(module, "Config", PluginConfig)
    try:
        return config.model_validate(table)
    except ValidationError as error:
        raise ConfigError(explain(error, config, f"{key}.")) from None


def _plugin(kind: str, key: str) -> Any:
    return BeforeValidator(partial(_plugin_config, kind, key))


AlgorithmField = Annotated[SerializeAsAny[PluginConfig], _plugin("algorithms", "algorithm")]
RewardField = Annotated[SerializeAsAny[PluginConfig], _plugin("rewards", "reward")]
VerifierField = Annotated[SerializeAsAny[PluginConfig], _plugin("verifiers", "verifier")]
EngineField = Annotated[SerializeAsAny[PluginConfig], _plugin("engines", "engine")]
SourceField = Annotated[SerializeAsAny[PluginConfig], _plugin("data", "data.source")]


class ModelConfig(Frozen):
    """The base model."""

    path: str = "tiny-math-base"
    """A `transformers` folder, a Hugging Face name, or `tiny-math-base`, the embedded one."""

    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the matrix products. Master weights, log-probs and losses are float32 in either case."""

    attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    """Attention kernel; flash_attention_2 needs a CUDA device."""

    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""

    trust_remote_code: bool = False
    """Whether code that comes with a model may run. Only for a model whose code you have read."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the models live; auto takes CUDA where there is one."""


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

    stop: tuple[str, ...] = ("</s>", "<|im_end|>", "<|endoftext|>")
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

    floor: float = Field(default=0.1, ge=0, le=1)
    """The cosine ends at this share of the learning rate."""

    max_grad_norm: float = Field(default=1.0, gt=0)


class TrainConfig(Frozen):
    """How long, and how each rollout batch is used."""

    steps: int | None = Field(default=None, ge=1)
    """Rollout batches to train on; empty: `episodes` passes over the data."""

    episodes: int = Field(default=1, ge=1)
    """Passes over the data; they set the schedule's horizon. An incomplete last batch of a pass runs on into the
    next pass, so every problem is used equally often."""

    minibatch_size: int = Field(default=128, ge=1)
    """Sequences per optimiser step; must divide the sequences of a rollout batch."""

    epochs: int = Field(default=1, ge=1)
    """Passes over each rollout batch."""

    micro_batch_tokens: int = Field(default=8192, ge=1)
    """Tokens a model sees at once, padding included. Results do not depend on it."""

    critic_warmup_steps: int = Field(default=0, ge=0)
    """First so many steps train the critic alone; the actor is frozen."""

    logprob_temperature: Literal["sampling", "one"] = "sampling"
    """Temperature of the learner's log-probs: that of sampling, or 1 as in the released v0 code."""

    mismatch_limit: float = Field(default=0.5, gt=0)
    """Largest mean |engine - learner| log-prob difference; beyond it the run stops."""


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


class Recipe(Frozen):
    """One experiment."""

    description: str = ""
    seed: int = 0
    model: ModelConfig = ModelConfig()
    data: DataConfig
    rollout: RolloutConfig = RolloutConfig()
    engine: EngineField = Field(default="embedded")  # type: ignore[assignment]
    verifier: VerifierField = Field(default="math")  # type: ignore[assignment]
    reward: RewardField = Field(default="simplerl")  # type: ignore[assignment]
    algorithm: AlgorithmField = Field(default="ppo")  # type: ignore[assignment]
    train: TrainConfig = TrainConfig()
    actor: OptimiserConfig = OptimiserConfig(learning_rate=5e-7)
    critic: OptimiserConfig = OptimiserConfig(learning_rate=9e-6)
    eval: EvalConfig = EvalConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    track: TrackConfig = TrackConfig()

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
        if self.model.attention == "flash_attention_2" and self.model.device == "cpu":
            raise ConfigError("model.attention=flash_attention_2 needs CUDA but model.device=cpu; use sdpa")
        check = getattr(self.algorithm, "check_recipe", None)
        if check is not None:
            check(self)
        return self


# --- reading ----------------------------------------------------------------------------------------------------------


def shipped_recipes() -> dict[str, Path]:
    """The recipes inside the package, by name."""
    folder = Path(str(resources.files("simplerl") / "recipes"))
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def read_recipe(name_or_path: str) -> dict[str, Any]:
    """The table of a shipped recipe or of a TOML file."""
    path = Path(name_or_path)
    if path.suffix != ".toml":
        shipped = shipped_recipes()
        if name_or_path not in shipped:
            raise ConfigError(
                f"no recipe {name_or_path!r}; shipped: {', '.join(shipped)}. Your own is a path that ends in .toml"
            )
        path = shipped[name_or_path]
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"recipe {path} does not exist") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"recipe {path} is not UTF-8: {error}") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"recipe {path} is not valid TOML: {error}") from None


def parse_override(text: str) -> tuple[list[str], Any]:
    """`train.steps=3` as (["train", "steps"], 3). The value is TOML; what is not valid TOML is taken as a string."""
    key, separator, raw = text.partition("=")
    if not separator or not key.strip():
        raise ConfigError(f"--set {text!r} is not key=value, for example --set train.steps=3")
    try:
        value = tomllib.loads(f"value = {raw}")["value"]
    except tomllib.TOMLDecodeError:
        value = raw
    return [part.strip() for part in key.split(".")], value


def apply_overrides(table: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """The table with every override applied; a plug-in given by name alone becomes a table when a key is set in it."""
    for text in overrides:
        keys, value = parse_override(text)
        node = table
        for key in keys[:-1]:
            child = node.get(key, {})
            if not isinstance(child, str | Mapping):
                raise ConfigError(f"--set {text!r}: {key}={child!r} is a value and has no settings of its own")
            node[key] = {"name": child} if isinstance(child, str) else dict(child)
            node = node[key]
        # Another plug-in has other settings: naming one drops those of the one before.
        if keys[-1] == "name" and isinstance(node.get("name"), str) and node["name"] != value:
            node.clear()
        node[keys[-1]] = value
    return table


def load_recipe(name_or_path: str, overrides: Sequence[str] = ()) -> Recipe:
    """A recipe with overrides, validated. Raises `ConfigError` naming each key, its value and what is wrong."""
    return validate_recipe(apply_overrides(read_recipe(name_or_path), overrides))


def validate_recipe(table: Mapping[str, Any]) -> Recipe:
    try:
        return Recipe.model_validate(table)
    except ValidationError as error:
        raise ConfigError(explain(error, Recipe)) from None


def explain(error: ValidationError, model: type[BaseModel], prefix: str = "") -> str:
    """Validation errors in words a user can act on, one line each; `prefix` leads to the model's own keys."""
    return "\n".join(_explain(problem, model, prefix) for problem in error.errors())


def _explain(problem: Any, model: type[BaseModel], prefix: str) -> str:
    inner = problem.get("ctx", {}).get("error")
    if isinstance(inner, ConfigError):
        return str(inner)
    key = prefix + ".".join(map(str, problem["loc"]))
    if problem["type"] == "extra_forbidden":
        return f"{key}={problem['input']!r}: there is no such setting{_nearest(problem['loc'], model)}"
    if problem["type"] == "missing":
        return f"{key}: is required"
    return f"{key}={problem['input']!r}: {problem['msg']}"


def _nearest(location: Sequence[Any], model: type[BaseModel]) -> str:
    import difflib

    node: Any = model
    for key in location[:-1]:
        field = getattr(node, "model_fields", {}).get(key)
        # A number leads into a tuple of blocks.
        node = next(iter(get_args(node)), None) if isinstance(key, int) else field.annotation if field else None
    names = list(getattr(node, "model_fields", {}))
    close = difflib.get_close_matches(str(location[-1]), names, n=1)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known here: {', '.join(names)}" if names else ""
