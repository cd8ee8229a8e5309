"""Optional trackers beside `metrics.jsonl`. A tracker that fails is named once and dropped; the run goes on."""

from __future__ import annotations

import sys
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from simplerl.config import TrackConfig, TrainingRecipe
from simplerl.errors import DependencyError
from simplerl.storage import atomic


class Tracker(Protocol):
    """Somewhere to send numbers. Any method may raise."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class TensorBoard:
    """Event files in `tensorboard/` of the run folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "tensorboard"
        self._module = _import("torch.utils.tensorboard", "tensorboard", "track.tensorboard=false")
        self._writer: Any = None

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        if self._writer is None:
            # purge_step hides what a killed session logged beyond its last checkpoint: the first step of this one.
            self._writer = self._module.SummaryWriter(str(self._folder), purge_step=step)
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


class WeightsAndBiases:
    """Weights & Biases; in offline mode everything stays in `wandb/` of the run folder."""

    def __init__(self, config: TrackConfig, folder: Path, recipe: TrainingRecipe) -> None:
        wandb = _import("wandb", "wandb", "track.wandb=off")
        settings = wandb.Settings(silent=True, console="off", disable_git=True, save_code=False)
        self.run = wandb.init(
            project=config.project,
            name=folder.resolve().name,
            id=_stable_id(folder / "wandb-id"),
            resume="allow" if config.wandb == "online" else None,
            mode=config.wandb,
            dir=str(folder),
            config=recipe.model_dump(mode="json"),
            settings=settings,
        )
        # Its own step counter refuses to go back, which a run resumed from a checkpoint must.
        self.run.define_metric("*", step_metric="step")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self.run.log({**metrics, "step": step})

    def close(self) -> None:
        self.run.finish()


class Trackers:
    """Every tracker that the recipe asks for.

    Raises `DependencyError` where one is not installed: it was asked for. What fails later is told to `notice` once.
    """

    def __init__(
        self,
        config: TrackConfig,
        folder: Path,
        recipe: TrainingRecipe,
        notice: Callable[[str], None] | None = None,
    ) -> None:
        self._notice = notice or _to_stderr
        self._active: dict[str, Tracker] = {}
        if config.tensorboard:
            self._start("TensorBoard", lambda: TensorBoard(Path(folder)))
        if config.wandb != "off":
            self._start("Weights & Biases", lambda: WeightsAndBiases(config, Path(folder), recipe))

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Sends the numbers of a step; what is no number (None, text) is left out."""
        numbers = {k: v for k, v in metrics.items() if isinstance(v, int | float) and k != "step"}
        for name, tracker in list(self._active.items()):
            self._guarded(name, lambda tracker=tracker: tracker.log(step, numbers))

    def close(self) -> None:
        for name, tracker in list(self._active.items()):
            self._guarded(name, tracker.close)
        self._active.clear()

    def _start(self, name: str, make: Callable[[], Tracker]) -> None:
        tracker = self._guarded(name, make)
        if tracker is not None:
            self._active[name] = tracker

    def _guarded(self, name: str, action: Callable[[], Any]) -> Any:
        try:
            return action()
        except DependencyError:
            raise
        except Exception as error:  # whatever a tracker does wrong, hours of training are worth more
            self._active.pop(name, None)
            self._notice(
                f"{name} failed and is switched off for this session ({type(error).__name__}: {error}); "
                "metrics.jsonl has every number"
            )
            return None


def _import(module: str, package: str, switch_off: str) -> Any:
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise DependencyError(
            f"{package} is not installed but the recipe asks for it; `pip install {package}`, or --set {switch_off}"
        ) from error


def _stable_id(path: Path) -> str:
    """One id per run folder, so that a resumed run continues its curve."""
    if not path.exists():
        atomic.write_text(path, uuid.uuid4().hex[:16])
    return path.read_text(encoding="utf-8").strip()


def _to_stderr(text: str) -> None:
    print(text, file=sys.stderr)
