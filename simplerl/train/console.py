"""What a person sees while a run goes on: a live page on a terminal, plain lines anywhere else.

Responses are a model's text and may hold anything: markup is never interpreted and control characters never written.
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
"""Heading, metric and format of each number shown of a step."""

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
_UNSAFE = ("Cc", "Cf", "Cs", "Zl", "Zp")
STEPS_SHOWN = 8
SAMPLE_SECONDS = 15.0
"""A sample stays on the page at least so long; plain output gets one per minute."""


class View(Protocol):
    """Where a run tells what it is doing."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...

    def resumed(self, step: int) -> None:
        """So many steps are behind from an earlier session."""

    def phase(self, name: str, total: int | None = None) -> None:
        """A part of a step begins: rollout, grade, score, update, evaluate."""

    def advance(self, n: int = 1) -> None:
        """So many of the phase's `total` are done."""

    def step_done(self, step: int, metrics: Row) -> None:
        """Steps count from 1; `metrics` is the line of metrics.jsonl."""

    def eval_done(self, rows: Sequence[Row]) -> None:
        """`rows` are the lines of evals.jsonl."""

    def validated(self, step: int, loss: float) -> None:
        """The loss on what is kept from training, in nats per response token."""

    def sample(self, question: str, gold: str, text: str, verdict: str, reward: float) -> None:
        """One response to show now and then; the view drops those that come too soon."""

    def notice(self, text: str) -> None:
        """Something the user should read."""


def make_view(
    total_steps: int,
    plain: bool | None = None,
    *,
    done: int = 0,
    file: TextIO | None = None,
    columns: Columns = STEP_COLUMNS,
) -> View:
    """The live page where `file` (stdout) is a terminal and `plain` does not forbid it; `done` steps are behind."""
    file = file or sys.stdout
    console = Console(file=file)
    if plain is None:
        plain = not console.is_terminal or console.is_dumb_terminal
    if plain:
        return PlainView(total_steps, done, file, columns=columns)
    return LiveView(total_steps, done, console, columns)


def clean(text: str, limit: int | None = None) -> str:
    """Text that is safe to print: control, format, surrogate and odd line-end characters become U+FFFD.

    Beyond `limit` characters the middle is left out.
    """
    if limit is not None and len(text) > limit:
        half = limit // 2
        text = f"{text[:half]} [... {len(text) - 2 * half:,} characters ...] {text[-half:]}"
    text = text.replace("\r\n", "\n").replace("\t", "    ")
    return "".join(c if c == "\n" or unicodedata.category(c) not in _UNSAFE else "\ufffd" for c in text)


class _Clock:
    """Time of this session's steps, from which the time left is judged."""

    def __init__(self, total: int, done: int) -> None:
        self.total = total
        self.begin(done)

    def begin(self, done: int) -> None:
        self.done = self._first = done
        self._start = time.monotonic()

    @property
    def left(self) -> str:
        steps = self.done - self._first
        if steps <= 0:
            return "-:--"
        return clock((time.monotonic() - self._start) / steps * max(0, self.total - self.done))


class PlainView:
    """One line per step, no control characters; a line a minute while a phase is long."""

    def __init__(
        self,
        total_steps: int,
        done: int = 0,
        file: TextIO | None = None,
        quiet_seconds: float = 60.0,
        columns: Columns = STEP_COLUMNS,
    ) -> None:
        self._columns = columns
        self._file, self._clock, self._quiet = file or sys.stdout, _Clock(total_steps, done), quiet_seconds
        self._phase, self._total, self._done = "", None, 0
        self._last_line = time.monotonic()
        self._last_sample = -float("inf")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def resumed(self, step: int) -> None:
        self._clock.begin(step)

    def phase(self, name: str, total: int | None = None) -> None:
        self._phase, self._total, self._done = name, total, 0

    def advance(self, n: int = 1) -> None:
        self._done += n
        if time.monotonic() - self._last_line >= self._quiet:
            self._print(f"  step {self._clock.done + 1} {self._phase}: {self._done} of {self._total or '?'}")

    def step_done(self, step: int, metrics: Row) -> None:
        self._clock.done = step
        cells = "  ".join(f"{name} {number(metrics.get(key), form)}" for name, key, form in self._columns)
        self._print(f"step {step}/{self._clock.total}  {cells}  left {self._clock.left}")

    def eval_done(self, rows: Sequence[Row]) -> None:
        for row in rows:
            self._print(_eval_line(row))

    def validated(self, step: int, loss: float) -> None:
        self._print(_validation_line(step, loss))

    def sample(self, question: str, gold: str, text: str, verdict: str, reward: float) -> None:
        if time.monotonic() - self._last_sample < self._quiet:
            return
        self._last_sample = time.monotonic()
        body = clean(f"question: {question}\nresponse: {text}", 1200).replace("\n", "\n    ")
        self._print(f"  sample, {clean(verdict)}, reward {reward:+g}, gold {clean(gold, 80)}\n    {body}")

    def notice(self, text: str) -> None:
        # Indented, so that no line of a text can pass for one of ours.
        self._print(f"note: {clean(text)}".replace("\n", "\n    "))

    def _print(self, text: str) -> None:
        self._last_line = time.monotonic()
        encoding = getattr(self._file, "encoding", None) or "utf-8"
        try:
            print(text.encode(encoding, "replace").decode(encoding), file=self._file, flush=True)
        except RuntimeError:
            pass  # a signal handler spoke while a line was being written; Python refuses the second
        except (OSError, ValueError):
            # The reader is gone (`| head`, a closed log); the run is worth more than its view.
            self._print = lambda _: None  # type: ignore[method-assign]


class LiveView:
    """Progress of the run and of the phase, the last steps, the last sample."""

    def __init__(self, total_steps: int, done: int, console: Console, columns: Columns = STEP_COLUMNS) -> None:
        self._columns = columns
        self._console, self._clock = console, _Clock(total_steps, done)
        # Replaced, never changed in place: the page is drawn by a thread of its own.
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
        self._overall: TaskID = self._progress.add_task("run", total=total_steps, completed=done, note="left -:--")
        self._part: TaskID = self._progress.add_task("starting", total=None, note="")
        self._live = Live(console=console, refresh_per_second=4, get_renderable=self._page)

    def __enter__(self) -> Self:
        self._live.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.__exit__(None, None, None)

    def resumed(self, step: int) -> None:
        self._clock.begin(step)
        self._progress.update(self._overall, completed=step)

    def phase(self, name: str, total: int | None = None) -> None:
        self._progress.reset(self._part, description=clean(name), total=total)

    def advance(self, n: int = 1) -> None:
        self._progress.advance(self._part, n)

    def step_done(self, step: int, metrics: Row) -> None:
        self._clock.done = step
        self._steps = (*self._steps, (step, dict(metrics)))[-STEPS_SHOWN:]
        self._progress.update(self._overall, completed=step, note=f"left {self._clock.left}")

    def eval_done(self, rows: Sequence[Row]) -> None:
        self._evals = list(rows)

    def validated(self, step: int, loss: float) -> None:
        self._validation = _validation_line(step, loss)

    def sample(self, question: str, gold: str, text: str, verdict: str, reward: float) -> None:
        if time.monotonic() - self._sample_time < SAMPLE_SECONDS:
            return
        self._sample_time = time.monotonic()
        title = Text(f"{clean(verdict)}, reward {reward:+g}, gold {clean(gold, 80)}")
        body = Text(f"{clean(question, 400).strip()}\n", style="dim") + Text(clean(text, 1000).strip(), style="default")
        colour = "green" if verdict == "correct" else "yellow" if verdict == "error" else "red"
        self._sample = Panel(body, title=title, title_align="left", border_style=colour)

    def notice(self, text: str) -> None:
        with suppress(RuntimeError):  # as in PlainView: from a signal handler in the middle of a write
            self._live.console.print(Text(f"note: {clean(text)}", style="yellow"))

    def _page(self) -> RenderableType:
        parts: list[RenderableType] = [self._progress]
        if self._steps:
            parts.append(self._step_table())
        lines = [_eval_line(row) for row in self._evals] + ([self._validation] if self._validation else [])
        parts += [Text(each, no_wrap=True, overflow="ellipsis") for each in lines]
        # A page higher than the terminal would be cut off at the bottom anyway.
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
    name = clean(str(row.get("set", "?")), 60)
    return f"eval at step {row.get('step')}: {name} t={row.get('temperature', 0):g}  {'  '.join(cells)}"


def _validation_line(step: int, loss: float) -> str:
    return f"validation at step {step}: loss {loss:.4f} nats per response token"
