"""A teacher behind a faulty service, and a process that is killed: every answer once, none asked for again."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pyarrow.parquet
import pytest
from http_service import Reply, Service

from simplerl.config import DistillRecipe, validate_recipe
from simplerl.distill.problems import choose_problems, questions
from simplerl.distill.run import distill
from simplerl.distill.teachers.openai import SEEDS
from simplerl.seeding import rng_for

pytestmark = pytest.mark.e2e

PROBLEMS, SAMPLES, CONCURRENCY = 125, 4, 16
QUESTIONS = PROBLEMS * SAMPLES
KILLS = (100, 230, 370)
TIMEOUT = 0.5


def recipe_of(service: Service, **teacher: Any) -> DistillRecipe:
    table = {
        "kind": "distill",
        "seed": 5,
        "teacher": {
            "name": "openai",
            "url": f"http://127.0.0.1:{service.port}/v1",
            "model": "oracle",
            "concurrency": CONCURRENCY,
            "timeout_seconds": TIMEOUT,
            "give_up_seconds": 60,
        }
        | teacher,
        "data": {"source": "arithmetic", "limit": PROBLEMS, "benchmarks": ["arithmetic-test"]},
        "sampling": {"samples_per_problem": SAMPLES, "max_tokens": 200},
        "filter": {"per_problem": 2, "choose": "shortest", "max_tokens": 60},
    }
    return validate_recipe(table, kind=DistillRecipe)


# --- the service ------------------------------------------------------------------------------------------------------


class Oracle:
    """Knows the gold answers. What it says depends on the question alone; each kind of end occurs."""

    def __init__(self, recipe: DistillRecipe) -> None:
        asked = questions(choose_problems(recipe.data, recipe.seed).problems, recipe)
        self.by_seed = {each.seed % SEEDS: each for each in asked}
        assert len(self.by_seed) == len(asked) == QUESTIONS

    def id(self, question: dict[str, Any]) -> str:
        return self.by_seed[question["seed"]].id

    def __call__(self, question: dict[str, Any]) -> Reply:
        asked = self.by_seed[question["seed"]]
        rng = rng_for(0, "oracle", asked.id)
        time.sleep(rng.uniform(0.0, 0.03))
        right, filler = f"so \\boxed{{{asked.problem.answer}}}", "carry one, " * rng.randrange(1, 9)
        text = rng.choice(
            [right, filler + right, filler + right, filler + right, "so \\boxed{-17}", "no idea", "答 " + right,
             "print(1) " + right, right + " and on" * 40, right]
        )  # fmt: skip
        finish = rng.choice(["stop"] * 9 + ["length"])
        choice = {"message": {"role": "assistant", "content": text}, "finish_reason": finish}
        return Reply({"choices": [choice], "usage": {"prompt_tokens": 9, "completion_tokens": len(text) // 4}})


FAULTS: dict[str, Callable[[Reply], Reply]] = {
    "503": lambda reply: Reply("overloaded", 503),
    "429": lambda reply: Reply("slower", 429, {"Retry-After": "0.1"}),
    "stalled": lambda reply: Reply(mode="stall"),
    "dropped": lambda reply: Reply(mode="drop"),
    "torn": lambda reply: Reply(reply.body, mode="tear"),
    "broken": lambda reply: Reply(reply.content[:-9]),
}


class Faulty:
    """Does harm to the first attempt at every fifth question, each time another one."""

    def __init__(self, oracle: Oracle) -> None:
        self.oracle = oracle
        ids = [each.id for each in oracle.by_seed.values()]
        self.faults = {id: tuple(FAULTS)[n % len(FAULTS)] for n, id in enumerate(ids[::5])}
        self.attempts: Counter[str] = Counter()
        self.done: Counter[str] = Counter()

    def __call__(self, question: dict[str, Any]) -> Reply:
        id = self.oracle.id(question)
        self.attempts[id] += 1
        fault = self.faults.get(id) if self.attempts[id] == 1 else None
        self.done[fault or "whole"] += 1
        reply = self.oracle(question)
        return FAULTS[fault](reply) if fault else reply


# --- the process ------------------------------------------------------------------------------------------------------


def run(recipe: DistillRecipe, folder: Path) -> None:
    from simplerl import http

    # Silence: the parent reads files, never logs.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(os.open(folder.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
    os.environ["NO_PROXY"] = "127.0.0.1"
    http.FIRST_WAIT, http.LONGEST_WAIT = 0.02, 0.1
    distill(recipe, folder, plain=True)


@pytest.fixture(scope="module")
def processes() -> Any:
    """Children that start in milliseconds, from a server that has imported everything once."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["simplerl.distill.run", "simplerl.distill.teachers.openai", "torch"])
    return context


def finish(processes: Any, recipe: DistillRecipe, folder: Path) -> None:
    child = processes.Process(target=run, args=(recipe, folder))
    child.start()
    child.join(120)
    assert child.exitcode == 0, folder.with_suffix(".log").read_text()[-3000:]


def kill_at(processes: Any, recipe: DistillRecipe, folder: Path, answers: int) -> None:
    """SIGKILL as soon as so many answers are in the folder."""
    child = processes.Process(target=run, args=(recipe, folder))
    child.start()
    deadline = time.monotonic() + 60
    while whole_lines(folder) < answers:
        assert child.is_alive() and time.monotonic() < deadline, folder.with_suffix(".log").read_text()[-3000:]
        time.sleep(0.002)
    os.kill(child.pid, signal.SIGKILL)
    child.join()


def whole_lines(folder: Path) -> int:
    path = folder / "responses.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def rows(path: Path) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]


# --- tests ------------------------------------------------------------------------------------------------------------


def test_faults_and_kills_cost_no_answer_and_double_none(processes: Any, tmp_path: Path, capsys: Any) -> None:
    begun = time.monotonic()
    whole, torn = tmp_path / "whole", tmp_path / "torn"
    with Service(lambda question: oracle(question)) as service:
        oracle = Oracle(recipe_of(service))
        finish(processes, recipe_of(service, timeout_seconds=60), whole)
        assert len(service.posted) == QUESTIONS

    faulty = Faulty(oracle)
    kept_at_kill = []
    with Service(faulty) as service:
        for answers in KILLS:
            before = {row["id"] for row in rows(torn / "responses.jsonl")} if kept_at_kill else set()
            start = len(service.posted)
            kill_at(processes, recipe_of(service), torn, answers)
            assert not before & {oracle.id(question) for question in service.posted[start:]}
            kept_at_kill.append(whole_lines(torn))
        before, start = {row["id"] for row in rows(torn / "responses.jsonl")}, len(service.posted)
        finish(processes, recipe_of(service), torn)
        assert not before & {oracle.id(question) for question in service.posted[start:]}
        ledger = {(oracle.id(q), h["Idempotency-Key"]) for q, h in zip(service.posted, service.headers, strict=True)}
        posted = len(service.posted)

    # The faults were there, a fifth of all questions.
    assert len(faulty.faults) == QUESTIONS // 5
    assert sum(faulty.done.values()) - faulty.done["whole"] == QUESTIONS // 5
    assert all(faulty.done[name] >= 16 for name in FAULTS)
    # One key per question, in all sessions.
    assert len(ledger) == len({id for id, _ in ledger}) == len({key for _, key in ledger}) == QUESTIONS
    # Every answer once, and what is kept is what an undisturbed run keeps.
    ids = [row["id"] for row in rows(torn / "responses.jsonl")]
    assert len(ids) == len(set(ids)) == QUESTIONS
    assert {row["id"]: row for row in rows(torn / "responses.jsonl")} == {
        row["id"]: row for row in rows(whole / "responses.jsonl")
    }
    kept = [row["id"] for row in rows(torn / "kept.jsonl")]
    assert len(kept) == len(set(kept)) > PROBLEMS
    for name in ("kept.jsonl", "yields.json", "outcomes.jsonl"):
        assert (torn / name).read_bytes() == (whole / name).read_bytes(), name
    check_accounts(torn)
    with capsys.disabled():
        again = posted - QUESTIONS - QUESTIONS // 5
        print(
            f"\n{QUESTIONS} questions, faults {dict(faulty.done)}, killed with {kept_at_kill} answers kept, "
            f"{posted} attempts ({again} under way at a kill or timed out under load), {len(kept)} kept, "
            f"{time.monotonic() - begun:.1f} s"
        )


def check_accounts(folder: Path) -> None:
    """Every outcome occurs, and they add up."""
    total = json.loads((folder / "yields.json").read_text())["total"]
    assert total["kept"] + total["refused"] + sum(total["left_out"].values()) == total["asked"] == QUESTIONS
    assert total["kept"] == len(rows(folder / "kept.jsonl"))
    occurred = {name for name, n in total["left_out"].items() if n}
    assert occurred == {"wrong", "no_answer", "truncated", "long", "code", "other_letters", "duplicate", "surplus"}


def test_a_service_that_stays_away_ends_the_run_and_it_goes_on(processes: Any, tmp_path: Path) -> None:
    """The first 50 are answered, then every connection is dropped."""
    folder, number = tmp_path / "out", itertools.count()
    with Service(lambda question: oracle(question) if next(number) < 50 else Reply(mode="drop")) as service:
        patient = recipe_of(service, timeout_seconds=60)
        oracle = Oracle(patient)
        child = processes.Process(
            target=run, args=(recipe_of(service, timeout_seconds=60, give_up_seconds=0.5), folder)
        )
        child.start()
        child.join(60)
        assert child.exitcode == 1
        assert len(rows(folder / "responses.jsonl")) == 50
        log = folder.with_suffix(".log").read_text()
        assert re.search(r"gave no answer in \d+ attempts .*the answers that arrived are kept, only the others", log)
        service.answer = oracle
        answered = len(service.posted)
        # Patience may change.
        finish(processes, patient, folder)
        assert len(service.posted) - answered == QUESTIONS - 50
    assert len(rows(folder / "responses.jsonl")) == QUESTIONS


def test_ctrl_c_ends_it_at_once_and_says_that_it_goes_on(tmp_path: Path) -> None:
    """Although questions are under way that would take minutes."""
    import tomli_w

    folder, recipe, number = tmp_path / "out", tmp_path / "mine.toml", itertools.count()
    with Service(lambda question: oracle(question) if next(number) < 40 else Reply(mode="stall")) as service:
        oracle = Oracle(recipe_of(service))
        table = recipe_of(service, timeout_seconds=600).model_dump(mode="json", exclude_none=True)
        recipe.write_text(tomli_w.dumps(table))
        code = "from simplerl.cli.main import main; main()"
        process = subprocess.Popen(
            [sys.executable, "-c", code, "distill", str(recipe), "--out", str(folder)],
            env=os.environ | {"NO_PROXY": "127.0.0.1"},
            stderr=subprocess.PIPE,
            text=True,
        )
        deadline = time.monotonic() + 60
        while whole_lines(folder) < 40 and time.monotonic() < deadline:
            time.sleep(0.01)
        interrupted = time.monotonic()
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
        assert time.monotonic() - interrupted < 10
    assert process.returncode != 0
    assert f"stopped; 40 of {QUESTIONS} answers are in {folder}. Run the same command again to resume" in said
    assert not (folder / "kept.jsonl").exists()


# --- a teacher in this process ----------------------------------------------------------------------------------------

LENIENT = """
from simplerl.types import Verdict
from simplerl.verifiers.base import Verifier


class Lenient(Verifier):
    \"\"\"Every other length is right: a random model is never.\"\"\"

    def verify(self, problem, rollout):
        return Verdict("wrong" if len(rollout.text) % 2 else "correct", None, "length")


def build(config):
    return Lenient()
"""


@pytest.fixture
def local(tiny_model: Path, tmp_path: Path) -> DistillRecipe:
    (tmp_path / "lenient.py").write_text(LENIENT)
    table = {
        "kind": "distill",
        "teacher": {"name": "local", "model": str(tiny_model), "max_prompt_tokens": 40},
        "data": {"source": {"name": "arithmetic", "size": 60}, "levels": [3, 4], "limit": 20},
        "sampling": {"samples_per_problem": 3, "max_tokens": 12},
        "verifier": {"path": str(tmp_path / "lenient.py")},
        "filter": {"code": True, "loops": True, "other_letters": 1.0},
    }
    return validate_recipe(table, kind=DistillRecipe)


def test_a_local_teacher(local: DistillRecipe, tiny_model: Path, tmp_path: Path, monkeypatch: Any) -> None:
    from simplerl.evaluation.models import ModelUnderTest, model_hash

    folder = distill(local, tmp_path / "a").parent
    answers = {row["id"]: row for row in rows(folder / "responses.jsonl")}
    assert len(answers) == 60
    refused = [row for row in answers.values() if row["finish_reason"] == "refused"]
    # Some of the prompts have more than 40 tokens, all samples of a problem alike.
    assert 0 < len(refused) < 60 and all(row["prompt_tokens"] > 40 for row in refused)
    assert set(Counter(row["problem_id"] for row in refused).values()) == {3}
    assert re.fullmatch(r"the prompt has \d+ tokens \(teacher.max_prompt_tokens=40\)", refused[0]["reason"])
    assert all(row["tokens"] <= 12 for row in answers.values() if row["finish_reason"] != "refused")

    total = json.loads((folder / "yields.json").read_text())["total"]
    assert total["answered"] == 60 - len(refused)
    assert total["kept"] + total["refused"] + sum(total["left_out"].values()) == total["asked"] == 60
    table = pyarrow.parquet.read_table(folder / "kept.parquet").to_pylist()
    assert table == rows(folder / "kept.jsonl") and table
    assert all(answers[row["id"]]["text"] == row["response"] for row in table)
    [origin] = json.loads((folder / "provenance.json").read_text())
    assert origin["model_hash"] == model_hash(ModelUnderTest("", str(tiny_model)))

    # The answers depend on the seed, and on nothing else.
    again = distill(local, tmp_path / "b").parent
    assert (again / "kept.jsonl").read_bytes() == (folder / "kept.jsonl").read_bytes()


def test_a_local_teacher_goes_on(local: DistillRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from simplerl.engines._torch_engine import TorchEngine

    whole, folder = distill(local, tmp_path / "whole").parent, tmp_path / "part"
    submit, asked = TorchEngine.submit, []

    def interrupted(self: TorchEngine, requests: Any) -> Any:
        for number, rollout in enumerate(submit(self, requests)):
            if number == 10:
                raise KeyboardInterrupt
            yield rollout

    def noted(self: TorchEngine, requests: Any) -> Any:
        asked.extend(request.id for request in requests)
        return submit(self, requests)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(TorchEngine, "submit", interrupted)
        distill(local, folder)
    there = {row["id"] for row in rows(folder / "responses.jsonl")}
    monkeypatch.setattr(TorchEngine, "submit", noted)
    distill(local, folder)
    assert not there & set(asked)
    assert len(there) + len(asked) == 60
    assert (folder / "kept.jsonl").read_bytes() == (whole / "kept.jsonl").read_bytes()
