"""A rehearsal: a run on two Ray nodes of this machine, in which something is broken again and again."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simplerl.errors import ClusterError, DependencyError
from simplerl.storage import checkpoint
from simplerl.storage.records import RunFolder

STORE = 256 << 20
"""Bytes of a node's object store."""
FILLED = 0.95
"""Share of it that is taken where it is to be full."""
LIMIT = 600.0
"""Seconds in which the run must do another step, or the drill has failed."""


@dataclass(frozen=True, slots=True)
class Fault:
    """What was broken, after which step, and how long it took until another step was recorded."""

    kind: str
    step: int
    seconds: float


class Drill:
    """One run and its breaking. Kinds are the methods whose names begin with `break_`."""

    def __init__(self, command: Sequence[str], folder: Path, seed: int) -> None:
        """`command` are the arguments of `simplerl train` that begin the run of `folder`, or go on with it."""
        self.command, self.folder, self.random = command, RunFolder(folder), random.Random(seed)
        self.faults: list[Fault] = []
        self.driver: subprocess.Popen[bytes] | None = None

    @classmethod
    def kinds(cls) -> list[str]:
        return [name.removeprefix("break_").replace("_", " ") for name in dir(cls) if name.startswith("break_")]

    def run(self, kinds: Sequence[str], notice: Callable[[str], None]) -> None:
        """Breaks these one after the other, each at some moment of a step, and lets the run end."""
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the nodes end with it
        with self._cluster():
            self._begin()
            try:
                for number, kind in enumerate(kinds, 1):
                    if not self._keep_driver():
                        notice(f"the run ended after {len(self.faults)} faults; give it more steps")
                        break
                    step = self._wait_for_a_step()
                    time.sleep(self.random.uniform(0, 4))
                    begun = time.monotonic()
                    getattr(self, f"break_{kind.replace(' ', '_')}")()
                    self._wait_for_a_step()
                    self.faults.append(Fault(kind, step, time.monotonic() - begun))
                    notice(
                        f"{number} of {len(kinds)}: {kind} after step {step}; made good {self.faults[-1].seconds:.0f} s"
                    )
                while self._keep_driver():
                    time.sleep(0.2)
            finally:
                self._stop(signal.SIGKILL)

    # --- what is broken -------------------------------------------------------------------------------------------

    def break_engine_killed(self) -> None:
        self._signal("ray::EngineWorker", signal.SIGKILL)

    def break_engine_hung(self) -> None:
        self._signal("ray::EngineWorker", signal.SIGSTOP)

    def break_learner_killed(self) -> None:
        self._signal("ray::RankWorker", signal.SIGKILL)

    def break_learner_hung(self) -> None:
        self._signal("ray::RankWorker", signal.SIGSTOP)

    def break_node_lost(self) -> None:
        """The second node with all that runs on it; another takes its place."""
        self._nodes.remove_node(self._second, allow_graceful=False)
        self._second = self._nodes.add_node(num_cpus=1, object_store_memory=STORE)

    def break_store_full(self) -> None:
        """Somebody else's objects fill the first node's store for the length of a step."""
        import numpy as np
        import ray

        ray.init(address=self._nodes.address, log_to_driver=False, configure_logging=False)
        try:
            held = [ray.put(np.ones(STORE // 8, dtype=np.uint8)) for _ in range(int(8 * FILLED))]
            self._wait_for_a_step()
            del held
        finally:
            ray.shutdown()

    def break_driver_killed(self) -> None:
        self._stop(signal.SIGKILL)

    def break_driver_stopped(self) -> None:
        self._stop(signal.SIGTERM)

    def break_checkpoint_torn(self) -> None:
        """The driver dies, and the newest checkpoint has lost its end, as after a power cut.

        Not the only one: without another the run would rightly refuse to begin from nothing.
        """
        while len(checkpoint.checkpoints(self.folder.path)) < 2 and self._keep_driver():
            self._wait_for_a_step()
        self._stop(signal.SIGKILL)
        *others, newest = checkpoint.checkpoints(self.folder.path).values()
        if others:
            file = next(newest.rglob("*.safetensors"))
            os.truncate(file, file.stat().st_size // 2)

    # --- the run --------------------------------------------------------------------------------------------------

    @contextmanager
    def _cluster(self) -> Iterator[None]:
        try:
            from ray.cluster_utils import Cluster
        except ImportError as error:
            raise DependencyError(f"a drill needs Ray ({error}); pip install 'simplerl[ray]'") from error
        size = {"num_cpus": 1, "object_store_memory": STORE}
        self._nodes: Any = Cluster(initialize_head=True, head_node_args={**size, "include_dashboard": False})
        self._second = self._nodes.add_node(**size)
        try:
            yield
        finally:
            self._nodes.shutdown()

    def _begin(self) -> None:
        program = "from simplerl.cli.main import main; main()"
        command = [sys.executable, "-c", program, "train", *self.command, "--run-dir", str(self.folder.path), "--plain"]
        self.folder.path.mkdir(parents=True, exist_ok=True)
        with open(self.folder.path / "drill.log", "ab") as log:
            self.driver = subprocess.Popen(
                [*command, "--set", f"cluster.ray={self._nodes.address}"], stdout=log, stderr=log
            )

    def _keep_driver(self) -> bool:
        """Whether the run goes on; a driver that was killed or stopped is begun again."""
        assert self.driver is not None
        code = self.driver.poll()
        if code is None:
            return True
        if code > 0:
            raise ClusterError(f"the run ended with {code}; see {self.folder.path / 'drill.log'}")
        if (self.folder.path / "exports" / "final").is_dir():
            return False
        self._begin()
        return True

    def _stop(self, number: int) -> None:
        if self.driver is not None and self.driver.poll() is None:
            self.driver.send_signal(number)
            self.driver.wait()

    def _wait_for_a_step(self) -> int:
        """Waits until a step that was not there before is recorded, or the run ends; the last step.

        A resume takes lines away and a step that is done again writes another one: it took another time.
        """
        seen, begun = self.folder.read_metrics(), time.monotonic()
        while not (rows := self.folder.read_metrics()) or rows[-1] in seen:
            if not self._keep_driver():
                break
            if time.monotonic() - begun > LIMIT:
                raise ClusterError(f"no step in {LIMIT:.0f} s; see {self.folder.path / 'drill.log'}")
            time.sleep(0.05)
        return rows[-1]["step"] if rows else 0

    def _signal(self, name: str, number: int) -> None:
        """Sends a signal to one of the processes of that name under this one, as soon as there is one."""
        while self._keep_driver():
            found = [pid for pid in descendants(os.getpid()) if _title(pid).startswith(name)]
            if found:
                with suppress(ProcessLookupError):
                    os.kill(self.random.choice(found), number)
                return
            time.sleep(0.1)


def descendants(root: int) -> list[int]:
    """All processes under one, in the order of their numbers."""
    parents = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            # The name in parentheses may hold spaces.
            parents[int(status.parent.name)] = int(status.read_text().rpartition(")")[2].split()[1])
    found, edge = set[int](), {root}
    while edge:
        edge = {pid for pid, parent in parents.items() if parent in edge} - found
        found |= edge
    return sorted(found)


def _title(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""
