"""Progress of a run, shown to the user: a live page on a terminal, plain lines elsewhere.

A response may contain any text, so markup in it is not interpreted and control characters are replaced.
"""

from __future__ import annotations

import sys
import time
import unicodedata
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Protocol, Self, TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from simplerl.formatting import clock, number

Row = Mapping[str, Any]

Columns = Sequence[tuple[str, str, str]]
"""Columns of a step: heading, name of the metric, format."""

STEP_COLUMNS: Columns = (
    ("reward", "reward/mean", "+.3f"),
    ("accuracy", "reward/accuracy", ".1%"),
    ("length", "length/mean", ".0f"),
    ("code", "style/code", ".1%"),
    ("checks", "style/reflection", ".1%"),
    ("seconds", "time/total", ".1f"),
)
SFT_COLUMNS: Columns = (
    ("loss", "loss/sft", ".4f"),
    ("entropy", "entropy", ".3f"),
    ("norm", "actor/grad_norm", ".2f"),
    ("length", "length/mean", ".0f"),
    ("epoch", "epoch", ".2f"),
    ("seconds", "time/total", ".1f"),
)
EVAL_COLUMNS = (
    ("n", ".0f"),
    ("accuracy", ".1%"),
    ("reward", "+.3f"),
    ("length", ".0f"),
    ("code", ".1%"),
    ("reflection", ".1%"),
)
UNPRINTABLE_CATEGORIES = ("Cc", "Cf", "Cs", "Zl", "Zp")
"""Unicode categories: control, format, surrogate, line separator, paragraph separator."""

STEPS_SHOWN = 8
"""Steps on the live page."""

SAMPLE_SECONDS = 15.0
"""Seconds that a sample stays on the live page at least. Plain lines show one a minute."""


class ProgressDisplay(Protocol):
    """Shows the progress of a run."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...

    def resume(self, step: int) -> None:
        """Start after `step` steps that an earlier session took."""

    def start_phase(self, name: str, total: int | None = None) -> None:
        """Start a phase of a step: rollout, score, update, eval. `total`: its number of items. None: unknown."""

    def advance(self, n: int = 1) -> None:
        """Count `n` items of the phase as done."""

    def show_step(self, step: int, metrics: Row) -> None:
        """Show a finished step, counted from 1; `metrics` is its line of metrics.jsonl."""

    def show_evals(self, rows: Sequence[Row]) -> None:
        """Show an evaluation; `rows` are its lines of evals.jsonl."""

    def show_validation(self, step: int, loss: float) -> None:
        """Show the loss on the validation set, in nats per response token."""

    def show_sample(self, question: str, gold: str, text: str, verdict: str, reward: float) -> None:
        """Show a response, unless the last one has been shown for too short a time."""

    def show_notice(self, text: str) -> None:
        """Show a message that the user should read."""


def make_display(
    total_steps: int,
    plain: bool | None = None,
    *,
    steps_done: int = 0,
    file: TextIO | None = None,
    columns: Columns = STEP_COLUMNS,
) -> ProgressDisplay:
    """A live page or plain lines on `file` (default: stdout). `plain` None: a live page if `file` is a terminal."""
    file = file or sys.stdout
    console = Console(file=file)
    if plain is None:
        plain = not console.is_terminal or console.is_dumb_terminal
    if plain:
        return PlainDisplay(total_steps, steps_done, file, columns=columns)
    return LiveDisplay(total_steps, steps_done, console, columns)


def make_printable(text: str, limit: int | None = None) -> str:
    """Replace characters of `UNPRINTABLE_CATEGORIES`, except newlines, by U+FFFD.

    A text longer than `limit` characters loses its middle.
    """
    if limit is not None and len(text) > limit:
        half = limit // 2
        text = f"{text[:half]} [... {len(text) - 2 * half:,} characters ...] {text[-half:]}"
    text = text.replace("\r\n", "\n").replace("\t", "    ")
    return "".join(c if c == "\n" or unicodedata.category(c) not in UNPRINTABLE_CATEGORIES else "\ufffd" for c in text)


class _TimeLeft:
    """Estimate of the time left, from the mean time of this session's steps."""

    def __init__(self, total: int, done: int) -> None:
        self.total = total
        self.restart(done)

    def restart(self, done: int) -> None:
        """Start to measure after `done` steps."""
        self.done = self._first = done
        self._start = time.monotonic()

    def __str__(self) -> str:
        steps = self.done - self._first
        if steps <= 0:
            return "-:--"
        return clock((time.monotonic() - self._start) / steps * max(0, self.total - self.done))


class PlainDisplay:
    """One line per step, and one per `quiet_seconds` during a phase. Prints no control characters."""

    def __init__(
        self,
        total_steps: int,
        steps_done: int = 0,
        file: TextIO | None = None,
        quiet_seconds: float = 60.0,
        columns: Columns = STEP_COLUMNS,
    ) -> None:
        self._columns = columns
        self._file, self._left, self._quiet = file or sys.stdout, _TimeLeft(total_steps, steps_done), quiet_seconds
        self._phase, self._total, self._done = "", None, 0
        self._last_line = time.monotonic()
        self._last_sample = -float("inf")
        self._broken = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def resume(self, step: int) -> None:
        self._left.restart(step)

    def start_phase(self, name: str, total: int | None = None) -> None:
        self._phase, self._total, self._done = name, total, 0

    def advance(self, n: int = 1) -> None:
        self._done += n
        if time.monotonic() - self._last_line >= self._quiet:
            self._print(f"  step {self._left.done + 1} {self._phase}: {self._done} of {self._total or '?'}")

    def show_step(self, step: int, metrics: Row) -> None:
        self._left.done = step
        cells = "  ".join(f"{name} {number(metrics.get(key), form)}" for name, key, form in self._columns)
        self._print(f"step {step}/{self._left.total}  {cells}  left {self._left}")

    def show_evals(self, rows: Sequence[Row]) -> None:
        for row in rows:
            self._print(_eval_line(row))

    def show_validation(self, step: int, loss: float) -> None:
        self._print(_validation_line(step, loss))

    def show_sample(self, question: str, gold: str, text: str, verdict: str, reward: float) -> None:
        if time.monotonic() - self._last_sample < self._quiet:
            return
        self._last_sample = time.monotonic()
        body = make_printable(f"question: {question}\nresponse: {text}", 1200).replace("\n", "\n    ")
        self._print(
            f"  sample, {make_printable(verdict)}, reward {reward:+g}, gold {make_printable(gold, 80)}\n    {body}"
        )

    def show_notice(self, text: str) -> None:
        # Indented, so that no line of the text looks like one of the display's own.
        self._print(f"note: {make_printable(text)}".replace("\n", "\n    "))

    def _print(self, text: str) -> None:
        if self._broken:
            return
        self._last_line = time.monotonic()
        encoding = getattr(self._file, "encoding", None) or "utf-8"
        try:
            print(text.encode(encoding, "replace").decode(encoding), file=self._file, flush=True)
        except RuntimeError:
            pass  # a signal handler printed while a line was being written, which Python refuses
        except (OSError, ValueError):
            # The reader is gone (`| head`, a closed log). The run continues without a display.
            self._broken = True


class LiveDisplay:
    """A live page: progress of the run and of the phase, the last steps, the last sample."""

    def __init__(self, total_steps: int, steps_done: int, console: Console, columns: Columns = STEP_COLUMNS) -> None:
        self._columns = columns
        self._console, self._left = console, _TimeLeft(total_steps, steps_done)
        # Replaced, never changed in place, because rich draws the page in its own thread.
        self._steps: tuple[tuple[int, Row], ...] = ()
        self._evals: Sequence[Row] = ()
        self._validation = ""
        self._sample: Panel | None = None
        self._sample_time = -float("inf")
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            console=console,
            expand=True,
        )
        self._overall: TaskID = self._progress.add_task(
            "run", total=total_steps, completed=steps_done, note="left -:--"
        )
        self._part: TaskID = self._progress.add_task("starting", total=None, note="")
        self._live = Live(console=console, refresh_per_second=4, get_renderable=self._page)

    def __enter__(self) -> Self:
        self._live.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.__exit__(None, None, None)

    def resume(self, step: int) -> None:
        self._left.restart(step)
        self._progress.update(self._overall, completed=step)

    def start_phase(self, name: str, total: int | None = None) -> None:
        self._progress.reset(self._part, description=make_printable(name), total=total)

    def advance(self, n: int = 1) -> None:
        self._progress.advance(self._part, n)

    def show_step(self, step: int, metrics: Row) -> None:
        self._left.done = step
        self._steps = (*self._steps, (step, dict(metrics)))[-STEPS_SHOWN:]
        self._progress.update(self._overall, completed=step, note=f"left {self._left}")

    def show_evals(self, rows: Sequence[Row]) -> None:
        self._evals = list(rows)

    def show_validation(self, step: int, loss: float) -> None:
        self._validation = _validation_line(step, loss)

    def show_sample(self, question: str, gold: str, text: str, verdict: str, reward: float) -> None:
        if time.monotonic() - self._sample_time < SAMPLE_SECONDS:
            return
        self._sample_time = time.monotonic()
        title = Text(f"{make_printable(verdict)}, reward {reward:+g}, gold {make_printable(gold, 80)}")
        body = Text(f"{make_printable(question, 400).strip()}\n", style="dim") + Text(
            make_printable(text, 1000).strip(), style="default"
        )
        colour = "green" if verdict == "correct" else "yellow" if verdict == "error" else "red"
        self._sample = Panel(body, title=title, title_align="left", border_style=colour)

    def show_notice(self, text: str) -> None:
        with suppress(RuntimeError):  # as in PlainDisplay: called by a signal handler during a write
            self._live.console.print(Text(f"note: {make_printable(text)}", style="yellow"))

    def _page(self) -> RenderableType:
        parts: list[RenderableType] = [self._progress]
        if self._steps:
            parts.append(self._step_table())
        lines = [_eval_line(row) for row in self._evals] + ([self._validation] if self._validation else [])
        parts += [Text(each, no_wrap=True, overflow="ellipsis") for each in lines]
        # Rich cuts a page that is higher than the terminal at its bottom.
        if self._sample is not None and self._console.height > len(self._steps) + len(self._evals) + 14:
            parts.append(self._sample)
        return Group(*parts)

    def _step_table(self) -> Table:
        table = Table("step", *(name for name, _, _ in self._columns), expand=True)
        for column in table.columns:
            column.justify = "right"
        for step, metrics in self._steps:
            table.add_row(str(step), *(number(metrics.get(key), form) for _, key, form in self._columns))
        return table


def _eval_line(row: Row) -> str:
    low, high = row.get("accuracy_low"), row.get("accuracy_high")
    interval = f" ({low:.1%} to {high:.1%})" if isinstance(low, float) and isinstance(high, float) else ""
    cells = [
        f"{key} {number(row.get(key), form)}{interval if key == 'accuracy' else ''}"
        for key, form in EVAL_COLUMNS
        if key in row
    ]
    name = make_printable(str(row.get("set", "?")), 60)
    return f"eval at step {row.get('step')}: {name} t={row.get('temperature', 0):g}  {'  '.join(cells)}"


def _validation_line(step: int, loss: float) -> str:
    return f"validation at step {step}: loss {loss:.4f} nats per response token"
