"""Symbolic comparison in worker processes: whatever an answer does, it does not do it here.

A thread per worker owns its process (`simplerl.verifiers.math.worker`), hands it one pair at a time and replaces it
when it dies or does not answer. Nothing here imports sympy, and no process starts before the first pair.
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
import time
import weakref
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Literal

from simplerl.errors import DependencyError

Status = Literal["equal", "different", "unparsed", "timeout", "stalled", "memory", "crash"]

LONGEST = 2000
"""Characters of an answer that is looked at. Two must fit in a pipe (64 KiB), or a worker that hangs would block us."""

ATTEMPTS = 3
START_SECONDS = 120.0
CLOSE_SECONDS = 30.0
GRACE_SECONDS = 3.0
"""What a worker gets beyond the time of its child, to answer."""

COMMAND = (sys.executable, "-P", "-m", "simplerl.verifiers.math.worker")
# One thread, and the same order of sets every time.
SETTINGS = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}


@dataclass(frozen=True, slots=True)
class Outcome:
    """What comparing two answers ended in.

    `different` is also what math-verify gives up on. `unparsed`: one of them is not mathematics. `timeout`: the CPU
    time was used up, which load on the machine cannot cause. `stalled`: the wall-clock time was, twice, the second time
    with nothing else running in the pool. `memory`, `crash`: there was no memory left, or the process died. `seconds`
    is CPU time, and wall-clock time for a worker that did not answer.
    """

    status: Status
    seconds: float


@dataclass(frozen=True, slots=True)
class Task:
    answer: str
    gold: str
    future: Future[Outcome] = field(default_factory=Future)


class SymbolicPool:
    """Compares answers, `workers` at a time. Safe from any thread; `asyncio.wrap_future` makes a future awaitable.

    `memory_bytes` is what one comparison may add to a warm worker (about 90 MB). At most `queue` pairs wait.
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
        gate = Gate()
        self._tasks = Tasks(queue)
        self._slots = [Slot(self._tasks, gate, limits) for _ in range(workers)]
        # Runs at the latest when the interpreter ends, and does not know this object, which it would keep alive.
        self._end = weakref.finalize(self, end, self._tasks, self._slots, os.getpid())

    def submit(self, answer: str, gold: str) -> Future[Outcome]:
        """The outcome as soon as there is one; waits while the queue is full. Raises `RuntimeError` once closed.

        The future raises `DependencyError` where workers cannot start, and is cancelled if the pool closes first.
        """
        task = Task(answer, gold)
        if max(len(answer), len(gold)) > LONGEST:
            task.future.set_result(Outcome("unparsed", 0.0))
            return task.future
        self._tasks.put(task)
        return task.future

    def close(self) -> None:
        """Ends all processes and threads; pairs that wait are cancelled, those being compared end as `crash`."""
        self._end()


def end(tasks: Tasks, slots: list[Slot], owner: int) -> None:
    """Closes a pool, in the process that made it and not in one forked from it."""
    if os.getpid() != owner:
        return
    for task in tasks.close():
        task.future.cancel()
    for slot in slots:
        slot.worker.interrupt()
    for slot in slots:
        if slot.thread is not threading.current_thread():
            slot.thread.join(CLOSE_SECONDS)


class Tasks:
    """A queue of bounded length that can be closed under those who wait at either end of it."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._waiting: deque[Task] = deque()
        self._changed = threading.Condition()
        self._closed = False

    def put(self, task: Task) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._closed or len(self._waiting) < self._most)
            if self._closed:
                raise RuntimeError("the pool is closed")
            self._waiting.append(task)
            self._changed.notify_all()

    def get(self) -> Task | None:
        """The next task, when there is one; None once the queue is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._waiting)
            self._changed.notify_all()
            return None if self._closed else self._waiting.popleft()

    def close(self) -> list[Task]:
        """Whatever still waits."""
        with self._changed:
            self._closed = True
            left, self._waiting = list(self._waiting), deque()
            self._changed.notify_all()
            return left


class Gate:
    """Many are inside together, or one alone; who wants to be alone goes first."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inside = 0
        self._wanting = 0

    @contextlib.contextmanager
    def passed(self, *, alone: bool) -> Iterator[None]:
        with self._changed:
            self._wanting += alone
            self._changed.wait_for(lambda: not (self._inside if alone else self._wanting))
            self._inside += 1
        try:
            yield
        finally:
            with self._changed:
                self._inside -= 1
                self._wanting -= alone
                self._changed.notify_all()


class Slot:
    """A thread with a worker, which it starts for its first task."""

    def __init__(self, tasks: Tasks, gate: Gate, limits: dict[str, float]) -> None:
        self.worker = Worker()
        self._tasks = tasks
        self._gate = gate
        self._limits = limits
        self.thread = threading.Thread(target=self._run, name="symbolic-verifier", daemon=True)
        self.thread.start()

    def _run(self) -> None:
        while task := self._tasks.get():
            if task.future.set_running_or_notify_cancel():
                self._resolve(task)
        self.worker.discard()

    def _resolve(self, task: Task) -> None:
        try:
            outcome = self._attempts(task, alone=False)
            if outcome.status == "stalled":
                outcome = self._attempts(task, alone=True)
        except Exception as error:
            task.future.set_exception(error)
        else:
            task.future.set_result(outcome)

    def _attempts(self, task: Task, *, alone: bool) -> Outcome:
        with self._gate.passed(alone=alone):
            for _ in range(ATTEMPTS):
                with contextlib.suppress(OSError, ValueError):
                    return self._attempt(task)
                self.worker.discard()
        return Outcome("crash", 0.0)

    def _attempt(self, task: Task) -> Outcome:
        self.worker.start()
        seconds = self._limits["wall_seconds"] + GRACE_SECONDS
        try:
            reply = self.worker.ask({"answer": task.answer, "gold": task.gold, **self._limits}, seconds)
        except TimeoutError:
            self.worker.discard()
            return Outcome("stalled", seconds)
        return Outcome(reply["status"], reply["seconds"])


class Worker:
    """The process of a slot. `interrupt` may come from any thread; the rest is for the thread of the slot.

    A process that is lost, or says what is no answer, raises `OSError` or `ValueError`.
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._missing: str | None = None
        self._interrupted = False
        self._pending = b""
        self._ids = itertools.count()
        # Reentrant: the collector may end a forgotten pool in whichever thread it runs.
        self._lock = threading.RLock()

    def start(self) -> None:
        """Starts the process, unless it runs. Raises `DependencyError` if math-verify does not work here."""
        if self._missing is None and self._process is None:
            self._spawn()
            self._missing = self._line(START_SECONDS).get("error")
        if self._missing is not None:
            raise DependencyError(f"math-verify does not work here; `pip install math-verify` ({self._missing})")

    def ask(self, question: dict[str, Any], seconds: float) -> dict[str, Any]:
        """The reply to a question. Raises `TimeoutError` for one that takes longer."""
        assert self._process is not None and self._process.stdin is not None
        number = next(self._ids)
        self._process.stdin.write(json.dumps({"id": number, **question}).encode() + b"\n")
        reply = self._line(seconds)
        if reply.get("id") != number:
            raise ValueError(f"reply {reply.get('id')} to question {number}")
        return reply

    def interrupt(self) -> None:
        """Kills the process and starts no other; who waits for its answer learns it from the end of the pipe."""
        with self._lock:
            self._interrupted = True
            self._kill()

    def discard(self) -> None:
        """Kills the process and whatever it started, and forgets it."""
        with self._lock:
            self._kill()
            process, self._process, self._pending = self._process, None, b""
        if process is not None:
            process.communicate()  # closes the pipes and waits

    def _spawn(self) -> None:
        inherited = {name: os.environ[name] for name in ("PATH", "HOME", "LD_LIBRARY_PATH") if name in os.environ}
        path = os.pathsep.join(os.path.abspath(folder) for folder in sys.path)
        pipe, nothing = subprocess.PIPE, subprocess.DEVNULL
        environment = {**inherited, **SETTINGS, "PYTHONPATH": path}
        with self._lock:
            if self._interrupted:
                raise ConnectionError("the pool is closed")
            # A session of its own: Ctrl-C is not for it, and killing its group kills its children too.
            self._process = subprocess.Popen(
                COMMAND, bufsize=0, stdin=pipe, stdout=pipe, stderr=nothing, env=environment, start_new_session=True
            )

    def _line(self, seconds: float) -> dict[str, Any]:
        """The next line the worker writes."""
        assert self._process is not None and self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        events, deadline = select.poll(), time.monotonic() + seconds
        events.register(descriptor, select.POLLIN)
        while b"\n" not in self._pending:
            if not events.poll(max(0.0, deadline - time.monotonic()) * 1000):
                raise TimeoutError
            data = os.read(descriptor, 1 << 16)
            if not data:
                raise ConnectionError("the worker ended")
            self._pending += data
        line, _, self._pending = self._pending.partition(b"\n")
        return json.loads(line)

    def _kill(self) -> None:
        # Not waited for yet, so its number is still its own.
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
