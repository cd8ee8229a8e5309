"""A fault drill: a run on two Ray nodes of this machine, in which one fault after another is caused on purpose."""

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

STORE_BYTES = 256 << 20
"""Size of each node's object store."""

FILLED_SHARE = 0.95
"""Share of the store that the fault "store full" fills."""

STEP_TIMEOUT = 600.0
"""Seconds in which the run must record another step; otherwise the drill fails."""


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault: its kind, the step before it, and the seconds until the next step was recorded."""

    kind: str
    step: int
    seconds: float


class Drill:
    """One run and its faults. Each method named `break_KIND` causes one kind of fault."""

    def __init__(self, command: Sequence[str], folder: Path, seed: int) -> None:
        """`command`: arguments of `simplerl train` for the run of `folder`. `seed` draws the moments of the faults."""
        self.command, self.folder, self.random = command, RunFolder(folder), random.Random(seed)
        self.faults: list[Fault] = []
        self.driver: subprocess.Popen[bytes] | None = None

    @classmethod
    def kinds(cls) -> list[str]:
        """Kinds of faults, sorted."""
        return [name.removeprefix("break_").replace("_", " ") for name in dir(cls) if name.startswith("break_")]

    def run(self, kinds: Sequence[str], notice: Callable[[str], None]) -> None:
        """Cause faults of these kinds in order, each at a random moment of a step, then wait for the run's end.

        Stops early, with a notice, if the run ends first. Raises `ClusterError` if the run fails or stands still.
        """
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # run the `finally` blocks, which stop the nodes
        with self._cluster():
            self._start_driver()
            try:
                for number, kind in enumerate(kinds, 1):
                    if not self._keep_driver_running():
                        notice(f"the run ended after {len(self.faults)} faults; raise train.steps")
                        break
                    step = self._wait_for_step()
                    time.sleep(self.random.uniform(0, 4))
                    started = time.monotonic()
                    getattr(self, f"break_{kind.replace(' ', '_')}")()
                    self._wait_for_step()
                    seconds = time.monotonic() - started
                    self.faults.append(Fault(kind, step, seconds))
                    notice(f"{number} of {len(kinds)}: {kind} after step {step}, next step after {seconds:.0f} s")
                while self._keep_driver_running():
                    time.sleep(0.2)
            finally:
                self._stop(signal.SIGKILL)

    # --- faults ---------------------------------------------------------------------------------------------------

    def break_engine_killed(self) -> None:
        self._signal("ray::EngineWorker", signal.SIGKILL)

    def break_engine_hung(self) -> None:
        self._signal("ray::EngineWorker", signal.SIGSTOP)

    def break_learner_killed(self) -> None:
        self._signal("ray::RankWorker", signal.SIGKILL)

    def break_learner_hung(self) -> None:
        self._signal("ray::RankWorker", signal.SIGSTOP)

    def break_node_lost(self) -> None:
        """Remove the second node with its processes, and add a new one."""
        self._nodes.remove_node(self._second, allow_graceful=False)
        self._second = self._nodes.add_node(num_cpus=1, object_store_memory=STORE_BYTES)

    def break_store_full(self) -> None:
        """Fill the first node's store with other objects, during one step."""
        import numpy as np
        import ray

        ray.init(address=self._nodes.address, log_to_driver=False, configure_logging=False)
        try:
            held = [ray.put(np.ones(STORE_BYTES // 8, dtype=np.uint8)) for _ in range(int(8 * FILLED_SHARE))]
            self._wait_for_step()
            del held
        finally:
            ray.shutdown()

    def break_driver_killed(self) -> None:
        self._stop(signal.SIGKILL)

    def break_driver_stopped(self) -> None:
        self._stop(signal.SIGTERM)

    def break_checkpoint_torn(self) -> None:
        """Kill the driver and cut off half of a file of the newest checkpoint, as a power cut may.

        Waits for a second checkpoint first: a run with no complete checkpoint refuses to start over.
        """
        while len(checkpoint.checkpoints(self.folder.path)) < 2 and self._keep_driver_running():
            self._wait_for_step()
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
        size: dict[str, Any] = {"num_cpus": 1, "object_store_memory": STORE_BYTES}
        self._nodes = Cluster(initialize_head=True, head_node_args={**size, "include_dashboard": False})
        self._second = self._nodes.add_node(**size)
        try:
            yield
        finally:
            self._nodes.shutdown()

    def _start_driver(self) -> None:
        program = "from simplerl.cli.main import main; main()"
        command = [sys.executable, "-c", program, "train", *self.command, "--run-dir", str(self.folder.path), "--plain"]
        self.folder.path.mkdir(parents=True, exist_ok=True)
        with open(self.folder.path / "drill.log", "ab") as log:
            self.driver = subprocess.Popen(
                [*command, "--set", f"cluster.ray={self._nodes.address}"], stdout=log, stderr=log
            )

    def _keep_driver_running(self) -> bool:
        """True while the run lasts. Restarts the driver if a fault ended it. Raises `ClusterError` if it failed."""
        assert self.driver is not None
        code = self.driver.poll()
        if code is None:
            return True
        if code > 0:
            raise ClusterError(f"the run failed with exit code {code}; see {self.folder.path / 'drill.log'}")
        if (self.folder.path / "exports" / "final").is_dir():
            return False
        self._start_driver()
        return True

    def _stop(self, number: int) -> None:
        if self.driver is not None and self.driver.poll() is None:
            self.driver.send_signal(number)
            self.driver.wait()

    def _wait_for_step(self) -> int:
        """Wait until another step is recorded, or the run ends. Returns the last step.

        A step that is repeated after a resume counts: its line differs from the one before in its times.
        """
        seen, started = self.folder.read_metrics(), time.monotonic()
        while not (rows := self.folder.read_metrics()) or rows[-1] in seen:
            if not self._keep_driver_running():
                break
            if time.monotonic() - started > STEP_TIMEOUT:
                raise ClusterError(f"no step within {STEP_TIMEOUT:.0f} s; see {self.folder.path / 'drill.log'}")
            time.sleep(0.05)
        return rows[-1]["step"] if rows else 0

    def _signal(self, name: str, number: int) -> None:
        """Wait for a descendant process whose title starts with `name`, and send a signal to one of them."""
        while self._keep_driver_running():
            found = [pid for pid in descendants(os.getpid()) if process_title(pid).startswith(name)]
            if found:
                with suppress(ProcessLookupError):
                    os.kill(self.random.choice(found), number)
                return
            time.sleep(0.1)


def descendants(root: int) -> list[int]:
    """Process ids of all descendants of a process, sorted."""
    parents = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            # The name in parentheses may hold spaces.
            parents[int(status.parent.name)] = int(status.read_text().rpartition(")")[2].split()[1])
    found, newest = set[int](), {root}
    while newest:
        newest = {pid for pid, parent in parents.items() if parent in newest} - found
        found |= newest
    return sorted(found)


def process_title(pid: int) -> str:
    """Command line of a process. Empty if the process has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""
