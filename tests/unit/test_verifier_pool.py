"""Workers: hostile text ends in a bounded time and memory, nothing is lost or swapped, and nothing is left behind."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from simplerl.errors import DependencyError
from simplerl.verifiers.math import pool as pool_module
from simplerl.verifiers.math.pool import Outcome, SymbolicPool, WorkerProcess

pytestmark = [
    pytest.mark.unit,
    pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc"),
]

SLOW = "7^{7^{7^7}}"
PAIR = ("x+1", "1+x")
LIMITS = {"cpu_seconds": 0.3, "wall_seconds": 30, "memory_bytes": 1 << 27}

HOSTILE = [
    "10^{10^{10}}",
    SLOW,
    r"((9^9)^{9999})^{9999}",
    r"10^{-10^{10}}",
    r"(10^{9})!",
    r"\binom{1000000000}{500000000}",
    r"\prod_{k=1}^{10^9} k",
    r"\log_{2}(2^{10^{9}})",
    r"\sin(7^{e^{e^{e^{10e}}}}+1)",
    "(" * 900 + "1" + ")" * 900,
    r"\sqrt{" * 300 + "1" + "}" * 300,
    "9" * 2000,
    "+".join(["1"] * 900),
    ", ".join(["1"] * 600),
    r"\operatorname{eye}(10^9)",
]

# A worker that knows no mathematics: it answers at once, as its argument says.
PRETENDER = """
import json, sys

print('{"ready": true}', flush=True)
for line in sys.stdin:
    number = json.loads(line)["id"]
    print(sys.argv[1].replace("ID", str(number)), flush=True)
"""


@pytest.fixture(scope="module")
def pool() -> Iterator[SymbolicPool]:
    pool = SymbolicPool(2, **LIMITS)
    yield pool
    pool.close()


def children(parent: int) -> list[int]:
    """Processes of a parent that have not ended."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            state, ppid = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
        except (OSError, ValueError):
            continue
        if int(ppid) == parent and state != "Z":
            found.append(int(entry.name))
    return found


def workers(parent: int | None = None) -> list[int]:
    """Workers of this process, or another one."""
    found = children(parent or os.getpid())
    return [pid for pid in found if b"simplerl.verifiers.math.worker" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def wait_for(condition: Callable[[], object], seconds: float = 60) -> object:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.005)
    raise AssertionError("it did not happen in time")


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "symbolic-verifier"]


# --- hostile text -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: text[:24])
def test_hostile_text_is_never_equal_and_leaves_the_pool_working(pool, text):
    first, second = pool.submit(text, "1"), pool.submit("1", text)
    assert {first.result().status, second.result().status} <= {"different", "unparsed", "timeout", "memory", "crash"}
    assert max(first.result().seconds, second.result().seconds) < 3
    assert pool.submit(*PAIR).result().status == "equal"


def test_memory_is_bounded(pool):
    peak = 0
    outcome = pool.submit(r"\log_{2}(2^{10^{9}})", "4")
    while not outcome.done():
        for pid in [child for worker in workers() for child in children(worker)]:
            try:
                peak = max(peak, int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096)
            except OSError:
                continue
    assert 0 < peak < 300 << 20


def test_payloads_do_not_run(pool, tmp_path):
    canary = tmp_path / "canary"
    payloads = [
        f"__import__('os').system('touch {canary}')",
        f'[open("{canary}","w")]',
        f"\\write18{{touch {canary}}}",
        f"\\input{{{canary}}}",
        f"\\text{{open({canary})}}",
        "quit()",
        "raise SystemExit",
    ]
    statuses = [pool.submit(text, gold).result().status for text in payloads for gold in ("1", r"\{1\}")]
    assert set(statuses) <= {"unparsed", "different"}
    assert not canary.exists()


def test_an_answer_too_long_to_be_one_starts_nothing():
    pool = SymbolicPool()
    assert pool.submit("1" * 5000, "1").result(timeout=0) == Outcome("unparsed", 0.0)
    assert pool._workers.processes[0]._process is None
    pool.close()


# --- nothing is lost or swapped ---------------------------------------------------------------------------------------


def test_no_result_is_lost_or_swapped_while_workers_are_killed():
    pool = SymbolicPool(2, cpu_seconds=30, wall_seconds=60)
    before = set(workers())
    finished = threading.Semaphore(0)

    def ask(number: int) -> bool:
        outcome = pool.submit(f"{number}+1", str(number + (1 if number % 3 else 2))).result()
        finished.release()
        return outcome.status == ("equal" if number % 3 else "different")

    def kill() -> None:
        for number in range(120):
            finished.acquire()
            if number % 50 == 20:
                victims = sorted(set(workers()) - before)
                os.kill(victims[number % len(victims)], signal.SIGKILL)

    with ThreadPoolExecutor(9) as askers:
        killing = askers.submit(kill)
        assert all(askers.map(ask, range(200)))
        killing.result()
    pool.close()


@pytest.mark.parametrize(
    "reply",
    ['{"id": -1, "status": "equal", "seconds": 0}', "no json", '{"id": ID, "status": "equal", "seconds": 0}\n{}'],
)
def test_a_reply_that_is_not_to_the_question_is_not_believed(monkeypatch, reply):
    monkeypatch.setattr(pool_module, "COMMAND", (sys.executable, "-c", PRETENDER, reply))
    pool = SymbolicPool()
    expected = "equal" if "ID" in reply else "crash"
    # The rest of the last reply is found by the second question, which then goes to a new worker.
    assert [pool.submit("1", "2").result().status for _ in range(2)] == [expected, expected]
    pool.close()


def test_a_worker_that_dies_is_given_up_after_three_attempts(monkeypatch, tmp_path):
    log = tmp_path / "log"
    script = f"open({str(log)!r}, 'a').write('x')"
    monkeypatch.setattr(pool_module, "COMMAND", (sys.executable, "-c", script))
    pool = SymbolicPool()
    assert pool.submit("1", "1").result().status == "crash"
    assert log.read_text() == "xxx"
    pool.close()


def test_a_missing_package_is_an_error_with_the_remedy(monkeypatch, tmp_path):
    (tmp_path / "math_verify").mkdir()
    (tmp_path / "math_verify" / "__init__.py").write_text("raise ImportError('not here')")
    monkeypatch.syspath_prepend(tmp_path)
    pool = SymbolicPool()
    for _ in range(2):
        with pytest.raises(DependencyError, match=r"`pip install math-verify` \(not here\)"):
            pool.submit("1", "1").result()
    pool.close()


# --- stalls -----------------------------------------------------------------------------------------------------------


def stop_children(pool: SymbolicPool, times: int) -> None:
    """Stops the next children of the pool's only worker, as if the machine had no time for them."""
    seen: set[int] = set()
    while len(seen) < times:
        process = pool._workers.processes[0]._process
        for pid in set(children(process.pid)) - seen if process else ():
            os.kill(pid, signal.SIGSTOP)
            seen.add(pid)


def test_what_stalls_is_tried_once_more():
    pool = SymbolicPool(cpu_seconds=0.2, wall_seconds=2)
    assert pool.submit("1", "2").result().status == "different"
    for stalls, status in ((1, "timeout"), (2, "stalled")):
        outcome = pool.submit(SLOW, "1")
        stop_children(pool, stalls)
        assert outcome.result().status == status
    pool.close()


def test_a_worker_that_does_not_answer_is_replaced(monkeypatch):
    monkeypatch.setattr(pool_module, "GRACE_SECONDS", 0.2)
    pool = SymbolicPool(wall_seconds=2.5)
    assert pool.submit(*PAIR).result().status == "equal"
    stopped = pool._workers.processes[0]._process.pid
    os.kill(stopped, signal.SIGSTOP)
    assert pool.submit(*PAIR).result().status == "equal"
    assert not alive(stopped)
    pool.close()


class FakeWorkers:
    """Replaces the processes of every pool: a pair whose answer is in `held` runs until its event is set.

    The first comparison of a pair whose answer starts with "stall" gets no reply.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *held: str) -> None:
        self.events: list[str] = []
        self.held = {answer: threading.Event() for answer in held}
        monkeypatch.setattr(WorkerProcess, "start", lambda process: None)
        monkeypatch.setattr(WorkerProcess, "ask", lambda process, question, seconds: self.ask(question["answer"]))

    def ask(self, answer: str) -> dict[str, object] | None:
        stalls = answer.startswith("stall") and f"{answer} starts" not in self.events
        self.events.append(f"{answer} starts")
        if answer in self.held:
            self.held[answer].wait(60)
        self.events.append(f"{answer} ends")
        return None if stalls else {"status": "equal", "seconds": 0.0}


def test_a_stalled_pair_is_compared_again_with_nothing_else_running(monkeypatch):
    fake = FakeWorkers(monkeypatch, "busy")
    pool = SymbolicPool(2)
    busy = pool.submit("busy", "")
    wait_for(lambda: fake.events)
    stalled = pool.submit("stalled", "")
    wait_for(lambda: len(fake.events) == 3 and pool._workers._turnstile.locked())
    late = [pool.submit(answer, "") for answer in ("late", "later")]
    assert fake.events == ["busy starts", "stalled starts", "stalled ends"]
    fake.held["busy"].set()
    assert {future.result(timeout=60).status for future in (busy, stalled, *late)} == {"equal"}
    assert fake.events[3:6] == ["busy ends", "stalled starts", "stalled ends"]
    assert sorted(fake.events[6:]) == ["late ends", "late starts", "later ends", "later starts"]
    pool.close()


def test_two_stalled_pairs_do_not_wait_for_each_other(monkeypatch):
    FakeWorkers(monkeypatch)
    pool = SymbolicPool(2)
    futures = [pool.submit(f"stalled {number}", "") for number in range(20)]
    assert {future.result(timeout=60).status for future in futures} == {"equal"}
    pool.close()


# --- use --------------------------------------------------------------------------------------------------------------


def test_asyncio(pool):
    async def ask() -> list[Outcome]:
        golds = ["1", "2", "x+0"]
        return await asyncio.gather(*(asyncio.wrap_future(pool.submit("x", gold)) for gold in golds))

    with ThreadPoolExecutor(1) as other:  # in this thread a browser's loop may be running
        found = other.submit(lambda: asyncio.run(ask())).result()
    assert [each.status for each in found] == ["different", "different", "equal"]


def test_submit_blocks_while_the_queue_is_full(monkeypatch):
    fake = FakeWorkers(monkeypatch, "first", "second")
    pool = SymbolicPool(queue=1)
    pool.submit("first", "")
    wait_for(lambda: fake.events)
    second = pool.submit("second", "")
    with ThreadPoolExecutor(1) as other:
        third = other.submit(pool.submit, "third", "")
        time.sleep(0.05)
        assert not third.done()
        fake.held["first"].set()
        waiting = third.result(timeout=60)
        fourth = other.submit(pool.submit, "fourth", "")
        time.sleep(0.05)
        assert not fourth.done()
        closing = threading.Thread(target=pool.close)
        closing.start()
        with pytest.raises(RuntimeError, match="closed"):
            fourth.result(timeout=60)
        fake.held["second"].set()
        closing.join()
    assert waiting.cancelled() and second.result(timeout=0).status == "equal"


# --- the end ----------------------------------------------------------------------------------------------------------


def test_close_ends_everything_with_work_pending():
    before = set(workers()), len(threads())
    pool = SymbolicPool(2, cpu_seconds=60, wall_seconds=60)
    assert pool.submit(*PAIR).result().status == "equal"
    futures: list[Future[Outcome]] = [pool.submit(SLOW, "1") for _ in range(6)]
    wait_for(lambda: sum(future.running() for future in futures) == 2)
    pool.close()
    pool.close()
    ends = ["cancelled" if future.cancelled() else future.result(timeout=0).status for future in futures]
    assert sorted(ends) == ["cancelled"] * 4 + ["crash"] * 2
    assert (set(workers()), len(threads())) == before
    with pytest.raises(RuntimeError, match="closed"):
        pool.submit("1", "1")


def test_close_ends_a_stalled_pair_that_waits_to_run_alone(monkeypatch):
    ask, stalls = WorkerProcess.ask, []

    def stall(process, question, seconds):
        return stalls.append(question) if question["answer"] == "stalled" else ask(process, question, seconds)

    monkeypatch.setattr(WorkerProcess, "ask", stall)
    pool = SymbolicPool(2, cpu_seconds=60, wall_seconds=60)
    futures = [pool.submit(SLOW, "1"), pool.submit("stalled", "1")]
    wait_for(lambda: any(children(pid) for pid in workers()))
    wait_for(lambda: stalls and pool._workers._turnstile.locked())
    pool.close()
    assert [future.result(timeout=0).status for future in futures] == ["crash", "crash"]


def test_a_pool_used_and_forgotten_in_a_thread_ends_too():
    before = set(workers()), len(threads())

    def use() -> tuple[str, bool]:
        pool = SymbolicPool()
        return pool.submit(*PAIR).result().status, (set(workers()), len(threads())) != before

    with ThreadPoolExecutor(1) as other:
        assert other.submit(use).result() == ("equal", True)
    assert (set(workers()), len(threads())) == before


@pytest.mark.parametrize("ending", ["time.sleep(600)", "pass"])
def test_the_worker_ends_with_its_owner(ending):
    script = f"""
import time
from simplerl.verifiers.math.pool import SymbolicPool

pool = SymbolicPool(cpu_seconds=600, wall_seconds=600)
assert pool.submit("1", "1").result().status == "equal"
pool.submit({SLOW!r}, "1")
print(pool._workers.processes[0]._process.pid, flush=True)
time.sleep(0.5)
{ending}
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as owner:
        worker = int(owner.stdout.readline())
        (child,) = wait_for(lambda: children(worker))
        if ending != "pass":
            owner.kill()
        owner.wait(timeout=60)
    wait_for(lambda: not alive(worker) and not alive(child))


def test_a_forked_process_does_not_end_the_pool_of_its_parent():
    script = """
import os, sys
from simplerl.verifiers.math.pool import SymbolicPool

pool = SymbolicPool()
assert pool.submit("1", "1").result().status == "equal"
worker = pool._workers.processes[0]._process.pid
if not (child := os.fork()):
    sys.exit()
assert os.waitpid(child, 0)[1] == 0
assert pool.submit("1", "1").result().status == "equal"
assert pool._workers.processes[0]._process.pid == worker
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_worker_does_not_inherit_secrets(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    pool = SymbolicPool()
    assert pool.submit(*PAIR).result().status == "equal"
    environment = Path(f"/proc/{pool._workers.processes[0]._process.pid}/environ").read_bytes()
    assert b"PYTHONHASHSEED=0" in environment and b"hf_secret" not in environment
    pool.close()
