"""What can be evaluated: a model folder, a name on the hub, the embedded base, or the checkpoints of a training run."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from simplerl.config import LoraConfig
from simplerl.engines.base import Engine
from simplerl.errors import ConfigError
from simplerl.learner.lora import engine_name
from simplerl.learner.models import resolve_model_path
from simplerl.storage import atomic, checkpoint
from simplerl.storage.records import RunFolder

HASHED = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "*.safetensors")


@dataclass(frozen=True, slots=True)
class ModelUnderTest:
    """Weights to evaluate: those in `path`, or with `weights` a checkpoint's in the model of `path`."""

    name: str
    path: str
    step: int | None = None
    weights: Path | None = None
    lora: LoraConfig | None = None
    """Where the checkpoint's weights are adapters."""


def models_under_test(model: str, checkpoints: str | None) -> list[ModelUnderTest]:
    """What a command's MODEL and --checkpoints mean. Raises `ConfigError`."""
    run = RunFolder(model)
    if not run.exists:
        if checkpoints:
            raise ConfigError(f"--checkpoints is for run folders; {model} has no recipe.toml")
        return [ModelUnderTest(model, model)]
    if checkpoints is None:
        return [_newest(run)]
    saved = checkpoint.checkpoints(run.path)
    wanted = sorted(saved) if checkpoints == "all" else _steps(checkpoints)
    missing = [step for step in wanted if step not in saved]
    if missing or not wanted:
        raise ConfigError(
            f"{model} has no checkpoint of step {', '.join(map(str, missing)) or '(any)'}; it has "
            f"{', '.join(map(str, saved)) or 'none'}. checkpoint.keep says how many a run keeps"
        )
    return [_checkpoint(run, step, saved[step]) for step in wanted]


def _steps(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"--checkpoints={text}: say all, or steps such as 20,40") from None


def _newest(run: RunFolder) -> ModelUnderTest:
    """The final export, or the newest whole checkpoint."""
    final = run.path / "exports" / "final"
    if (final / "config.json").is_file():
        return ModelUnderTest(str(run.path), str(final))
    found = checkpoint.latest(run.path)
    if found is None:
        raise ConfigError(f"run {run.path} has neither an exported model nor a checkpoint yet")
    saved = {path: step for step, path in checkpoint.checkpoints(run.path).items()}
    return _checkpoint(run, saved[found[0]], found[0])


def _checkpoint(run: RunFolder, step: int, path: Path) -> ModelUnderTest:
    model = run.read_recipe().get("model", {})
    lora = LoraConfig.model_validate(model["lora"]) if model.get("lora") else None
    return ModelUnderTest(f"{run.path}@{step}", model.get("path", "tiny-math-base"), step, path, lora)


def load_checkpoint(engine: Engine, model: ModelUnderTest) -> None:
    """Hands a checkpoint's weights to an engine that was started with the base model."""
    assert model.weights is not None
    tensors = checkpoint.load_tensors(model.weights, "actor")
    engine.load_weights(((engine_name(name), tensor) for name, tensor in tensors.items()), version=model.step or 0)


def model_hash(model: ModelUnderTest) -> str:
    """SHA-256 over weights, configuration and tokenizer; for a hub name, which may move, its files here or the name."""
    if model.weights is not None:
        own = _digest(sorted(model.weights.glob("actor.safetensors")) + sorted(model.weights.glob("actor/*")))
        return own if model.lora is None else f"{own}+{model_hash(ModelUnderTest(model.path, model.path))}"
    folder = Path(resolve_model_path(model.path))
    if not folder.is_dir():
        folder = _snapshot(model.path)
    return _digest(sorted(path for pattern in HASHED for path in folder.glob(pattern)))


def _snapshot(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=list(HASHED)))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise no_model(name, error) from error


def no_model(name: str, error: Exception) -> ConfigError:
    """The error of a model that is neither here nor on the hub, with the first line of the cause."""
    reason = str(error).strip().partition("\n")[0]
    return ConfigError(f"no model {name!r}: neither a folder here nor to be had from the hub ({reason})")


def _digest(files: Sequence[Path]) -> str:
    if not files:
        raise ConfigError("the model's folder holds no config.json and no .safetensors file")
    whole = hashlib.sha256()
    for path in files:
        whole.update(f"{path.name} {atomic.sha256(path)}\n".encode())
    return whole.hexdigest()[:32]
