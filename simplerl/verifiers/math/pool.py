"""Symbolic comparison of answers in worker processes that can be killed.

Each worker thread owns one process (`simplerl.verifiers.math.worker`), sends it one pair at a time, and replaces it if
it dies or does not answer. This module does not import sympy, and no process starts before the first pair.
Why not a library's process pool: docs/adr/0002-symbolic-pool.md.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import select
import signal
import subprocess
import sys
import threading
import weakref
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Literal

from simplerl.errors import DependencyError

Status = Literal["equal", "different", "unparsed", "timeout", "stalled", "memory", "crash"]

MAX_CHARACTERS = 2000
"""Longest answer that is compared. Two of them fit in a pipe (64 KiB), so writing to a hung worker cannot block."""

ATTEMPTS = 3
START_SECONDS = 120.0
CLOSE_SECONDS = 30.0
GRACE_SECONDS = 3.0
"""Time a worker has to report, after the wall-clock limit of its comparison."""

COMMAND = (sys.executable, "-P", "-m", "simplerl.verifiers.math.worker")
# One thread each, and the same order of sets in every process.
SETTINGS = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}


@dataclass(frozen=True, slots=True)
class Outcome:
    """Result of one comparison.

    `different`: also if math-verify gives up. `unparsed`: one answer is not mathematics. `timeout`: the CPU time was
    used up, which load on the machine cannot cause. `stalled`: the wall-clock time was used up twice, the second time
    with nothing else running in the pool. `memory`: the memory limit was reached. `crash`: the process died. `seconds`
    is CPU time, or wall-clock time if the worker did not answer.
    """

    status: Status
    seconds: float


@dataclass(frozen=True, slots=True)
class Task:
    answer: str
    gold: str
    future: Future[Outcome] = field(default_factory=Future)


class SymbolicPool:
    """Compare answers in `workers` processes. Safe to call from any thread; `asyncio.wrap_future` awaits a future.

    `memory_bytes`: memory of one comparison, beyond that of its worker (about 90 MB). At most `queue` pairs wait.
    """

    def __init__(
        self,
        workers: int = 1,
        *,
        cpu_seconds: float = 2,
        wall_seconds: float = 6,
        memory_bytes: int = 1 << 30,
        queue: int = 1024,
    ) -> None:
        limits = {"cpu_seconds": cpu_seconds, "wall_seconds": wall_seconds, "memory_bytes": memory_bytes}
        self._workers = Workers(workers, limits, queue)
        # Called at interpreter exit at the latest. A reference to this object would keep it alive.
        self._close = weakref.finalize(self, self._workers.close)

    def submit(self, answer: str, gold: str) -> Future[Outcome]:
        """Queue a pair; block while the queue is full. Raise `RuntimeError` if the pool is closed.

        The future raises `DependencyError` if workers cannot start. It is cancelled if the pool closes first.
        """
        task = Task(answer, gold)
        if max(len(answer), len(gold)) > MAX_CHARACTERS:
            task.future.set_result(Outcome("unparsed", 0.0))
        else:
            self._workers.put(task)
        return task.future

    def close(self) -> None:
        """Stop all processes and threads. Waiting pairs are cancelled; running pairs end as `crash`."""
        self._close()


class Workers:
    """Bounded queue of pairs, and the threads that take from it, each with its own process."""

    def __init__(self, workers: int, limits: dict[str, float], max_waiting: int) -> None:
        self.processes = [WorkerProcess() for _ in range(workers)]
        self._limits = limits
        self._owner = os.getpid()
        self._max_waiting = max_waiting
        self._waiting: deque[Task] = deque()
        self._closed = False
        self._changed = threading.Condition()
        # A comparison holds one permit. One that must run alone holds all of them, and the turnstile while it collects
        # them, so that later pairs cannot overtake it again and again.
        self._permits = threading.Semaphore(workers)
        self._turnstile = threading.Lock()
        self._threads = [
            threading.Thread(target=self._run, args=(process,), name="symbolic-verifier", daemon=True)
            for process in self.processes
        ]
        for thread in self._threads:
            thread.start()

    def put(self, task: Task) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._closed or len(self._waiting) < self._max_waiting)
            if self._closed:
                raise RuntimeError("the pool is closed")
            self._waiting.append(task)
            self._changed.notify_all()

    def close(self) -> None:
        """Stop everything, but only in the process that made the pool, not in one forked from it."""
        if os.getpid() != self._owner:
            return
        with self._changed:
            self._closed = True
            cancelled, self._waiting = self._waiting, deque()
            self._changed.notify_all()
        for task in cancelled:
            task.future.cancel()
        for process in self.processes:
            process.kill()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(CLOSE_SECONDS)

    def _next(self) -> Task | None:
        """Wait for the next pair. None: the pool is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._waiting)
            self._changed.notify_all()
            return None if self._closed else self._waiting.popleft()

    def _run(self, process: WorkerProcess) -> None:
        while task := self._next():
            if not task.future.set_running_or_notify_cancel():
                continue
            try:
                outcome = self._compare(process, task)
            except Exception as error:
                task.future.set_exception(error)
            else:
                task.future.set_result(outcome)
        process.discard()

    def _compare(self, process: WorkerProcess, task: Task) -> Outcome:
        """Compare a pair. If it stalls, compare it once more with nothing else running."""
        with self._turnstile:
            pass
        with self._permits:
            outcome = self._attempt(process, task)
        if outcome.status == "stalled":
            with self._turnstile, contextlib.ExitStack() as held:
                for _ in self.processes:
                    held.enter_context(self._permits)
                outcome = self._attempt(process, task)
        return outcome

    def _attempt(self, process: WorkerProcess, task: Task) -> Outcome:
        """Ask the process; if it is lost, start a new one and ask that, `ATTEMPTS` times in all."""
        seconds = self._limits["wall_seconds"] + GRACE_SECONDS
        for _ in range(ATTEMPTS):
            try:
                process.start()
                reply = process.ask({"answer": task.answer, "gold": task.gold, **self._limits}, seconds)
            except (OSError, ValueError):
                process.discard()
                continue
            if reply is None:
                process.discard()
                return Outcome("stalled", seconds)
            return Outcome(reply["status"], reply["seconds"])
        return Outcome("crash", 0.0)


class WorkerProcess:
    """Process of one worker thread. `kill` is safe to call from any thread, the other methods only from that one.

    A process that is lost, or sends a reply to another question, raises `OSError` or `ValueError`.
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._import_error: str | None = None
        self._closed = False
        self._ids = itertools.count()
        # Reentrant: garbage collection may close a forgotten pool in any thread, at any moment.
        self._lock = threading.RLock()

    def start(self) -> None:
        """Start the process unless it runs. Raise `DependencyError` if it cannot import math-verify."""
        if self._import_error is None and self._process is None:
            self._spawn()
            ready = self._read(START_SECONDS)
            if ready is None:
                raise TimeoutError(f"the worker did not start in {START_SECONDS:g} s")
            self._import_error = ready.get("error")
        if self._import_error is not None:
            raise DependencyError(f"math-verify does not work here; `pip install math-verify` ({self._import_error})")

    def ask(self, question: Mapping[str, str | float], seconds: float) -> dict[str, Any] | None:
        """Send a question and wait for the reply. None: no reply in `seconds`."""
        assert self._process is not None and self._process.stdin is not None
        number = next(self._ids)
        self._process.stdin.write(json.dumps({"id": number, **question}).encode() + b"\n")
        self._process.stdin.flush()
        reply = self._read(seconds)
        if reply is not None and reply.get("id") != number:
            raise ValueError(f"reply {reply.get('id')} to question {number}")
        return reply

    def kill(self) -> None:
        """Kill the process for good. A thread that waits for its reply gets an `OSError`."""
        with self._lock:
            self._closed = True
            self._kill_group()

    def discard(self) -> None:
        """Kill the process and its children, and wait for it. `start` then starts a new one."""
        with self._lock:
            self._kill_group()
            process, self._process = self._process, None
        if process is not None:
            process.communicate()  # closes the pipes and waits

    def _spawn(self) -> None:
        # Nothing else of the environment, which may hold secrets, is passed to a process that reads hostile text.
        inherited = {name: os.environ[name] for name in ("PATH", "HOME", "LD_LIBRARY_PATH") if name in os.environ}
        path = os.pathsep.join(os.path.abspath(folder) for folder in sys.path)
        with self._lock:
            if self._closed:
                raise ConnectionError("the pool is closed")
            self._process = subprocess.Popen(
                COMMAND,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={**inherited, **SETTINGS, "PYTHONPATH": path},
                start_new_session=True,  # Ctrl-C does not reach it, and killing its group kills its children too
            )

    def _read(self, seconds: float) -> dict[str, Any] | None:
        """Read one line of JSON. None: none in `seconds`. The worker writes a line at once, so no part of one waits."""
        assert self._process is not None and self._process.stdout is not None
        readable = select.poll()
        readable.register(self._process.stdout, select.POLLIN)
        if not readable.poll(seconds * 1000):
            return None
        line = self._process.stdout.readline()
        if not line:
            raise ConnectionError("the worker ended")
        return json.loads(line)

    def _kill_group(self) -> None:
        # The process was not waited for yet, so its number cannot belong to another one.
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
