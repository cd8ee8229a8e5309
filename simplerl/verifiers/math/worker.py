"""Compare one pair of answers after another, each in a forked child: `python -m simplerl.verifiers.math.worker`.

Standard input: one `Request` in JSON per line. Standard output: first {"ready": true} or {"ready": false, "error":
...}, then one {"id", "status", "seconds"} per request, where seconds are the child's CPU time. At the end of its input
the worker stops at once and kills a child that still runs. It forks, so it needs Linux or macOS.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import math
import os
import resource
import select
import signal
import sys
from collections.abc import Callable, Iterator
from typing import NoReturn, TypedDict

Equal = Callable[[str, str], bool | None]

STATUS = {True: "equal", False: "different", None: "unparsed"}
OWNER_CHECK_SECONDS = 5
WARM_UP_DELAY_SECONDS = 0.05
LIBC = ctypes.CDLL(None)
PR_SET_PDEATHSIG = 1
# Deep enough for what people write. Deeper text raises RecursionError before it can overflow the C stack.
RECURSION_LIMIT = 3000
OPEN_FILES = 32


class Request(TypedDict):
    id: int
    answer: str
    gold: str
    cpu_seconds: float
    wall_seconds: float
    memory_bytes: int


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    replies = os.dup(1)
    os.dup2(2, 1)  # anything a library prints goes to standard error
    try:
        from simplerl.verifiers.math.symbolic import equal, warm_up
    except Exception as error:
        send(replies, {"ready": False, "error": str(error)})
        return
    send(replies, {"ready": True})
    for request in read_requests(warm_up()):
        send(replies, judge(request, equal))


def send(descriptor: int, reply: dict[str, str | float]) -> None:
    """Write a line in one call, so that the reader never sees part of one."""
    os.write(descriptor, json.dumps(reply).encode() + b"\n")


def read_requests(warm_up: Iterator[None]) -> Iterator[Request]:
    """Requests on standard input, until it ends or the owner is gone. While there are none, advance `warm_up`."""
    owner, pending, warm = os.getppid(), b"", False
    while os.getppid() == owner:
        if not wait_for({0: select.POLLIN}, OWNER_CHECK_SECONDS if warm else WARM_UP_DELAY_SECONDS):
            try:
                next(warm_up)
            except StopIteration:
                warm = True
            # The children's garbage collector skips frozen objects, so their memory pages stay shared.
            gc.freeze()
            continue
        data = os.read(0, 1 << 16)
        if not data:
            return
        *lines, pending = (pending + data).split(b"\n")
        yield from map(json.loads, lines)


def wait_for(events: dict[int, int], seconds: float) -> set[int]:
    """Descriptors with one of their events within `seconds`. An empty mask still reports that the other end closed."""
    waiting = select.poll()
    for descriptor, mask in events.items():
        waiting.register(descriptor, mask)
    return {descriptor for descriptor, _ in waiting.poll(math.ceil(seconds * 1000))}


def judge(request: Request, equal: Equal) -> dict[str, str | float]:
    """Compare a pair in a forked child, so that no comparison affects a later one."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        run_child(request, equal, writing)
    os.close(writing)
    ready = wait_for({reading: select.POLLIN, 0: 0}, request["wall_seconds"])
    word = os.read(reading, 64).decode() if reading in ready else ""
    os.close(reading)
    os.kill(child, signal.SIGKILL)  # it may still run, or be stopped
    _, wait_status, usage = os.wait4(child, 0)
    seconds = usage.ru_utime + usage.ru_stime
    used_up = seconds >= 0.99 * request["cpu_seconds"]
    status = word or why_no_word(wait_status, wall_time_over=not ready, cpu_time_over=used_up)
    return {"id": request["id"], "status": status, "seconds": round(seconds, 6)}


def why_no_word(wait_status: int, *, wall_time_over: bool, cpu_time_over: bool) -> str:
    """Status of a child that wrote no word."""
    killer = os.WTERMSIG(wait_status) if os.WIFSIGNALED(wait_status) else 0
    if cpu_time_over or killer in (signal.SIGPROF, signal.SIGXCPU):
        return "timeout"
    if wall_time_over:
        return "stalled"
    # Its pipe closed before this worker killed it: the kernel did, short of memory.
    return "memory" if killer == signal.SIGKILL else "crash"


def run_child(request: Request, equal: Equal, writing: int) -> NoReturn:
    """Compare in the child, write one word to `writing`, and exit."""
    try:
        set_limits(request, writing)
        os.write(writing, compare(request, equal).encode())
    finally:
        os._exit(0)


def compare(request: Request, equal: Equal) -> str:
    try:
        return STATUS[equal(request["answer"], request["gold"])]
    except MemoryError:
        return "memory"
    except BaseException:
        return "crash"


def set_limits(request: Request, writing: int) -> None:
    """Limit CPU time, memory, recursion and files of this process. Close every descriptor except `writing`."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nothing, descriptor)
    os.closerange(3, writing)
    os.closerange(writing + 1, OPEN_FILES)
    die_with_parent()
    sys.setrecursionlimit(RECURSION_LIMIT)
    sys.dont_write_bytecode = True
    seconds = request["cpu_seconds"]
    # The timer counts fractions of a second. The limit, in whole seconds, holds even if the timer is switched off.
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    lower_limit(resource.RLIMIT_CPU, math.ceil(seconds) + 1)
    lower_limit(resource.RLIMIT_FSIZE, 0)
    lower_limit(resource.RLIMIT_CORE, 0)
    lower_limit(resource.RLIMIT_NOFILE, OPEN_FILES)
    lower_limit(resource.RLIMIT_AS, address_space() + request["memory_bytes"])


def lower_limit(resource_id: int, value: int) -> None:
    """Lower a limit for good. A limit that is lower already, or unknown to the system, stays as it is."""
    _, hard = resource.getrlimit(resource_id)
    if hard == resource.RLIM_INFINITY or value <= hard:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource_id, (value, value))


def address_space() -> int:
    """Bytes of this process's address space; 0 if the system does not report it."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[0]) * resource.getpagesize()
    except OSError:
        return 0


def die_with_parent() -> None:
    """Ask the kernel to kill this process when its parent ends (Linux only)."""
    if sys.platform == "linux":
        LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    main()
