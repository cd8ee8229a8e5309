"""Optional trackers beside `metrics.jsonl`. A tracker that fails is dropped with one notice; the run continues."""

from __future__ import annotations

import sys
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Protocol, TypeVar

from simplerl.config import TrackConfig, TrainingRecipe
from simplerl.errors import DependencyError
from simplerl.storage import atomic
from simplerl.types import Notice

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

T = TypeVar("T")


class Tracker(Protocol):
    """A service that receives metrics. Any method may raise."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class TensorBoard:
    """Event files in the run folder's `tensorboard/`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "tensorboard"
        self._module = _import_optional("torch.utils.tensorboard", "tensorboard", "track.tensorboard=false")
        self._writer: SummaryWriter | None = None

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        if self._writer is None:
            self._writer = self._new_writer(step)
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def _new_writer(self, step: int) -> SummaryWriter:
        # purge_step hides later steps, which a killed session logged after its last checkpoint.
        return self._module.SummaryWriter(str(self._folder), purge_step=step)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


class WeightsAndBiases:
    """Weights & Biases. In offline mode its files stay in the run folder's `wandb/`."""

    def __init__(self, config: TrackConfig, folder: Path, recipe: TrainingRecipe) -> None:
        wandb = _import_optional("wandb", "wandb", "track.wandb=off")
        settings = wandb.Settings(silent=True, console="off", disable_git=True, save_code=False)
        self.run = wandb.init(
            project=config.project,
            name=folder.resolve().name,
            id=_run_id(folder / "wandb-id"),
            resume="allow" if config.wandb == "online" else None,
            mode=config.wandb,
            dir=str(folder),
            config=recipe.model_dump(mode="json"),
            settings=settings,
        )
        # wandb's own step counter cannot decrease, but resuming from a checkpoint repeats steps.
        self.run.define_metric("*", step_metric="step")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self.run.log({**metrics, "step": step})

    def close(self) -> None:
        self.run.finish()


class Trackers:
    """Every tracker that the recipe switches on."""

    def __init__(
        self,
        config: TrackConfig,
        folder: Path,
        recipe: TrainingRecipe,
        notice: Notice | None = None,
    ) -> None:
        """Start the trackers. Raises `DependencyError` if one is not installed; other failures are notices.

        `notice` None: notices are printed to stderr.
        """
        self._notice = notice or _print_to_stderr
        self._active: dict[str, Tracker] = {}
        if config.tensorboard:
            self._start("TensorBoard", lambda: TensorBoard(Path(folder)))
        if config.wandb != "off":
            self._start("Weights & Biases", lambda: WeightsAndBiases(config, Path(folder), recipe))

    def log(self, step: int, metrics: Mapping[str, object]) -> None:
        """Send the numbers among a step's metrics; None and text are left out."""
        numbers = {k: v for k, v in metrics.items() if isinstance(v, int | float) and k != "step"}
        for name, tracker in list(self._active.items()):
            self._call_or_drop(name, lambda tracker=tracker: tracker.log(step, numbers))

    def close(self) -> None:
        for name, tracker in list(self._active.items()):
            self._call_or_drop(name, tracker.close)
        self._active.clear()

    def _start(self, name: str, make: Callable[[], Tracker]) -> None:
        tracker = self._call_or_drop(name, make)
        if tracker is not None:
            self._active[name] = tracker

    def _call_or_drop(self, name: str, action: Callable[[], T]) -> T | None:
        """Call `action`. If it raises, drop the tracker with a notice and return None."""
        try:
            return action()
        except DependencyError:
            raise
        except Exception as error:  # no fault of a tracker may end hours of training
            self._active.pop(name, None)
            self._notice(
                f"{name} failed and is off for the rest of this session ({type(error).__name__}: {error}); "
                "metrics.jsonl has every number"
            )
            return None


def _import_optional(module: str, package: str, off_setting: str) -> ModuleType:
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise DependencyError(
            f"{package} is not installed, but the recipe uses it; `pip install {package}`, or --set {off_setting}"
        ) from error


def _run_id(path: Path) -> str:
    """Read the run folder's id, or create it. A resumed run has the same id and continues its curve."""
    if not path.exists():
        atomic.write_text(path, uuid.uuid4().hex[:16])
    return path.read_text(encoding="utf-8").strip()


def _print_to_stderr(text: str) -> None:
    print(text, file=sys.stderr)
