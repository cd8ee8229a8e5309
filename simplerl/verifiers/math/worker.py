"""Judges one pair after another, each in a forked child that can be killed: `python -m simplerl.verifiers.math.worker`.

Each line it reads is a pair in JSON: "id", "answer", "gold", "cpu_seconds", "wall_seconds", "memory_bytes". It answers
with {"id", "status", "seconds"}, where seconds are CPU time of the child. The first line it writes is {"ready": true}
or {"ready": false, "error": ...}. At the end of its input it stops whatever it does. It forks: Linux and macOS only.
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
from typing import Any, NoReturn

Request = dict[str, Any]
Reply = dict[str, Any]
Equal = Callable[[str, str], bool | None]

STATUS = {True: "equal", False: "different", None: "unparsed"}
OWNER_CHECK_SECONDS = 5
PAUSE_SECONDS = 0.05
NO_MORE = object()
LIBC = ctypes.CDLL(None)
PR_SET_PDEATHSIG = 1
# Deep enough for what people write; what is deeper is an error, not a crash.
RECURSION_LIMIT = 3000
OPEN_FILES = 32


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    replies = os.dup(1)
    os.dup2(2, 1)  # whatever a library prints is no reply
    try:
        from simplerl.verifiers.math.symbolic import equal, warm_up
    except Exception as error:
        send(replies, {"ready": False, "error": str(error)})
        return
    send(replies, {"ready": True})
    for request in requests(warm_up()):
        send(replies, judge(request, equal))


def send(descriptor: int, reply: Reply) -> None:
    os.write(descriptor, json.dumps(reply).encode() + b"\n")


def requests(chores: Iterator[None]) -> Iterator[Request]:
    """The requests on standard input, until it ends or its owner is gone. Chores are done while there are none."""
    owner, pending, idle = os.getppid(), b"", False
    while os.getppid() == owner:
        if not poll({0: select.POLLIN}, OWNER_CHECK_SECONDS if idle else PAUSE_SECONDS):
            idle = idle or next(chores, NO_MORE) is NO_MORE
            # Frozen objects are not touched by the children's collector, so their pages stay shared.
            gc.freeze()
            continue
        data = os.read(0, 1 << 16)
        if not data:
            return
        *lines, pending = (pending + data).split(b"\n")
        yield from map(json.loads, lines)


def poll(events: dict[int, int], seconds: float) -> set[int]:
    """The descriptors that something happens to within a time; that one is closed needs no asking for."""
    waiting = select.poll()
    for descriptor, wanted in events.items():
        waiting.register(descriptor, wanted)
    return {descriptor for descriptor, _ in waiting.poll(math.ceil(seconds * 1000))}


def judge(request: Request, equal: Equal) -> Reply:
    """A verdict, from a child that knows nothing of earlier ones and is gone afterwards."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        decide(request, equal, writing)
    os.close(writing)
    happened = poll({reading: select.POLLIN, 0: 0}, request["wall_seconds"])
    word = os.read(reading, 64).decode() if reading in happened else ""
    os.close(reading)
    os.kill(child, signal.SIGKILL)  # it may still run, or have been stopped
    _, ended, usage = os.wait4(child, 0)
    seconds = usage.ru_utime + usage.ru_stime
    status = word or cause(ended, overrun=not happened, spent=seconds >= 0.99 * request["cpu_seconds"])
    return {"id": request["id"], "status": status, "seconds": round(seconds, 6)}


def cause(ended: int, *, overrun: bool, spent: bool) -> str:
    """Why a child did not answer, from its wait status and whether its time and its CPU time were used up."""
    killer = os.WTERMSIG(ended) if os.WIFSIGNALED(ended) else 0
    if spent or killer in (signal.SIGPROF, signal.SIGXCPU):
        return "timeout"
    if overrun:
        return "stalled"
    # Nobody else kills here, but a kernel short of memory does.
    return "memory" if killer == signal.SIGKILL else "crash"


def decide(request: Request, equal: Equal, writing: int) -> NoReturn:
    """The child: it writes one word, or dies without."""
    try:
        confine(request, writing)
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


def confine(request: Request, writing: int) -> None:
    """Limits CPU time, memory, recursion and files of this process, and leaves it its pipe only."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nothing, descriptor)
    os.closerange(3, writing)
    os.closerange(writing + 1, OPEN_FILES)
    die_with_parent()
    sys.setrecursionlimit(RECURSION_LIMIT)
    sys.dont_write_bytecode = True
    seconds = request["cpu_seconds"]
    # The timer knows fractions of seconds; the limit is there for what would outlive the timer.
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    limit(resource.RLIMIT_CPU, math.ceil(seconds) + 1)
    limit(resource.RLIMIT_FSIZE, 0)
    limit(resource.RLIMIT_CORE, 0)
    limit(resource.RLIMIT_NOFILE, OPEN_FILES)
    limit(resource.RLIMIT_AS, address_space() + request["memory_bytes"])


def limit(which: int, most: int) -> None:
    """Lowers a limit for good; one that is lower already, or that the system does not have, stays as it is."""
    _, hard = resource.getrlimit(which)
    if hard == resource.RLIM_INFINITY or most <= hard:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(which, (most, most))


def address_space() -> int:
    """Bytes of this process's address space; 0 where the system does not tell."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[0]) * resource.getpagesize()
    except OSError:
        return 0


def die_with_parent() -> None:
    """Asks Linux to kill this process when its parent ends."""
    if sys.platform == "linux":
        LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    main()
