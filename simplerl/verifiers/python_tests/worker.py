"""Judge one program by its tests: `python -P -s -S -B worker.py`, with two frames of JSON on standard input.

    starter     reads the program (first frame) and enters the namespaces
    └ tester    reads the tests (second frame), runs them, and writes the verdict to standard output
      └ program   runs the program and answers the tester's calls; has no tests, and no way to write a verdict

A frame is a length of 8 bytes and JSON. Only plain data passes between the tests and the program: None, numbers,
strings, bytes, lists, tuples, sets and dictionaries. Other objects of the program are a `Remote` to the tests.
"""

from __future__ import annotations

import builtins
import json
import operator
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any, NoReturn

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
LONGEST_REPLY = 16 << 20
"""Bytes of one reply of the program."""

Packed = Any
"""A value as JSON: None, booleans, finite integers below 2**63, floats, strings, lists, and {kind: content}."""
Verdict = tuple[str, str]
"""Label and method."""


def main() -> None:
    # Only for this import: neither the program nor the tests may import from site-packages.
    sys.path.append(ROOT)
    from simplerl.verifiers import _sandbox as sandbox

    sys.path.pop()
    sandbox.die_with_parent()
    request = read_frame()
    nothing = os.open(os.devnull, os.O_RDWR)
    cpu_seconds, address_bytes = request["cpu_seconds"], sandbox.address_space() + request["memory_bytes"]
    if request["isolation"] == "namespaces":
        sandbox.enter_namespaces()
        if tester := os.fork():
            os.waitpid(tester, 0)
            return
    sandbox.drop_privileges()
    sandbox.die_with_parent()
    ours, theirs = socket.socketpair()
    child = os.fork()
    if not child:
        sandbox.die_with_parent()
        sandbox.close_files(nothing, theirs.fileno())
        sandbox.limit(cpu_seconds=cpu_seconds, address_bytes=address_bytes, forks=False)
        serve(theirs, request["program"])
    theirs.close()
    sandbox.limit(cpu_seconds=cpu_seconds, address_bytes=address_bytes, forks=True)
    # Read after the fork: the program's process never held the tests.
    tests = read_frame()["tests"]
    label, method = judge(Program(child, ours, request["wall_seconds"], cpu_seconds), tests)
    os.write(1, json.dumps({"label": label, "method": method}).encode())


def read_frame() -> dict[str, Any]:
    """The next frame of standard input, and not one byte more: the rest is for another process."""
    return json.loads(_read_exactly(int.from_bytes(_read_exactly(8), "big")))


def _read_exactly(count: int) -> bytes:
    data = b""
    while len(data) < count:
        found = os.read(0, count - len(data))
        if not found:
            raise EOFError("standard input ended early")
        data += found
    return data


# --- values -----------------------------------------------------------------------------------------------------------


def pack(value: Any, refer: Callable[[Any], Packed]) -> Packed:
    """Plain data as JSON. `refer` packs every other object. Subclasses become their plain base (Counter: dict)."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        value = int.__int__(value)
        return value if abs(value) < 1 << 63 else {"int": hex(value)}
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, complex):
        return {"complex": [value.real, value.imag]}
    for kind in (bytes, bytearray):
        if isinstance(value, kind):
            return {kind.__name__: value.hex()}
    if isinstance(value, list):
        return [pack(each, refer) for each in value]
    for kind in (tuple, set, frozenset):
        if isinstance(value, kind):
            return {kind.__name__: [pack(each, refer) for each in value]}
    if isinstance(value, dict):
        return {"dict": [[pack(key, refer), pack(each, refer)] for key, each in value.items()]}
    return refer(value)


def unpack(packed: Packed, resolve: Callable[[Any], Any]) -> Any:
    """The value of `pack`. `resolve` gets the content of {"object": content}."""
    if isinstance(packed, list):
        return [unpack(each, resolve) for each in packed]
    if not isinstance(packed, dict):
        return packed
    ((kind, content),) = packed.items()
    if kind == "object":
        return resolve(content)
    if kind == "int":
        return int(content, 16)
    if kind == "complex":
        return complex(*content)
    if kind in ("bytes", "bytearray"):
        return (bytes if kind == "bytes" else bytearray).fromhex(content)
    if kind == "dict":
        return {unpack(key, resolve): unpack(each, resolve) for key, each in content}
    return {"tuple": tuple, "set": set, "frozenset": frozenset}[kind](unpack(each, resolve) for each in content)


def lines(receive: Callable[[int], bytes]) -> Iterator[bytes]:
    """Lines from a channel, until it ends. `receive(n)` returns at most n bytes, and none at the end."""
    pending = bytearray()
    while data := receive(1 << 16):
        start = len(pending)
        pending += data
        while (end := pending.find(b"\n", start)) >= 0:
            yield bytes(pending[:end])
            del pending[: end + 1]
            start = 0
        if len(pending) > LONGEST_REPLY:
            raise ValueError("the line is too long")


# --- the program's process --------------------------------------------------------------------------------------------

OPERATIONS: dict[str, Callable[..., Any]] = {
    "call": lambda function, *values, **keywords: function(*values, **keywords),
    "get": getattr,
    "set": setattr,
    "item": operator.getitem,
    "has": operator.contains,
    "list": list,
    "next": next,
    "len": len,
    "bool": bool,
    "int": int,
    "float": float,
    "str": str,
    "repr": repr,
}
CHANGEABLE = (list, dict, set, bytearray)


def serve(channel: socket.socket, source: str) -> NoReturn:
    """Run the program, then do one operation after another. Requests and replies are lines of JSON."""
    objects: list[Any] = []
    numbers: dict[int, int] = {}

    def refer(value: Any) -> Packed:
        # Objects are never forgotten, so that no other object gets the same id().
        number = numbers.setdefault(id(value), len(objects))
        if number == len(objects):
            objects.append(value)
        return {"object": number}

    def run() -> Packed:
        os.environ.clear()
        # Not "__main__": demonstrations under `if __name__ == "__main__"` are not part of the solution.
        module = sys.modules["solution"] = ModuleType("solution")
        exec(compile(source, "<solution>", "exec"), module.__dict__)
        visible = {name: value for name, value in vars(module).items() if callable(value)}
        return {"names": {name: refer(value)["object"] for name, value in visible.items()}}

    def perform(request: dict[str, Any]) -> Packed:
        values = [unpack(each, objects.__getitem__) for each in request["values"]]
        keywords = {name: unpack(each, objects.__getitem__) for name, each in request["keywords"].items()}
        found = OPERATIONS[request["operation"]](objects[request["target"]], *values, **keywords)
        before, after = [*request["values"], *request["keywords"].values()], [*values, *keywords.values()]
        repacked = {n: pack(each, refer) for n, each in enumerate(after) if type(each) in CHANGEABLE}
        changed = {str(n): packed for n, packed in repacked.items() if packed != before[n]}
        return {"value": pack(found, refer), "changed": changed}

    def answer(action: Callable[..., Packed], *arguments: Any) -> None:
        try:
            reply = action(*arguments)
        except BaseException as error:
            reply = {"raised": [builtin_name(error), str(error)]}
        channel.sendall(json.dumps(reply).encode() + b"\n")

    try:
        answer(run)
        for line in lines(channel.recv):
            answer(perform, json.loads(line))
    finally:
        os._exit(1)


def builtin_name(error: BaseException) -> str:
    """The name of an exception's class, or of its nearest built-in base."""
    return next(each.__name__ for each in type(error).__mro__ if each.__module__ == "builtins")


# --- the tester's process ---------------------------------------------------------------------------------------------


class UnsupportedTest(Exception):
    """A test needs something that cannot pass between two processes. Not a fault of the program."""


class ProgramFault(Exception):
    """The program's process ended, was too slow, or did not send a reply."""


class Program:
    """The tester's side of the program's process. Its first fault stays, though the tests catch the exception."""

    def __init__(self, pid: int, channel: socket.socket, wall_seconds: float, cpu_seconds: int) -> None:
        self.pid, self.channel, self.cpu_seconds = pid, channel, cpu_seconds
        self.deadline = time.monotonic() + wall_seconds
        self.fault = ""
        self.unsupported = ""
        self._lines = lines(self._receive)

    def names(self) -> dict[str, Remote]:
        """Wait until the program has run; its functions and classes. They cannot replace what is built in."""
        found = self._checked(lambda: {str(name): Remote(self, int(n)) for name, n in self._reply()["names"].items()})
        # "__builtins__" among the names would let the program answer for sorted(), set() and `import` in the tests.
        return {name: each for name, each in found.items() if not (hasattr(builtins, name) or name.startswith("__"))}

    def ask(self, operation: str, target: int, *values: Any, **keywords: Any) -> Any:
        """Do an operation in the program's process: return or raise its outcome, and copy changed arguments back."""
        request = {
            "operation": operation,
            "target": target,
            "values": [pack(each, self._refer) for each in values],
            "keywords": {name: pack(each, self._refer) for name, each in keywords.items()},
        }

        def exchange() -> Any:
            self.channel.settimeout(self._seconds_left())
            self.channel.sendall(json.dumps(request).encode() + b"\n")
            reply = self._reply()
            arguments = [*values, *keywords.values()]
            for index, packed in reply["changed"].items():
                replace(arguments[int(index)], unpack(packed, self._resolve))
            return unpack(reply["value"], self._resolve)

        return self._checked(exchange)

    def stop(self) -> None:
        """Kill the process. If it had ended by itself, the fault says how."""
        os.kill(self.pid, signal.SIGKILL)
        _, status, usage = os.wait4(self.pid, 0)
        if self.fault != "ended":
            return
        killer = os.WTERMSIG(status)
        # The kernel counts in ticks what it reports to the microsecond; the two differ by some percent.
        if killer == signal.SIGXCPU or usage.ru_utime + usage.ru_stime >= 0.9 * self.cpu_seconds:
            self.fault = "timeout"
        elif os.WIFEXITED(status):
            self.fault = "exited"
        elif killer != signal.SIGKILL:
            self.fault = f"killed by {signal.Signals(killer).name}"

    def _receive(self, count: int) -> bytes:
        # Set anew for every piece: a program that sends byte after byte gains no time.
        self.channel.settimeout(self._seconds_left())
        return self.channel.recv(count)

    def _seconds_left(self) -> float:
        return max(0.001, self.deadline - time.monotonic())

    def _reply(self) -> dict[str, Any]:
        line = next(self._lines, None)
        if line is None:
            raise ConnectionError
        reply = json.loads(line)
        if "raised" in reply:
            name, message = map(str, reply["raised"])
            raise Raised(name, message)
        return reply

    def _checked(self, action: Callable[[], Any]) -> Any:
        """The outcome of an exchange with the process. Anything but a reply is a fault."""
        try:
            return action()
        except Raised as raised:
            error = raised.rebuilt()
        except TimeoutError:
            self.fault = self.fault or "timeout, wall clock"
            error = ProgramFault(self.fault)
        except OSError:
            self.fault = self.fault or "ended"
            error = ProgramFault(self.fault)
        except Exception:
            self.fault = self.fault or "broken reply"
            error = ProgramFault(self.fault)
        raise error

    def _refer(self, value: Any) -> Packed:
        if type(value) is not Remote:
            raise self.lacks(f"passes a {type(value).__name__} to the program")
        return {"object": value._number}

    def _resolve(self, number: Any) -> Remote:
        return Remote(self, int(number))

    def lacks(self, what: str) -> UnsupportedTest:
        self.unsupported = self.unsupported or what
        return UnsupportedTest(what)


class Raised(Exception):
    """The program raised an exception, known by the name of a built-in class and a message."""

    def rebuilt(self) -> BaseException:
        """The exception as the tests see it."""
        name, message = self.args
        kind = getattr(builtins, name, None)
        if isinstance(kind, type) and issubclass(kind, BaseException):
            try:
                return kind(message)
            except TypeError:
                pass  # such as UnicodeDecodeError, which wants five arguments
        return Exception(f"{name}: {message}")


class Remote:
    """An object of the program that is not plain data: tests may call it, pass it, and read or set its attributes.

    It equals nothing but itself. Its length, items, truth and texts are the program's own word.
    """

    __slots__ = ("_number", "_program")

    def __init__(self, program: Program, number: int) -> None:
        object.__setattr__(self, "_program", program)
        object.__setattr__(self, "_number", number)

    def __eq__(self, other: object) -> bool:
        pack(other, self._see_that_it_is_remote)
        return type(other) is Remote and self._number == other._number

    def __hash__(self) -> int:
        return hash(self._number)

    def __instancecheck__(self, _: object) -> bool:
        raise self._program.lacks("calls isinstance() with a class of the program")

    def __call__(self, *values: Any, **keywords: Any) -> Any:
        return self._program.ask("call", self._number, *values, **keywords)

    def __getattr__(self, name: str) -> Any:
        return self._program.ask("get", self._number, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._program.ask("set", self._number, name, value)

    def __getitem__(self, key: Any) -> Any:
        return self._program.ask("item", self._number, key)

    def __contains__(self, value: Any) -> bool:
        return self._program.ask("has", self._number, value)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._program.ask("list", self._number))

    def __next__(self) -> Any:
        return self._program.ask("next", self._number)

    def __len__(self) -> int:
        return self._program.ask("len", self._number)

    def __bool__(self) -> bool:
        return self._program.ask("bool", self._number)

    def __int__(self) -> int:
        return self._program.ask("int", self._number)

    def __float__(self) -> float:
        return self._program.ask("float", self._number)

    def __str__(self) -> str:
        return self._program.ask("str", self._number)

    def __repr__(self) -> str:
        return self._program.ask("repr", self._number)

    def _see_that_it_is_remote(self, other: object) -> None:
        if type(other) is not Remote:
            raise self._program.lacks(f"compares a {type(other).__name__} with an object of the program")


def replace(old: Any, new: Any) -> None:
    """Give a list, dictionary, set or bytearray the content of another."""
    if type(old) is not type(new):
        raise TypeError(f"a {type(old).__name__} cannot become a {type(new).__name__}")
    if isinstance(old, list | bytearray):
        old[:] = new
    else:
        old.clear()
        old.update(new)


def judge(program: Program, tests: str) -> Verdict:
    """Run the tests against a program whose process has just been started, and end it."""
    raised = ""
    try:
        code = compile(tests, "<tests>", "exec")
    except Exception as error:
        program.stop()
        return "error", f"the tests do not compile: {builtin_name(error)}"
    try:
        exec(code, {**program.names(), "__name__": "tests", "__builtins__": builtins})
    except BaseException as error:
        raised = builtin_name(error)
    program.stop()
    if program.fault:
        return "wrong", program.fault
    if program.unsupported:
        return "error", f"unsupported test: {program.unsupported}"
    if raised:
        return "wrong", "assertion failed" if raised == "AssertionError" else f"raised {raised}"
    return "correct", "tests passed"


if __name__ == "__main__":
    main()
