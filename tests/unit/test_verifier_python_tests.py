"""Programs that are right, wrong, hostile and forged, judged by their tests in a sandbox that leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from simplerl.engines.base import Engine
from simplerl.errors import ConfigError
from simplerl.rewards import simplerl
from simplerl.rollouts.grade import generate_and_grade
from simplerl.types import Problem, Prompt, Request, Rollout, Sampling, Verdict
from simplerl.verifiers import python_tests
from simplerl.verifiers.python_tests import (
    Config,
    Isolation,
    PythonTestsVerifier,
    extract,
    is_usable,
    isolation_fault,
)

pytestmark = pytest.mark.unit

FIXTURE = Path(__file__).parents[1] / "fixtures" / "python_problems.jsonl"
PROCESSES = {"namespaces": 3, "limits": 2}
"""Of one verdict."""
ADD_TESTS = "assert add(1, 2) == 3\nassert add(-1, 1) == 0"


def answered(program: str) -> str:
    return f"Let us see.\n```python\n{textwrap.dedent(program)}\n```\nThat is it."


@pytest.fixture
def marker(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    """An argument that the processes of this test alone carry. Afterwards none of them runs, and no file is left."""
    found = uuid.uuid4().hex
    folders = tmp_path / "temporary"
    folders.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folders))
    monkeypatch.setattr(python_tests, "COMMAND", (*python_tests.COMMAND, found))
    yield found
    assert running(found) == []
    assert list(folders.iterdir()) == []


def running(marker: str) -> list[str]:
    """Process numbers whose command line has the marker."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if marker.encode() in (process / "cmdline").read_bytes():
                found.append(process.name)
        except OSError:
            continue
    return found


@pytest.fixture(scope="module")
def isolation() -> Isolation:
    """The best isolation of this machine. `limits` in most containers."""
    return "limits" if isolation_fault() else "namespaces"


@pytest.fixture
def verifier(marker: str, isolation: Isolation) -> Iterator[PythonTestsVerifier]:
    settings = {"isolation": isolation, "cpu_seconds": 1, "wall_seconds": 600, "memory_gib": 0.25}
    verifier = PythonTestsVerifier(Config(allow_running_code=True, **settings))
    yield verifier
    verifier.close()


@pytest.fixture
def impatient(marker: str, isolation: Isolation) -> Iterator[PythonTestsVerifier]:
    """A verifier whose programs have one second by the clock."""
    verifier = PythonTestsVerifier(Config(allow_running_code=True, isolation=isolation, wall_seconds=1))
    yield verifier
    verifier.close()


@pytest.fixture
def isolated(isolation: Isolation, verifier: PythonTestsVerifier) -> PythonTestsVerifier:
    if isolation == "limits":
        pytest.skip("no namespaces here")
    return verifier


def judge(verifier: PythonTestsVerifier, program: str, tests: str = ADD_TESTS) -> Verdict:
    problem = Problem("p", "Write `add(a, b)`.", textwrap.dedent(tests))
    return verifier.verify(problem, Rollout.recorded(problem, answered(program)))


# --- verdicts ---------------------------------------------------------------------------------------------------------

VERDICTS = {
    "right": ("def add(a, b): return a + b", "correct", "tests passed"),
    "wrong": ("def add(a, b): return a - b", "wrong", "assertion failed"),
    "right once only": ("def add(a, b): return 3", "wrong", "assertion failed"),
    "no such function": ("def plus(a, b): return a + b", "wrong", "raised NameError"),
    "no Python": ("def add(a, b) return a + b", "wrong", "raised SyntaxError"),
    "raises": ("def add(a, b): return a / 0", "wrong", "raised ZeroDivisionError"),
    "raises its own": ("class E(KeyError): pass\ndef add(a, b): raise E()", "wrong", "raised KeyError"),
    "loops": ("while True: pass", "wrong", "timeout"),
    "loops when called": ("def add(a, b):\n    while True: pass", "wrong", "timeout"),
    "ignores the first signal": (
        "import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass", "wrong", "timeout",
    ),
    "recurses": ("def add(a, b): return add(a, b)", "wrong", "raised RecursionError"),
    "takes memory": ("kept = bytearray(1 << 30)", "wrong", "raised MemoryError"),
    "crashes": ("import ctypes\nctypes.string_at(0)", "wrong", "killed by SIGSEGV"),
    "forks": ("import os\nwhile True: os.fork()", "wrong", "raised BlockingIOError"),
    "starts threads": ("import threading\nthreading.Thread(target=print).start()", "wrong", "raised RuntimeError"),
    "starts a program": ("import subprocess\nsubprocess.run(['true'])", "wrong", "raised BlockingIOError"),
    "exits": ("import sys\nsys.exit(0)", "wrong", "raised SystemExit"),
    "exits when called": ("def add(a, b): exit(0)", "wrong", "raised NameError"),
    "leaves": ("import os\nos._exit(0)", "wrong", "exited"),
    "leaves when called": ("import os\ndef add(a, b): os._exit(0)", "wrong", "exited"),
    "closes everything": ("import os\nos.closerange(0, 99)\nwhile True: pass", "wrong", "ended"),
    "answers at length": ("def add(a, b): return 'x' * (20 << 20)", "wrong", "broken reply"),
    "keeps its demonstration to itself": (
        "def add(a, b): return a + b\nif __name__ == '__main__': print(add(*input()))", "correct", "tests passed",
    ),
    "uses the library": (
        "import bz2, ctypes, dataclasses, decimal, hashlib, lzma, random, re, sqlite3, ssl, zlib\n"
        "def add(a, b): return int(decimal.Decimal(a) + b)", "correct", "tests passed",
    ),
    "has annotations that are texts": (
        "from __future__ import annotations\nfrom dataclasses import dataclass\n"
        "@dataclass\nclass Pair:\n    a: int\n    b: int\n"
        "def add(a, b): pair = Pair(a, b); return pair.a + pair.b", "correct", "tests passed",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", VERDICTS)
def test_verdicts(verifier: PythonTestsVerifier, case: str) -> None:
    program, label, method = VERDICTS[case]
    verdict = judge(verifier, program)
    assert (verdict.label, verdict.method) == (label, method)
    assert verdict.extracted == f"{program}\n"
    assert verdict.seconds > 0


def test_a_program_that_sleeps_runs_out_of_time(impatient: PythonTestsVerifier) -> None:
    verdict = judge(impatient, "import time\ntime.sleep(1000)")
    assert (verdict.label, verdict.method) == ("wrong", "timeout, wall clock")


def test_byte_after_byte_gains_no_time(impatient: PythonTestsVerifier) -> None:
    program = """
        import os, time
        def is_open(number):
            try: return bool(os.fstat(number))
            except OSError: return False
        channel = next(number for number in range(3, 32) if is_open(number))
        while True:
            os.write(channel, b"[")
            time.sleep(0.1)
    """
    verdict = judge(impatient, program)
    assert (verdict.label, verdict.method) == ("wrong", "timeout, wall clock")


def test_no_program_is_no_answer(verifier: PythonTestsVerifier) -> None:
    problem = Problem("p", "?", ADD_TESTS)
    verdict = verifier.verify(problem, Rollout.recorded(problem, "def add(a, b): return a + b"))
    assert (verdict.label, verdict.extracted, verdict.method) == ("no_answer", None, "no Python block")


def test_rollouts_are_graded_and_rewarded(verifier: PythonTestsVerifier) -> None:
    texts = [answered("def add(a, b): return a + b"), "I do not know", answered("def add(a, b): return a - b")]
    prompt = Prompt(Problem("p", "Write `add(a, b)`.", ADD_TESTS), "?", (1,))
    requests = [Request(str(n), prompt, Sampling(8), n) for n in range(3)]

    class Canned(Engine):
        def submit(self, requests: Sequence[Request]) -> Iterator[Rollout]:
            for number, text in enumerate(texts):
                yield Rollout.single_turn(str(number), prompt, (1,), (-1.0,), text, "stop", 0)

    graded = generate_and_grade(Canned(), requests, verifier, simplerl.build(simplerl.Config()))
    assert [(each.verdict.label, each.reward) for each in graded] == [
        ("correct", 1.0),
        ("no_answer", -1.0),
        ("wrong", -0.5),
    ]


def test_many_at_a_time(verifier: PythonTestsVerifier) -> None:
    problem = Problem("p", "?", "assert number() % 2 == 0")
    programs = [Rollout.recorded(problem, answered(f"def number(): return {n}")) for n in range(12)]
    verdicts = [future.result().label for future in [verifier.submit(problem, each) for each in programs]]
    assert verdicts == ["correct", "wrong"] * 6


# --- forged -----------------------------------------------------------------------------------------------------------

FORGED = {
    "always equal": """
        class Equal:
            def __eq__(self, other): return True
        def add(a, b): return Equal()
    """,
    "an int that is always equal": """
        class Equal(int):
            def __eq__(self, other): return True
            __hash__ = int.__hash__
        def add(a, b): return Equal(99)
    """,
    "at the end": """
        import atexit, os
        atexit.register(os._exit, 0)
        def add(a, b): return None
    """,
    "says so": """
        print('{"label": "correct", "method": "tests passed"}')
        def add(a, b): return "tests passed"
    """,
    "writes a verdict to every file": """
        import os
        for number in range(32):
            try: os.write(number, b'{"label": "correct", "method": "tests passed"}\\n')
            except OSError: pass
        def add(a, b): return None
    """,
    "built-ins replaced": """
        import builtins
        builtins.AssertionError = ZeroDivisionError
        builtins.exec = builtins.compile = lambda *_: None
        def add(a, b): return None
    """,
    "names of the tests replaced": """
        def sorted(values): return [3]
        class math: isclose = staticmethod(lambda *_: True)
        def add(a, b): return None
    """,
    "the tests' built-ins replaced": """
        class Builtins:
            def __getitem__(self, name): return {"sorted": lambda values: [3], "__import__": lambda *_: None}[name]
            def __call__(self): pass
        __builtins__ = Builtins()
        def add(a, b): return None
    """,
    "the worker's functions replaced": """
        import json, sys
        sys.modules["__main__"].judge = lambda *_: ("correct", "tests passed")
        json.dumps = lambda *_: '{"value": true, "changed": {}}'
        def add(a, b): return None
    """,
    "frames and objects searched": """
        import gc, re, sys
        def add(a, b):
            # The pattern does not find itself.
            pattern, frame, seen = re.compile("add[(]-1"), sys._getframe(), gc.get_objects()
            while frame:
                seen, frame = seen + [*frame.f_locals.values(), *frame.f_globals.values()], frame.f_back
            texts = [each for each in seen if type(each) is str]
            for each in seen:
                if type(each) in (list, tuple): texts += [text for text in each if type(text) is str]
                if type(each) is dict: texts += [text for text in list(each.values()) if type(text) is str]
            if not any("The pattern does not" in text for text in texts): raise OSError("not even its own text")
            if any(pattern.search(text) for text in texts): return a + b
    """,
    "memory read": """
        import os
        def add(a, b):
            for pid in (os.getppid(), 1):
                try: open(f"/proc/{pid}/mem", "rb").close()
                except OSError: continue
                return a + b
    """,
    "the tester killed": """
        import os, signal
        os.kill(os.getppid(), signal.SIGKILL)
        def add(a, b): return None
    """,
}
FORGED_METHODS = {
    "writes a verdict to every file": "broken reply",
    "the worker's functions replaced": "broken reply",
}


@pytest.mark.parametrize("case", FORGED)
def test_success_cannot_be_forged(verifier: PythonTestsVerifier, isolation: Isolation, case: str) -> None:
    tests = "import math\nassert sorted([add(1, 2)]) == [3]\nassert math.isclose(add(-1, 1), 0)"
    verdict = judge(verifier, FORGED[case], tests)
    if isolation == "limits" and case == "the tester killed":
        assert verdict.label == "error"
    else:
        assert (verdict.label, verdict.method) == ("wrong", FORGED_METHODS.get(case, "assertion failed"))


def test_an_exception_that_the_tests_catch_does_not_hide_that_the_program_is_gone(
    verifier: PythonTestsVerifier,
) -> None:
    tests = "try:\n    add(1, 2)\nexcept BaseException:\n    pass\nassert True"
    assert judge(verifier, "import os\ndef add(a, b): os._exit(0)", tests).method == "exited"


# --- what is out of reach ---------------------------------------------------------------------------------------------


def test_files_are_out_of_reach(isolated: PythonTestsVerifier, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("3")
    secret.chmod(0o666)
    program = f"def add(a, b): return int(open({str(secret)!r}).read())"
    assert judge(isolated, program).method == "raised FileNotFoundError"
    for path in (secret, tmp_path / "new", "/new", "new", "/tmp/new", "/usr/lib/new"):
        verdict = judge(isolated, f"open({str(path)!r}, 'w').write('x' * 5000)")
        assert verdict.method in ("raised FileNotFoundError", "raised OSError"), path
    assert secret.read_text() == "3"
    assert judge(isolated, "import os\nos.makedirs('/x')").method == "raised OSError"
    seen = "import os\ndef add(a, b): return [sorted(os.listdir('/')), dict(os.environ), os.getcwd()]"
    tests = "files, environment, folder = add(1, 2)\nassert not {'proc', 'home', 'tmp', 'etc', 'dev'} & set(files)\n"
    assert judge(isolated, seen, tests + "assert environment == {} and folder == '/'").label == "correct"


def test_the_network_is_out_of_reach(isolated: PythonTestsVerifier) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0)
        port = server.getsockname()[1]
        program = f"import socket\nsocket.create_connection(('127.0.0.1', {port}), 1)"
        assert judge(isolated, program).label == "wrong"
        with pytest.raises(BlockingIOError):
            server.accept()


def test_other_processes_are_out_of_reach(isolated: PythonTestsVerifier) -> None:
    other = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    program = f"import os\nos.kill({other.pid}, 9)\ndef add(a, b): return a + b"
    assert judge(isolated, program).label == "wrong"
    assert judge(isolated, "import os\nos.kill(-1, 9)\ndef add(a, b): return a + b").label in ("wrong", "correct")
    assert other.poll() is None
    other.communicate(b"\n")
    assert other.returncode == 0


def test_capabilities_do_not_come_back(isolated: PythonTestsVerifier) -> None:
    """A user namespace would give every capability in it, and a second chroot leads out of the first."""
    program = """
        import ctypes, os
        libc = ctypes.CDLL(None)
        def namespaces(): return [libc.unshare(flag) for flag in (0x10000000, 0x00020000, 0x40000000)]
        def root():
            try: os.chroot("/lib")
            except PermissionError: return False
            return True
        def users(): return 0 in os.getresuid()
    """
    tests = "assert namespaces() == [-1, -1, -1]\nassert not root()\nassert not users()"
    assert judge(isolated, program, tests).label == "correct"


# --- what tests can do ------------------------------------------------------------------------------------------------

OBJECTS = """
    class Stack:
        limit = 2
        def __init__(self, *items): self.items = list(items)
        def push(self, item, times=1): self.items += [item] * times; return self
        def pop(self): return self.items.pop()
        def __len__(self): return len(self.items)
        def __getitem__(self, index): return self.items[index]
        def __contains__(self, item): return item in self.items
        def __repr__(self): return f"Stack{tuple(self.items)}"
    class Node:
        def __init__(self, value, next=None): self.value, self.next = value, next
    def values(node):
        while node: yield node.value; node = node.next
    def join(stack, node): return [*stack.items, *values(node)]
    def fill(numbers, table, seen, *, more):
        numbers += [2]; table["b"] = numbers; seen.add((1, 2)); more.clear()
    def back(value): return value
    def fraction():
        from fractions import Fraction
        return Fraction(1, 3)
    def fail(): raise ValueError("no", 1)
    def count():
        from collections import Counter
        return Counter("aab")
"""
PASSING = {
    "methods": "s = Stack(1)\ns.push(2).push(item=3, times=2)\nassert s.pop() == 3 and s.items == [1, 2, 3]",
    "operators": "s = Stack(1, 2)\nassert len(s) == 2 and s[-1] == 2 and 1 in s and repr(s) == 'Stack(1, 2)' and s",
    "attributes": "assert Stack.limit == 2\nn = Node(1)\nn.next = Node(2)\nassert list(values(n)) == [1, 2]",
    "objects as arguments": "assert join(Stack(1), Node(2, Node(3))) == [1, 2, 3]",
    "the same object": "n = Node(1)\nm = Node(0, n)\nassert m.next == n and m != n and m.next in {n}",
    "iterators": "i = values(Node(1, Node(2)))\nassert next(i) == 1 and list(i) == [2] and next(i, None) is None",
    "changed arguments": (
        "n, t, s, m = [1], {'a': 0}, set(), {1: 2}\nassert fill(n, t, s, more=m) is None\n"
        "assert (n, t, s, m) == ([1, 2], {'a': 0, 'b': [1, 2]}, {(1, 2)}, {})"
    ),
    "all plain data": (
        "for value in (None, True, -5, 2**70, 1.5, -0.0, 1e400, 2j, 'a\\ud800\\u2028\\n', b'\\xff', [1, [2]],"
        " (1, (2,)), {1, 'a', (3,)}, frozenset({1}), {(1, 2): {'x': None}}, bytearray(b'x')):\n"
        "    assert back(value) == value and type(back(value)) is type(value) and repr(back(value)) == repr(value)\n"
        "assert back(-10**5000) == -10**5000"
    ),
    "numbers of an object": "assert str(fraction()) == '1/3' and 0.33 < float(fraction()) < 0.34 and fraction() != 1",
    "exceptions": "try: fail()\nexcept ValueError as error: assert str(error) == \"('no', 1)\"\nelse: assert False",
    "subclasses": "assert count() == {'a': 2, 'b': 1} and type(count()) is dict",
}
UNSUPPORTED = {
    "a function": ("assert back(lambda: 1)", "passes a function to the program"),
    "an object of the tests": ("class A: pass\nassert back([A()])", "passes a A to the program"),
    "a comparison": (
        "from fractions import Fraction\nassert fraction() == Fraction(1, 3)",
        "compares a Fraction with an object of the program",
    ),
    "a class": ("assert isinstance(Stack(), Stack)", "calls isinstance() with a class of the program"),
    "whatever is caught": ("try: back(range(2))\nexcept Exception: pass\nassert True", "passes a range to the program"),
}  # fmt: skip


@pytest.mark.parametrize("case", PASSING)
def test_tests_work_as_in_one_process(verifier: PythonTestsVerifier, case: str) -> None:
    exec(compile(textwrap.dedent(OBJECTS) + PASSING[case].replace(" and type(count()) is dict", ""), case, "exec"), {})
    assert judge(verifier, OBJECTS, PASSING[case]).method == "tests passed"


@pytest.mark.parametrize("case", UNSUPPORTED)
def test_what_tests_cannot_do_is_an_error_and_not_wrong(verifier: PythonTestsVerifier, case: str) -> None:
    tests, what = UNSUPPORTED[case]
    verdict = judge(verifier, OBJECTS, tests)
    assert (verdict.label, verdict.method) == ("error", f"unsupported test: {what}")


# --- the sandbox itself -----------------------------------------------------------------------------------------------


def test_tests_that_are_no_python_are_an_error(verifier: PythonTestsVerifier) -> None:
    verdict = judge(verifier, "def add(a, b): return a + b", "assert add(1, 2) == 3\nreturn")
    assert (verdict.label, verdict.method) == ("error", "the tests do not compile: SyntaxError")


@pytest.mark.parametrize("tests", ["", "add(1, 2)", "assert add(1, 2 == 3"])
def test_tests_that_assert_nothing_are_an_error_and_run_nothing(tests: str, monkeypatch: pytest.MonkeyPatch) -> None:
    verifier = PythonTestsVerifier(Config(allow_running_code=True))
    monkeypatch.setattr(python_tests, "COMMAND", ("/there is no such program",))
    verdict = judge(verifier, "def add(a, b): return a + b", tests)
    assert (verdict.label, verdict.method) == ("error", "no tests that assert something")
    verifier.close()


def test_tests_that_never_end_are_an_error(verifier: PythonTestsVerifier) -> None:
    assert judge(verifier, "def add(a, b): return a + b", "while True: pass\nassert True").label == "error"


def test_a_worker_that_dies_or_hangs_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    verifier = PythonTestsVerifier(Config(allow_running_code=True, wall_seconds=0.1))
    monkeypatch.setattr(python_tests, "COMMAND", (sys.executable, "-c", "raise OSError('no room')"))
    assert judge(verifier, "x = 1").method == "sandbox: OSError: no room"
    monkeypatch.setattr(python_tests, "COMMAND", (sys.executable, "-c", "import time; time.sleep(1000)"))
    monkeypatch.setattr(python_tests, "GRACE_SECONDS", 0.1)
    verdict = judge(verifier, "x = 1")
    assert (verdict.label, verdict.method) == ("error", "sandbox: stuck")
    verifier.close()


def test_closing_ends_programs_that_run_and_forgets_those_that_wait(marker: str, isolation: Isolation) -> None:
    settings = {"isolation": isolation, "cpu_seconds": 600, "wall_seconds": 600}
    verifier = PythonTestsVerifier(Config(allow_running_code=True, workers=1, **settings))
    problem = Problem("p", "?", ADD_TESTS)
    futures = [verifier.submit(problem, Rollout.recorded(problem, answered("while True: pass"))) for _ in range(3)]
    wait_for(lambda: len(running(marker)) == PROCESSES[isolation], "the program runs")
    closing = threading.Thread(target=verifier.close)
    closing.start()
    closing.join(60)
    assert not closing.is_alive()
    assert futures[0].result().label == "error"
    assert futures[1].cancelled() and futures[2].cancelled()


def test_programs_end_with_their_owner(marker: str, isolation: Isolation, tmp_path: Path) -> None:
    owner = f"""
        import sys
        from simplerl.types import Problem, Rollout
        from simplerl.verifiers import python_tests
        python_tests.COMMAND = (*python_tests.COMMAND, sys.argv[1])
        settings = dict(isolation={isolation!r}, cpu_seconds=600, wall_seconds=600)
        verifier = python_tests.PythonTestsVerifier(python_tests.Config(allow_running_code=True, **settings))
        problem = Problem("p", "?", "assert x")
        verifier.verify(problem, Rollout.recorded(problem, {answered("while True: pass")!r}))
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(owner), marker], env={**os.environ, "TMPDIR": str(tmp_path)}
    )
    wait_for(lambda: len(running(marker)) == 1 + PROCESSES[isolation], "the program runs")
    process.send_signal(signal.SIGKILL)
    process.wait()
    wait_for(lambda: running(marker) == [], "all processes are gone")


def wait_for(condition, what: str) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(0.02)


def test_it_is_off_unless_allowed() -> None:
    with pytest.raises(ConfigError) as error:
        python_tests.build(Config())
    assert str(error.value) == (
        "verifier python-tests runs programs that a model wrote, in a sandbox on this machine; "
        "set verifier.allow_running_code=true to allow it"
    )


def test_without_namespaces_it_refuses_and_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(python_tests, "isolation_fault", lambda isolation: "unshare: Operation not permitted")
    with pytest.raises(ConfigError) as error:
        python_tests.build(Config(allow_running_code=True))
    assert str(error.value) == (
        "programs cannot be isolated here: unshare: Operation not permitted; "
        "verifier.isolation=limits does without, and leaves programs your files and the network"
    )


def test_limits_alone(marker: str) -> None:
    """Run as root with a Python that only root can read, it refuses; otherwise limits of time and forks hold."""
    config = Config(allow_running_code=True, isolation="limits", cpu_seconds=1)
    if fault := isolation_fault("limits"):
        assert os.geteuid() == 0 and "cannot be read by other users" in fault
        with pytest.raises(ConfigError, match=r"programs cannot be isolated here: .* cannot be read by other users$"):
            python_tests.build(config)
        return
    verifier = python_tests.build(config)
    methods = [judge(verifier, VERDICTS[case][0]).method for case in ("right", "wrong", "loops", "forks", "leaves")]
    verifier.close()
    assert methods == ["tests passed", "assertion failed", "timeout", "raised BlockingIOError", "exited"]


# --- text and data ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("response", "program"),
    [
        ("```python\nx = 1\n```", "x = 1\n"),
        ("a\n```python\nx = 1\n```\nbetter:\n  ```Python3 \r\nx = 2\n  ```\nand\n```\nx = 3\n```", "x = 2\n"),
        ("```py\n```", ""),
        ("```python\nx = 1\n```\nor\n```python\nx = 2", "x = 1\n"),
        ("```python\nx = 1\n```python\nx = 2\n```", "x = 2\n"),
        ("```\nx = 1\n```", None),
        ("```python\nx = 1", None),
        ("```pythonic\nx = 1\n```", None),
        ("", None),
    ],
)
def test_the_program_is_the_last_closed_python_block(response: str, program: str | None) -> None:
    assert extract(response) == program


def test_usable_problems_have_tests_that_assert() -> None:
    usable = {
        "assert f(1) == 2": True,
        "def check(f):\n    assert f(1) == 2\ncheck(f)": True,
        "f(1) == 2": False,
        "assert f(1 == 2": False,
        "": False,
        "'assert f(1) == 2'": False,
        "assert \0": False,
    }
    assert {tests: is_usable(Problem("p", "?", tests)) for tests in usable} == usable
    assert not is_usable(Problem("p", " ", "assert f(1) == 2"))


SOLUTIONS = {
    "run-length": """
        from itertools import groupby
        def run_lengths(text): return [(letter, len(list(run))) for letter, run in groupby(text)]
    """,
    "second-largest": """
        def second_largest(numbers):
            different = sorted(set(numbers))
            return different[-2] if len(different) > 1 else None
    """,
    "collatz": """
        def collatz_steps(n):
            return 0 if n == 1 else 1 + collatz_steps(n // 2 if n % 2 == 0 else 3 * n + 1)
    """,
    "move-zeros": """
        def move_zeros(numbers): numbers.sort(key=lambda number: number == 0)
    """,
    "account": """
        class Account:
            def __init__(self): self.balance = 0
            def deposit(self, amount): self.balance += amount
            def withdraw(self, amount):
                if amount > self.balance: raise ValueError("not enough")
                self.balance -= amount
    """,
}
MISTAKES = {
    "run-length": ("groupby(text)", "groupby(sorted(text))"),
    "second-largest": ("set(numbers)", "numbers"),
    "collatz": ("0 if", "1 if"),
    "move-zeros": ("numbers.sort(", "return sorted(numbers, "),
    "account": ("> self.balance", ">= self.balance + 2"),
}


def test_the_problems_of_the_fixture(verifier: PythonTestsVerifier) -> None:
    problems = [
        Problem(row["id"], row["question"], row["answer"])
        for row in map(json.loads, FIXTURE.read_text(encoding="utf-8").splitlines())
    ]
    assert [problem.id for problem in problems] == list(SOLUTIONS)
    for problem in problems:
        assert is_usable(problem)
        solution = textwrap.dedent(SOLUTIONS[problem.id])
        mistaken = solution.replace(*MISTAKES[problem.id])
        assert mistaken != solution
        verdicts = [
            verifier.verify(problem, Rollout.recorded(problem, answered(each))) for each in (solution, mistaken)
        ]
        assert [verdict.label for verdict in verdicts] == ["correct", "wrong"], problem.id
