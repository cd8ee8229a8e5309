"""Progress of a run, from its numbers and its recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

ROUNDING = 1e-9


class Progress(NamedTuple):
    """Progress as text, and True if the run is complete. None: the recipe gives neither steps nor passes."""

    words: str
    finished: bool | None


def progress(metrics: Sequence[Mapping[str, Any]], recipe: Mapping[str, Any], step: int = 0) -> Progress:
    """`step` was reached otherwise, such as by an evaluation."""
    train = recipe.get("train", {})
    done = max([step, *(int(row["step"]) for row in metrics)])
    if planned := train.get("steps"):
        return Progress(f"step {done} of {planned}", done >= planned)
    # in reinforcement learning `ppo_epochs` are passes over each batch, not over the data
    if recipe.get("kind") == "sft" and (wanted := train.get("data_epochs", train.get("epochs"))):
        passes = max((row.get("epoch") or 0.0 for row in metrics), default=0.0)
        return Progress(f"step {done} ({passes:.2f} of {wanted} passes)", _is_last(done, passes, wanted))
    return Progress(f"step {done}", None)


def _is_last(step: int, passes: float, wanted: int) -> bool:
    """True if one more batch would exceed the passes of the recipe: such a batch is not trained on."""
    return step > 0 and passes * (step + 1) / step > wanted + ROUNDING
