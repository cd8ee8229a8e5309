"""The verifier, measured: accuracy on recorded cases, speed, and a soak test. JSON lines on stdout, one per figure.

    python benchmarks/verifier.py accuracy        needs SIMPLERL_CASES and SIMPLERL_DATA
    python benchmarks/verifier.py speed
    python benchmarks/verifier.py disagreements   every verdict that differs from a recorded label, as Markdown
    python benchmarks/verifier.py soak [N]        N verdicts, 1 % hostile, workers killed at random

`accuracy --peer` and `speed --peer` measure math-verify on the same cases.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import platform
import random
import resource
import signal
import subprocess
import sys
import threading
import time
import tomllib
from collections import deque
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from simplerl.types import Verdict
from simplerl.verifiers import math

Row = dict[str, Any]
GRADED = ("gsm8k_openai", "mr_gsm8k", "qwen_harness", "other_graders")
JUDGED = Path(__file__).with_name("verifier_disagreements.toml")


def emit(**figures: object) -> None:
    print(json.dumps(figures, ensure_ascii=False), flush=True)


def folder(name: str) -> Path:
    value = os.environ.get(name)
    if not value:
        sys.exit(f"{name} is not set; it names the folder of the recorded cases")
    return Path(value)


def rows(path: Path) -> list[Row]:
    data = path.read_bytes()
    text = gzip.decompress(data) if path.suffix == ".gz" else data
    return [json.loads(line) for line in text.splitlines()]


def graded(name: str) -> list[Row]:
    return rows(folder("SIMPLERL_DATA") / "graded" / f"graded_{name}.jsonl.gz")


def cases(name: str) -> list[Row]:
    return rows(folder("SIMPLERL_CASES") / f"{name}.jsonl")


# --- who judges -----------------------------------------------------------------------------------------------------


def ours(mode: str) -> tuple[Callable[[Row], bool], Callable[[], None]]:
    verifier = math.build(math.Config(mode=mode))

    def judge(row: Row) -> bool:
        return judged(verifier, row).label == "correct"

    return judge, verifier.close


def judged(verifier: math.MathVerifier, row: Row) -> Verdict:
    gold = row["gold"] if "gold" in row else row["answer"]
    gold = verifier.extract_gold(gold) if row.get("gold_kind") == "solution" else gold
    submit = verifier.submit_answer if row.get("kind") == "answer" else verifier.submit_response
    return submit(row.get("response") or row.get("pred") or "", gold).result()


def peer() -> tuple[Callable[[Row], bool], Callable[[], None]]:
    """math-verify as its documentation uses it; its own time-outs end a case after 5 s."""
    from math_verify import parse, verify

    def read(text: str, bare: bool) -> Any:
        return parse(f"${text}$" if bare and "$" not in text and "boxed" not in text else text)

    def judge(row: Row) -> bool:
        gold = row["gold"] if "gold" in row else row["answer"]
        found = read(gold, row.get("gold_kind") != "solution")
        return bool(verify(found, read(row.get("response") or row.get("pred") or "", row.get("kind") == "answer")))

    return judge, lambda: None


# --- accuracy -------------------------------------------------------------------------------------------------------


def accuracy(args: argparse.Namespace) -> None:
    judge, close = peer() if args.peer else ours("evaluation")
    who = f"math-verify {version('math-verify')}" if args.peer else "simplerl"
    settled = [row for row in cases("conformance") if not row["contested"]]
    wrong = [row for row in settled if judge(row) != row["expected"]]
    false_positives = sum(not row["expected"] for row in wrong)
    emit(who=who, set="conformance", n=len(settled), right=len(settled) - len(wrong), false_positives=false_positives)
    golds = cases("selfmatch")
    emit(who=who, set="selfmatch", n=len(golds), failures=sum(not judge(row) for row in golds))
    for name in GRADED:
        labelled = graded(name)
        agreed = sum(judge(row) == row["correct"] for row in labelled)
        emit(who=who, set=name, n=len(labelled), agreement=round(agreed / len(labelled), 5))
    close()


def disagreements(args: argparse.Namespace) -> None:
    """Each with the judgement of a person, from verifier_disagreements.toml."""
    known = tomllib.loads(JUDGED.read_text(encoding="utf-8"))
    verifier = math.build(math.Config(mode="evaluation"))
    print("| case | label | ours | answer | gold | who is right |\n|---|---|---|---|---|---|")
    for name in GRADED:
        for row in graded(name):
            verdict = judged(verifier, row)
            if (verdict.label == "correct") != row["correct"]:
                answer, gold = (cell(text or "") for text in (verdict.extracted, row["answer"]))
                label = "correct" if row["correct"] else "wrong"
                print(f"| {row['id']} | {label} | {verdict.label} | {answer} | {gold} | {who_is_right(known, row)} |")
    verifier.close()


def who_is_right(known: dict[str, dict[str, str]], row: Row) -> str:
    return next(
        (f"{who}: {reasons[row['id']]}" for who, reasons in known.items() if row["id"] in reasons), "**unjudged**"
    )


def cell(text: str) -> str:
    short = text if len(text) <= 70 else text[:67] + "..."
    return "`" + short.replace("|", "\\|").replace("\n", " ") + "`"


# --- speed ----------------------------------------------------------------------------------------------------------


def speed(args: argparse.Namespace) -> None:
    """One process; the first pass warms the caches of parsed golds, as a run's epochs would, and is shown apart."""
    judge, close = peer() if args.peer else ours("evaluation")
    who = f"math-verify {version('math-verify')}" if args.peer else "simplerl"
    for name in GRADED:
        labelled = graded(name)
        for number in (1,) if args.peer else (1, 2):
            seconds = [timed(judge, row) for row in labelled]
            emit(who=who, set=name, pass_=number, n=len(seconds), **spread(seconds))
    close()


def timed(judge: Callable[[Row], bool], row: Row) -> float:
    started = time.perf_counter()
    judge(row)
    return time.perf_counter() - started


def spread(seconds: list[float]) -> dict[str, float]:
    ordered = sorted(seconds)
    total = sum(ordered)
    return {
        "mean_ms": round(1e3 * total / len(ordered), 4),
        "p50_ms": round(1e3 * ordered[len(ordered) // 2], 4),
        "p99_ms": round(1e3 * ordered[int(0.99 * len(ordered))], 3),
        "max_ms": round(1e3 * ordered[-1], 1),
        "per_second": round(len(ordered) / total),
    }


# --- soak -----------------------------------------------------------------------------------------------------------


def soak(args: argparse.Namespace) -> None:
    """Each verdict is compared with the one its case got alone, so a lost or swapped result is seen."""
    ordinary = [row for name in GRADED for row in graded(name)]
    hostile = cases("hostile")
    sums = [symbolic_row(n) for n in range(200)]
    verifier = math.build(math.Config(mode="evaluation", workers=2, cpu_seconds=1))
    alone = {row["id"]: judged(verifier, row).label for row in (*ordinary, *hostile, *sums)}
    stop = threading.Event()
    killer = threading.Thread(target=kill_workers, args=(stop, kills := []))
    killer.start()
    started, memory, swapped, errors = time.perf_counter(), [], 0, 0
    waiting: deque[tuple[Row, Any]] = deque()
    for number, row in enumerate(drawn(args.n, ordinary, hostile, sums), 1):
        waiting.append(
            (row, verifier.submit_response(row["response"], row["gold"] if "gold" in row else row["answer"]))
        )
        if len(waiting) >= 256 or number == args.n:
            for each, future in waiting:
                label = future.result().label
                errors += label == "error"
                swapped += label != alone[each["id"]] and "error" not in (label, alone[each["id"]])
            waiting.clear()
        if number % max(1, args.n // 20) == 0:
            memory.append(rss_mib())
            emit(verdicts=number, rss_mib=memory[-1], errors=errors, swapped=swapped, kills=len(kills))
    stop.set()
    killer.join()
    verifier.close()
    seconds = time.perf_counter() - started
    emit(soak=args.n, seconds=round(seconds, 1), per_second=round(args.n / seconds), swapped=swapped, errors=errors)
    emit(kills=len(kills), rss_mib_first=memory[0], rss_mib_last=memory[-1], workers_left=len(worker_pids()))


def symbolic_row(n: int) -> Row:
    """A case that only the symbolic path decides; every other one is wrong."""
    total = (n + 5) * (n + 6) // 2 + n % 2
    return {"id": f"sum-{n}", "response": f"\\boxed{{\\sum_{{k=1}}^{{{n + 5}}} k}}", "gold": str(total)}


def drawn(n: int, ordinary: list[Row], hostile: list[Row], sums: list[Row]) -> Iterator[Row]:
    """1 % hostile, 1 % symbolic."""
    rng = random.Random(0)
    return (rng.choice(rng.choices((ordinary, hostile, sums), (98, 1, 1))[0]) for _ in range(n))


def kill_workers(stop: threading.Event, kills: list[int]) -> None:
    rng = random.Random(1)
    while not stop.wait(rng.uniform(1, 6)):
        for pid in worker_pids()[:1]:
            os.kill(pid, signal.SIGKILL)
            kills.append(pid)


def worker_pids() -> list[int]:
    listed = subprocess.run(["ps", "-eo", "pid,ppid,args"], capture_output=True, text=True, check=True).stdout
    mine = (line.split(maxsplit=2) for line in listed.splitlines() if "simplerl.verifiers.math.worker" in line)
    return [int(pid) for pid, parent, _ in mine if int(parent) == os.getpid()]


def rss_mib() -> float:
    """Resident memory now (not its peak) where the system tells it."""
    status = Path("/proc/self/status")
    if status.exists():
        return round(int(status.read_text().split("VmRSS:")[1].split()[0]) / 1024, 1)
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["accuracy", "speed", "disagreements", "soak"])
    parser.add_argument("n", nargs="?", type=int, default=200_000, help="verdicts of the soak test")
    parser.add_argument("--peer", action="store_true", help="measure math-verify instead")
    args = parser.parse_args()
    if args.what != "disagreements":
        emit(python=platform.python_version(), machine=platform.machine(), cores=os.cpu_count())
    {"accuracy": accuracy, "speed": speed, "disagreements": disagreements, "soak": soak}[args.what](args)


if __name__ == "__main__":
    main()
