"""The verifier on recorded cases: other projects' own suites, real gold answers, hostile text, real responses."""

from __future__ import annotations

import gzip
import json
import os
import time
import tomllib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from simplerl.rewards import simplerl as rule
from simplerl.types import Problem, Prompt, Rollout, Verdict
from simplerl.verifiers import math

pytestmark = pytest.mark.parity

CASES = os.environ.get("SIMPLERL_CASES")
JUDGED = Path(__file__).parents[2] / "benchmarks" / "verifier_disagreements.toml"
DATA = os.environ.get("SIMPLERL_DATA")
needs_cases = pytest.mark.skipif(not CASES, reason="SIMPLERL_CASES does not name the folder of verifier cases")
needs_data = pytest.mark.skipif(not DATA, reason="SIMPLERL_DATA does not name the folder of data sets")

# Cases whose label is not what we mean, each with the reason.
MEANT = {
    "ea14479a3c": "a contradiction, 1/2 $ = 10/9, is no answer",
}


def rows(path: Path) -> list[dict[str, Any]]:
    data = path.read_bytes()
    text = gzip.decompress(data) if path.suffix == ".gz" else data
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture(scope="module")
def verifiers() -> Iterator[dict[str, math.MathVerifier]]:
    made = {mode: math.build(math.Config(mode=mode)) for mode in ("reward", "evaluation")}
    yield made
    for each in made.values():
        each.close()


def judge(verifier: math.MathVerifier, row: dict[str, Any]) -> Verdict:
    gold = verifier.extract_gold(row["gold"]) if row.get("gold_kind") == "solution" else row["gold"]
    submit = verifier.submit_answer if row.get("kind") == "answer" else verifier.submit_response
    return submit(row["pred"], gold).result()


@needs_cases
def test_other_projects_own_cases(verifiers: dict[str, math.MathVerifier]) -> None:
    cases = [row for row in rows(Path(CASES or "") / "conformance.jsonl") if not row["contested"]]
    verdicts = {row["id"]: judge(verifiers["evaluation"], row).label for row in cases}
    wrong = [row for row in cases if (verdicts[row["id"]] == "correct") != row["expected"]]
    assert {row["id"] for row in wrong} <= set(MEANT)
    assert not [row["id"] for row in wrong if not row["expected"]]  # no false positive


@needs_cases
def test_every_gold_equals_itself(verifiers: dict[str, math.MathVerifier]) -> None:
    cases = rows(Path(CASES or "") / "selfmatch.jsonl")
    for verifier in verifiers.values():
        assert [row["id"] for row in cases if judge(verifier, row).label != "correct"] == []


@needs_cases
def test_hostile_text(verifiers: dict[str, math.MathVerifier]) -> None:
    """No payload runs, nothing passes its limit, and nothing false is rewarded."""
    canaries = Path("/tmp")
    for row in rows(Path(CASES or "") / "hostile.jsonl"):
        started = time.monotonic()
        label = verifiers["reward"].submit_response(row["response"], row["gold"]).result().label
        assert time.monotonic() - started < 2 * row["limit_s"], row["id"]
        accepted = {
            "correct": {"correct"},
            "wrong": {"wrong", "no_answer", "error"},
            "no_answer": {"no_answer"},
            "policy": {"correct", "wrong", "no_answer", "error"},
        }[row["expected"]]
        assert label in accepted, row["id"]
    assert not list(canaries.glob("verifiercanary*"))


@needs_cases
def test_the_published_reward_and_where_ours_differs(verifiers: dict[str, math.MathVerifier]) -> None:
    """docs/verifier.md says why each difference is meant."""
    reward = rule.build(rule.Config())
    differences = {}
    for row in rows(Path(CASES or "") / "reward_vectors.jsonl"):
        verdict = verifiers["reward"].submit_response(row["response"], row["answer"]).result()
        prompt = Prompt(Problem(row["id"], "", row["answer"]), "", ())
        ours = reward(Rollout.single_turn(row["id"], prompt, (), (), row["response"], "stop", 0), verdict)
        if ours != row["v0_reward"]:
            differences[row["id"]] = ours
    assert differences == {
        "r007": -1.0,  # the word "boxed" is no box
        "r011": -1.0,  # a box that is never closed
        "r013": -1.0,  # an empty box
        "r023": -0.5,  # 50 for 0.5: a bare factor of 100
        "r031": -0.5,  # [0,1] for (0,1)
        "r047": -0.5,  # the box counts, not the sentence before it
        "r049": -0.5,  # letters in the box are not dropped
    }


@needs_data
@pytest.mark.parametrize("name", ["gsm8k_openai", "mr_gsm8k", "qwen_harness", "other_graders"])
def test_verdicts_on_real_responses_differ_from_a_label_only_where_a_person_looked(
    verifiers: dict[str, math.MathVerifier], name: str
) -> None:
    """The labels are other graders', and often wrong; each difference is judged in benchmarks/."""
    judged = tomllib.loads(JUDGED.read_text(encoding="utf-8"))
    known = {identity for reasons in judged.values() for identity in reasons}
    labelled = rows(Path(DATA or "") / "graded" / f"graded_{name}.jsonl.gz")
    verdicts = [verifiers["evaluation"].submit_response(r["response"], r["answer"]).result().label for r in labelled]
    differ = [r["id"] for label, r in zip(verdicts, labelled, strict=True) if (label == "correct") != r["correct"]]
    assert set(differ) <= known
    assert len(differ) <= 0.04 * len(labelled)
    assert Counter(verdicts)["error"] <= 1
