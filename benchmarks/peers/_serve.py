"""How a measured program talks to the benchmark that started it. Standard library only, for any interpreter.

The program is started with the path of a job, a JSON file. It says once that it is ready, and then measures once for
every line "go" on its standard input, so that several programs can take turns. Each answer is a line of JSON.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from pathlib import Path
from typing import Any

Job = dict[str, Any]
MIB = 1 << 20
_TICKS = os.sysconf("SC_CLK_TCK")


def read_job() -> Job:
    """The job named on the command line. The number of threads is set by the environment, before anything loads."""
    return json.loads(Path(sys.argv[1]).read_text())


def canned_responses(job: Job) -> list[list[int]]:
    """The random responses of a step whose rollout is not measured."""
    generator = random.Random(1)
    count = job["prompts_per_step"] * job["samples"]
    return [generator.choices(range(job["vocab"]), k=job["max_tokens"]) for _ in range(count)]


def rule_reward(job: Job, first_token: int, text: str, answer: str) -> float:
    """The reward of a response. Fixed length: its first token's parity. Real: +1, -0.5 and -1 by the last box."""
    if job["fixed"]:
        return float(first_token % 2)
    start = text.rfind("\\boxed{")
    if start < 0 or (end := text.find("}", start)) < 0:
        return -1.0
    return 1.0 if text[start + 7 : end].strip() == answer.strip() else -0.5


class Meter:
    """Wall time, this process's processor time, and how much of the processor everything else took meanwhile."""

    def __init__(self) -> None:
        reset_peak()
        self._begun, self._own, self._load = time.perf_counter(), _own_seconds(), _machine_seconds()

    def read(self) -> dict[str, float]:
        """`other_cores` is what other processes used on average, `steal_cores` what other machines took."""
        seconds = time.perf_counter() - self._begun
        own = _own_seconds() - self._own
        busy, steal = (now - then for now, then in zip(_machine_seconds(), self._load, strict=True))
        return {
            "seconds": seconds,
            "own_cores": round(own / seconds, 2),
            "other_cores": round(max(0.0, busy - own) / seconds, 2),
            "steal_cores": round(steal / seconds, 2),
            "peak_mib": peak_mib(),
        }


def _own_seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _machine_seconds() -> tuple[float, float]:
    """Seconds that all processors have worked, and that the hypervisor has kept them from working."""
    try:
        fields = [int(value) for value in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    except OSError:
        return 0.0, 0.0
    user, nice, system, _, _, interrupts, soft, steal = fields
    return (user + nice + system + interrupts + soft) / _TICKS, steal / _TICKS


def reset_peak() -> None:
    """Lets the peak of the memory in use begin anew, where the system can."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def peak_mib() -> float:
    """The most memory that this process has held since `reset_peak`; 0 where the system does not say."""
    return _status("VmHWM")


def held_mib() -> float:
    """The memory that this process holds now."""
    return _status("VmRSS")


def _status(name: str) -> float:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith(name + ":")), 0.0)


class Phases:
    """Seconds of the named parts of a step."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def add(self, name: str, seconds: float) -> None:
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds

    def timed(self, name: str, function: Any) -> Any:
        """The function, timed under a name."""

        def call(*given: Any, **named: Any) -> Any:
            begun = time.perf_counter()
            try:
                return function(*given, **named)
            finally:
                self.add(name, time.perf_counter() - begun)

        return call

    def take(self) -> dict[str, float]:
        """What was measured, which is then forgotten."""
        taken, self.seconds = self.seconds, {}
        return taken


class Server:
    """The program's end of the line. What libraries print goes to the standard error instead."""

    def __init__(self) -> None:
        self._out = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)

    def say(self, **figures: Any) -> None:
        self._out.write(json.dumps(figures) + "\n")

    def wait(self) -> bool:
        """Whether another measurement is asked for; returns when it is known."""
        return sys.stdin.readline() == "go\n"

    def serve(self, measure: Any, **ready: Any) -> None:
        """Measures for as long as it is asked to."""
        self.say(ready=True, **ready)
        while self.wait():
            meter = Meter()
            figures = measure()
            self.say(**meter.read() | figures)
