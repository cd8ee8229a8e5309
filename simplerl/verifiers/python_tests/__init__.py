"""The verifier of Python programs: run the response's program, and the problem's tests on it.

The program is the last fenced block of the response that is marked as Python. `problem.answer` holds the tests: Python
statements with asserts, such as the `test_list` of MBPP joined by line breaks. This verifier RUNS CODE THAT A MODEL
WROTE, so `build` refuses unless `allow_running_code` is true.

Verdicts: `correct` if every test passes. `wrong` if an assert fails, the program or a test raises, or the program
exits, crashes or runs out of time or memory. `no_answer` without a program. `error` if the sandbox failed, or if the
tests need what they cannot have (below).

What keeps a program from forging success: the tests run in another process (see `worker.py`). The program's process
never holds the tests, cannot write a verdict, and sends back plain data only. So leaving early (`os._exit(0)`,
`sys.exit`, `atexit`), replacing built-ins or switching off asserts, returning objects whose `__eq__` is always true,
printing the words of a verdict, and searching frames, memory or open files for a secret are all of no use.

What limits a program: each one runs in a fresh process with an empty environment, no input or output, and limits of
CPU time, memory (address space), open files, file contents (none can be written), processes and threads (none). With
isolation="namespaces" it also has no network, no process but its own to see or signal, and no file but Python's
library and the system's shared libraries, read-only; as root it runs as nobody. Everything is killed after the verdict.

What is not defended: faults of the kernel or of CPython's JSON parser; sockets of virtual machines (AF_VSOCK), which
are in no network namespace; with isolation="limits" everything that this user may do with files, network and processes,
such as killing the worker (an `error`). A test that asks an object of the program (its length, an item, `x in object`)
takes the object's word: tests should compare plain data, and import the modules that they use.

What tests can do: call the program's functions and classes, with keywords; use methods and attributes of its objects;
catch built-in exceptions (others arrive as their nearest built-in base). A list, dictionary or set that is an argument
is changed in place if the program changes it. Tests cannot pass functions or other objects that are no plain data,
compare the program's objects with such objects, or use `isinstance` with its classes: the verdict is then `error`.
They do not see functions of the program that are named like a built-in one (`sum`), nor its variables.
"""

from __future__ import annotations

import ast
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from simplerl.config import PluginConfig
from simplerl.errors import ConfigError
from simplerl.types import Problem, Rollout, Verdict
from simplerl.verifiers.base import Verifier, done

# -P, -s and -S: no folder of ours, of the user or of site-packages to import from. -B: write no bytecode.
COMMAND = (sys.executable, "-P", "-s", "-S", "-B", str(Path(__file__).with_name("worker.py")))
# The order of sets decides what some programs return. A fixed seed gives the same verdict every time.
ENVIRONMENT = {"PYTHONHASHSEED": "0"}
GRACE_SECONDS = 20.0
"""Seconds beyond `wall_seconds` after which the sandbox itself is taken for stuck."""
BLOCK = re.compile(
    r"^[ \t]*```[ \t]*(?:python3?|py)[ \t\r]*\n((?:(?![ \t]*```).*\n)*)[ \t]*```[ \t\r]*$", re.MULTILINE | re.IGNORECASE
)
"""A fenced block marked as Python, up to the next fence, which must be a closing one."""

Isolation = Literal["namespaces", "limits"]


class Config(PluginConfig):
    """Python programs that are run on the problem's tests."""

    name: Literal["python-tests"] = "python-tests"

    allow_running_code: bool = False
    """Run programs that a model wrote, in a sandbox on this machine. Default false: the verifier refuses to start."""

    isolation: Isolation = "namespaces"
    """`namespaces` (default): no network, files or other processes; Linux only, and impossible in most containers.
    `limits`: limits of CPU time, memory and processes only; programs can read and delete your files and use the
    network."""

    workers: int = Field(default=2, ge=1)
    """Programs that run at a time. Default 2; a core each is enough."""

    cpu_seconds: int = Field(default=4, ge=1)
    """Longest CPU time of a program, in seconds. Default 4. More is wrong ("timeout"). Its tests have as much."""

    wall_seconds: float = Field(default=30.0, gt=0)
    """Longest time of a program and its tests by the clock, in seconds. Default 30. More is wrong ("timeout, wall
    clock"); raise it if the machine has more to do than cores."""

    memory_gib: float = Field(default=0.5, gt=0)
    """Memory of a program, in GiB. Default 0.5. More raises `MemoryError` in the program."""


class PythonTestsVerifier(Verifier):
    """Safe from any thread. One process tree per verdict, `workers` at a time."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self._threads = ThreadPoolExecutor(config.workers, thread_name_prefix="python-tests")
        self._running: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()
        self._closed = False

    def submit(self, problem: Problem, rollout: Rollout) -> Future[Verdict]:
        program = extract(rollout.text)
        if program is None:
            return done(Verdict("no_answer", None, "no Python block"))
        if not has_assert(problem.answer):
            return done(Verdict("error", program, "no tests that assert something"))
        return self._threads.submit(self._verdict, program, problem.answer)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            for process in self._running:
                kill(process)
        self._threads.shutdown(cancel_futures=True)

    def _verdict(self, program: str, tests: str) -> Verdict:
        started = time.perf_counter()
        with tempfile.TemporaryDirectory(prefix="simplerl-python-tests-") as folder:
            found = self._run(program, tests, folder)
        return Verdict(found["label"], program, found["method"], time.perf_counter() - started)

    def _run(self, program: str, tests: str, folder: str) -> dict[str, Any]:
        """Run the worker in an empty folder; return its answer."""
        pipe = subprocess.PIPE
        with self._lock:
            if self._closed:
                raise RuntimeError("the verifier is closed")
            # A session of its own: Ctrl-C does not reach it, and its group is killed at once.
            process = subprocess.Popen(
                COMMAND, stdin=pipe, stdout=pipe, stderr=pipe, cwd=folder, env=ENVIRONMENT, start_new_session=True
            )
            self._running.add(process)
        try:
            out, err = process.communicate(self._request(program, tests), self.config.wall_seconds + GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            return {"label": "error", "method": "sandbox: stuck"}
        finally:
            with self._lock:
                kill(process)
                self._running.discard(process)
            process.communicate()
        if not out:
            last = err.decode(errors="replace").strip().rpartition("\n")[2]
            return {"label": "error", "method": f"sandbox: {last or 'ended early'}"}
        return json.loads(out)

    def _request(self, program: str, tests: str) -> bytes:
        settings = self.config.model_dump(include={"isolation", "cpu_seconds", "wall_seconds"})
        settings["memory_bytes"] = int(self.config.memory_gib * 2**30)
        return frame({"program": program, **settings}) + frame({"tests": tests})


def frame(content: dict[str, Any]) -> bytes:
    data = json.dumps(content).encode()
    return len(data).to_bytes(8, "big") + data


def kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a worker and its children, unless it has been waited for."""
    if process.returncode is None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)


def extract(response: str) -> str | None:
    """The last fenced block marked python, python3 or py that is closed."""
    blocks = BLOCK.findall(response)
    return blocks[-1] if blocks else None


def is_usable(problem: Problem) -> bool:
    """True if there is a question, and the tests are Python with an assert."""
    return bool(problem.question.strip()) and has_assert(problem.answer)


def has_assert(tests: str) -> bool:
    """True if the tests are Python that asserts something. Others would pass with any program."""
    try:
        nodes = ast.walk(ast.parse(tests))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return any(isinstance(node, ast.Assert) for node in nodes)


def isolation_fault(isolation: Isolation = "namespaces") -> str | None:
    """Why programs cannot be isolated here; None if they can. Takes the time of one verdict."""
    verifier = PythonTestsVerifier(Config(allow_running_code=True, isolation=isolation))
    try:
        verdict = verifier._verdict("", "assert True")
    finally:
        verifier.close()
    return None if verdict.label == "correct" else verdict.method.removeprefix("sandbox: ")


def check(config: Config) -> None:
    """Raises `ConfigError` unless running programs is allowed, and can be isolated here as the settings say."""
    if not config.allow_running_code:
        raise ConfigError(
            "verifier python-tests runs programs that a model wrote, in a sandbox on this machine; "
            "set verifier.allow_running_code=true to allow it"
        )
    if fault := isolation_fault(config.isolation):
        remedy = "; verifier.isolation=limits does without, and leaves programs your files and the network"
        raise ConfigError(f"programs cannot be isolated here: {fault}" + remedy * (config.isolation == "namespaces"))


def build(config: Config) -> PythonTestsVerifier:
    check(config)
    return PythonTestsVerifier(config)
