"""Programs measured in turns: each in a process of its own, which waits while another one runs."""

from __future__ import annotations

import atexit
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

HERE = Path(__file__).parent
OURS = HERE / "_ours.py"
DISTURBED = 0.15
"""Cores used by others from which on a measurement is marked."""

Job = dict[str, Any]
Row = dict[str, Any]


def scratch() -> Path:
    """A new folder that goes with this process."""
    folder = Path(tempfile.mkdtemp(prefix="benchmark-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def emit(**figures: Any) -> None:
    """A line of the results."""
    print(json.dumps(figures), flush=True)


@dataclass
class Contender:
    """A program that measures one thing, again and again when asked."""

    name: str
    program: Path
    job: Job
    python: str = sys.executable
    rows: list[Row] = field(default_factory=list)
    ready: Row = field(default_factory=dict)
    failure: str | None = None
    _process: subprocess.Popen[str] | None = None
    _log: Any = None

    def start(self) -> None:
        """Starts the program and waits until it is ready; what goes wrong is told, and the others go on."""
        folder = scratch()
        path = folder / "job.json"
        path.write_text(json.dumps(self.job))
        self._log = (folder / "stderr").open("w+")
        environment = os.environ | {"OMP_NUM_THREADS": str(self.job["threads"])}
        self._process = subprocess.Popen(
            [self.python, str(self.program), str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=environment,
        )
        self.ready = self._answer()

    def run(self, *, warm_up: bool = False) -> None:
        """One measurement; a warm-up is not kept."""
        if self._process is None or self.failure:
            return
        assert self._process.stdin is not None
        try:
            self._process.stdin.write("go\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            self._fail()
            return
        row = self._answer()
        if row and not warm_up:
            emit(name=self.name, **row, **({"disturbed": True} if disturbed(row) else {}))
            self.rows.append(row)

    def close(self) -> None:
        if self._process is None:
            return
        assert self._process.stdin is not None
        try:
            self._process.stdin.close()
            self._process.wait(timeout=20)
        except (BrokenPipeError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()
        self._log.close()

    def _answer(self) -> Row:
        assert self._process is not None and self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._fail()
            return {}
        return json.loads(line)

    def _fail(self) -> None:
        assert self._process is not None
        try:
            code = self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        self._log.seek(0)
        lines = self._log.read().strip().splitlines()
        self.failure = f"ended with {code}: {lines[-1] if lines else 'nothing said'}"
        emit(name=self.name, failed=self.failure, last_lines=lines[-12:])

    def median(self, key: str) -> float:
        """The median over the repeats; `phases/NAME` reaches into the phases."""
        first, _, second = key.partition("/")
        return median(row[first].get(second, 0.0) if second else row[first] for row in self.rows)

    @property
    def disturbances(self) -> int:
        return sum(map(disturbed, self.rows))


def disturbed(row: Row) -> bool:
    """Whether somebody else used the machine meanwhile."""
    return row["other_cores"] + row["steal_cores"] > DISTURBED


def hold(contenders: Sequence[Contender], *, repeats: int, warm_up: int) -> list[Contender]:
    """Measures all in turns, so that a slow minute hits every one of them; returns those that have figures."""
    try:
        for contender in contenders:
            contender.start()
            for _ in range(warm_up):
                contender.run(warm_up=True)
            if not contender.failure:
                emit(name=contender.name, **contender.ready)
        for _ in range(repeats):
            for contender in contenders:
                contender.run()
    finally:
        for contender in contenders:
            contender.close()
    return [contender for contender in contenders if contender.rows]


def left_out(name: str, why: str) -> None:
    emit(name=name, left_out=why)


def print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A Markdown table."""
    print("\n| " + " | ".join(head) + " |")
    print("|" + "---|" * len(head))
    for row in rows:
        print("| " + " | ".join(row) + " |")


def print_notes(contenders: Sequence[Contender]) -> None:
    """What a reader of the table must know of how it came about."""
    for contender in contenders:
        if contender.failure:
            print(f"\n{contender.name}: {contender.failure}")
    shaken = [f"{c.name} {c.disturbances} of {len(c.rows)}" for c in contenders if c.disturbances]
    if shaken:
        print(f"\nRepeats in which others used more than {DISTURBED} cores (measure again): {', '.join(shaken)}.")
