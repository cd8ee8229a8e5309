"""What both TRL programs share: TRL's loop is its own, so a callback waits between two steps and measures each."""

# pyright: reportMissingImports=false

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from _serve import Job, Meter, Server

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

STEPS = 10_000
"""More than anyone asks for: a callback ends the training."""


def turns(server: Server, finish: Callable[[dict[str, float]], dict[str, Any]], **ready: Any) -> Any:
    """A callback that waits for its turn before each step and reports the step when it ends."""
    from transformers import TrainerCallback

    class Turns(TrainerCallback):
        meter: Meter | None = None

        def on_train_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            server.say(ready=True, **ready)
            self._wait()

        def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            assert self.meter is not None
            read = self.meter.read()
            server.say(**read, **finish(read))
            self._wait()

        def _wait(self) -> None:
            if not server.wait():
                raise KeyboardInterrupt
            self.meter = Meter()

    return Turns()


def train(trainer: Any) -> None:
    """Trains until nobody asks for another step."""
    try:
        trainer.train()
    except KeyboardInterrupt:
        return


def shared_arguments(job: Job) -> dict[str, Any]:
    """Training arguments of either trainer. A rate of next to nothing keeps the lengths of responses as they are."""
    return {
        "output_dir": str(Path(sys.argv[1]).parent / "trainer"),
        "use_cpu": True,
        "learning_rate": job["learning_rate"],
        "lr_scheduler_type": "constant",
        "report_to": [],
        "logging_strategy": "no",
        "save_strategy": "no",
        "bf16": job["dtype"] == "bfloat16",
        "gradient_checkpointing": False,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "torch_compile": job["compile"],
        "temperature": 1.0,
        "seed": 0,
    }


def versions(*packages: str) -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("torch", "transformers", *packages)}


class Marks:
    """Moments within a step."""

    def __init__(self) -> None:
        self._at: dict[str, float] = {}

    def once(self, name: str) -> None:
        """The first time of a step that something happens."""
        self._at.setdefault(name, time.perf_counter())

    def between(self, start: str, end: str) -> float:
        return self._at[end] - self._at[start]

    def clear(self) -> None:
        self._at.clear()
