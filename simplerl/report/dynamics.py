"""Training dynamics in numbers: the change from the base model to the trained one, on held-out problems."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from simplerl.formatting import NO_BREAK, points
from simplerl.report.run_data import GREEDY, Row, RunData

WINDOW = 3
QUICKSTART_MODEL, QUICKSTART_SET = "tiny-math-base", "arithmetic-test"


class LengthDynamics(NamedTuple):
    """Change of the mean response length, in tokens; see `length_dynamics`."""

    start: float
    lowest: float
    lowest_step: int
    final: float

    @property
    def fall(self) -> float:
        """Share of the start lost at the lowest point."""
        return 1 - self.lowest / self.start

    @property
    def rise(self) -> float:
        """Share of the lowest point gained by the end."""
        return self.final / self.lowest - 1


class Change(NamedTuple):
    """A quantity at the first and at the last evaluation."""

    first: float
    last: float


class Check(NamedTuple):
    """A number, the claim about it, and True if the claim holds."""

    claim: str
    value: float
    bound: float
    holds: bool
    unit: str = "%"

    @property
    def shown(self) -> str:
        """The value with its unit; shares in percent, gains in points."""
        number = points(self.value) if self.unit in ("%", "points") else f"{self.value:.0f}"
        return f"{number}{NO_BREAK}{self.unit}"


def length_dynamics(evals: Sequence[Row]) -> LengthDynamics | None:
    """Start, lowest and final mean length, each the mean of three consecutive evaluations; None with fewer than three.

    `evals` are the evaluations e_0 ... e_n of one set at one temperature, by step (e_0 is the base model, at step 0).
    The windows are w_i = mean(length of e_i, e_i+1, e_i+2): start = w_0, final = w_n-2, lowest = min w_i, the earliest
    if several are equal, and lowest_step is the step of that window's middle evaluation. The start thus already holds
    two evaluations of training: a fall within them is counted as smaller than it was.
    """
    lengths = np.array([row["length"] for row in evals], dtype=float)
    if len(lengths) < WINDOW:
        return None
    means = np.convolve(lengths, np.full(WINDOW, 1 / WINDOW), mode="valid")
    lowest = int(means.argmin())
    return LengthDynamics(
        float(means[0]), float(means[lowest]), int(evals[lowest + WINDOW // 2]["step"]), float(means[-1])
    )


def change(run: RunData, name: str, temperature: float | None = None) -> Change | None:
    """First and last value of an evaluated quantity on the main set. None: it was not evaluated twice."""
    if name == "unboxed" and not run.counts_boxes:
        return None
    values = run.evaluation(name, temperature).values
    return Change(float(values[0]), float(values[-1])) if len(values) >= 2 else None


def training_seconds(run: RunData) -> float:
    """Seconds spent in training steps, without evaluations."""
    return float(run.metric("time/total").values.sum())


def is_quickstart(run: RunData) -> bool:
    """True if the claims apply to the run: reinforcement learning from the embedded base model."""
    model = run.recipe.get("model", {}).get("path")
    return (run.kind, model, run.main_set) == ("train", QUICKSTART_MODEL, QUICKSTART_SET)


def dynamics_table(run: RunData) -> dict[str, Check]:
    """Claims of `quickstart`, each with its number on the main held-out set; a claim without a number is left out."""
    checks = {"seconds": _at_most("Training takes at most 600 s", training_seconds(run), 600, "s")}
    if run.evals:
        held_out = min(row["n"] for row in run.evals if row["set"] == run.main_set)
        checks["problems"] = _at_least("At least 500 held-out problems", held_out, 500, "problems")
    for name, temperature, how, bound in (("greedy", GREEDY, "Greedy", 0.40), ("sampled", None, "Sampled", 0.35)):
        if found := change(run, "accuracy", temperature):
            claim = f"{how} accuracy gains at least {points(bound, 0)} points"
            checks[name] = _at_least(claim, found.last - found.first, bound, "points")
    if code := change(run, "code"):
        checks["code_first"] = _at_least("Program code at first in at least 30 %", code.first, 0.30)
        checks["code_last"] = _under("Program code at last in less than 2 %", code.last, 0.02)
    if unboxed := change(run, "unboxed"):
        checks["unboxed_last"] = _under("No boxed answer at last in less than 2 %", unboxed.last, 0.02)
    if length := length_dynamics(run.eval_rows()):
        checks["length_fall"] = _at_least("Mean length first falls by at least 10 %", length.fall, 0.10)
        checks["length_rise"] = _at_least("Mean length then rises by at least 15 %", length.rise, 0.15)
    if reflection := change(run, "reflection"):
        checks["reflection_first"] = _under("Self-checks at first in less than 10 %", reflection.first, 0.10)
        checks["reflection_last"] = _at_least("Self-checks at last in at least 50 %", reflection.last, 0.50)
    return checks


# differences of shares carry rounding: 0.7 - 0.3 is 0.39999999999999997
ROUNDING = 1e-9


def _at_least(claim: str, value: float, bound: float, unit: str = "%") -> Check:
    return Check(claim, value, bound, value >= bound - ROUNDING, unit)


def _at_most(claim: str, value: float, bound: float, unit: str = "%") -> Check:
    return Check(claim, value, bound, value <= bound + ROUNDING, unit)


def _under(claim: str, value: float, bound: float, unit: str = "%") -> Check:
    return Check(claim, value, bound, value < bound - ROUNDING, unit)
