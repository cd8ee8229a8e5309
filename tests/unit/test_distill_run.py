"""A whole distillation with a teacher out of a file: what is kept where, going on, and what may change on the way."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import orjson
import pyarrow.parquet
import pytest

from simplerl import plugins
from simplerl.cli.main import run
from simplerl.config import DistillRecipe, validate_recipe
from simplerl.data.base import load_problems, source_config
from simplerl.distill.folder import KEPT_COLUMNS, DistillFolder, recipe_sha256
from simplerl.distill.run import distill
from simplerl.distill.teachers.base import short_name
from simplerl.errors import ConfigError, DataError, EngineError, RemoteError, SimpleRLError

pytestmark = pytest.mark.unit

TEACHER = '''
"""Says what the question asks it to say, keeps what it was asked, and dies after so many answers."""

from typing import ClassVar, Literal

from simplerl.distill.teachers.base import Answer, TeacherConfig
from simplerl.errors import RemoteError

ASKED = []


class Config(TeacherConfig):
    may_change: ClassVar[frozenset[str]] = frozenset({"life"})
    model: str = "hub/parrot"
    life: int = 1000
    tone: str = "plain"


class Parrot:
    def __init__(self, config):
        self.config = config

    def answer(self, asked):
        for each in reversed(asked):
            if len(ASKED) >= self.config.life:
                raise RemoteError("tired")
            ASKED.append(each.id)
            yield said(each)

    def provenance(self):
        return {"teacher": "parrot", "tone": self.config.tone, "versions": {"life": self.config.life}}

    def close(self):
        ASKED.append("closed")


def said(asked):
    text = asked.problem.extra["say"][asked.sample_index]
    if text is None:
        return Answer(asked.id, "", None, "refused", "no comment")
    return Answer(asked.id, text, len(text), "length" if text.endswith("...") else "stop", prompt_tokens=3)


def build(config, sampling):
    return Parrot(config)
'''

SET = [
    {"id": "a", "question": "1+1?", "answer": "2", "level": 3, "say": ["\\boxed{2}", "It is \\boxed{2}."]},
    {"id": "b", "question": "2+2?", "answer": "4", "level": 3, "say": ["\\boxed{5}", "I do not know"]},
    {"id": "c", "question": "3+3?", "answer": "6", "level": 5, "say": [None, "Well, \\boxed{6} and so on ..."]},
    {"id": "d", "question": "4+4?", "answer": "8", "level": 5, "say": ["\\boxed{8.0}\ud800", "Say \\boxed{ 8 }\u2028"]},
]


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "parrot.py").write_text(TEACHER)
    (tmp_path / "set.jsonl").write_text("\n".join(map(json.dumps, SET)))
    return {
        "kind": "distill",
        "teacher": {"path": str(tmp_path / "parrot.py")},
        "data": {"source": {"name": "file", "data_path": str(tmp_path / "set.jsonl"), "keys": {"id": "id"}}},
        "sampling": {"samples_per_problem": 2},
        "verifier": {"name": "math", "workers": 0},
        "filter": {"choose": "longest"},
    }


def recipe_of(settings: dict[str, Any], **changed: dict[str, Any]) -> DistillRecipe:
    merged = {key: {**settings[key], **value} for key, value in changed.items()}
    return validate_recipe(settings | merged, kind=DistillRecipe)


def asked(settings: dict[str, Any]) -> list[str]:
    """What the teacher was asked so far, in all sessions."""
    return plugins.load("teachers", "parrot", settings["teacher"]["path"]).ASKED


def lines(path: Path) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in path.read_bytes().splitlines()]


# --- results ----------------------------------------------------------------------------------------------------------


def test_the_right_responses_are_kept_in_the_order_of_the_problems(settings: dict[str, Any], tmp_path: Path) -> None:
    recipe = recipe_of(settings)
    kept = distill(recipe, tmp_path / "out")
    rows = lines(kept)
    assert kept == tmp_path / "out" / "kept.jsonl"
    assert [(row["id"], row["response"]) for row in rows] == [("a#1", "It is \\boxed{2}."), ("d#1", SET[3]["say"][1])]
    assert rows[0] == {
        "id": "a#1",
        "problem_id": "a",
        "sample_index": 1,
        "problem": "1+1?",
        "answer": "2",
        "level": 3,
        "subject": None,
        "source": "set.jsonl#0",
        "response": "It is \\boxed{2}.",
        "tokens": 16,
        "verdict": "correct",
        "method": "box, string",
        "extracted": "2",
        "teacher": "parrot",
        "temperature": 1.0,
        "recipe_sha256": recipe_sha256(recipe),
    }
    assert list(rows[0]) == list(KEPT_COLUMNS)
    assert pyarrow.parquet.read_table(tmp_path / "out" / "kept.parquet").to_pylist() == rows


def test_every_answer_and_its_fate_are_there(settings: dict[str, Any], tmp_path: Path) -> None:
    out = distill(recipe_of(settings), tmp_path / "out").parent
    answers = {row["id"]: row for row in lines(out / "responses.jsonl")}
    assert list(answers) == ["d#1", "d#0", "c#1", "c#0", "b#1", "b#0", "a#1", "a#0"], "as they arrived"
    assert answers["c#0"] == {
        "id": "c#0",
        "problem_id": "c",
        "sample_index": 0,
        "question": "3+3?",
        "text": "",
        "tokens": None,
        "prompt_tokens": None,
        "finish_reason": "refused",
        "reason": "no comment",
    }
    assert answers["d#0"]["text"] == "\\boxed{8.0}?"
    assert {row["id"]: row["outcome"] for row in lines(out / "outcomes.jsonl")} == {
        "a#0": "surplus", "a#1": "kept", "b#0": "wrong", "b#1": "no_answer", "c#0": "refused", "c#1": "truncated",
        "d#0": "surplus", "d#1": "kept",
    }  # fmt: skip
    total = json.loads((out / "yields.json").read_text())["total"]
    assert (total["asked"], total["refused"], total["correct"], total["kept"]) == (8, 1, 5, 2)
    assert "| kept | 1 | 1 | 2 |" in (out / "yields.md").read_text()


@pytest.mark.parametrize("name", ["kept.jsonl", "kept.parquet"])
def test_what_is_kept_is_a_data_set(settings: dict[str, Any], tmp_path: Path, name: str) -> None:
    out = distill(recipe_of(settings, filter={"per_problem": 2}), tmp_path / "out").parent
    keys = {"question": "problem", "answer": "answer", "id": "id", "solution": "response"}
    overrides = [f"data_path={out / name}", *(f"keys.{key}={value}" for key, value in keys.items())]
    problems, notices = load_problems(source_config("file", overrides))
    assert [(p.id, p.question, p.answer, p.level, p.solution) for p in problems] == [
        ("a#0", "1+1?", "2", 3, "\\boxed{2}"),
        ("a#1", "1+1?", "2", 3, "It is \\boxed{2}."),
        ("d#0", "4+4?", "8", 5, "\\boxed{8.0}?"),
        ("d#1", "4+4?", "8", 5, SET[3]["say"][1]),
    ]
    assert notices == []


def test_nothing_kept_is_an_empty_file(settings: dict[str, Any], tmp_path: Path) -> None:
    assert distill(recipe_of(settings, filter={"min_tokens": 999}), tmp_path / "out").read_bytes() == b""


# --- going on ---------------------------------------------------------------------------------------------------------


def test_what_is_finished_is_left_alone(settings: dict[str, Any], tmp_path: Path) -> None:
    out = distill(recipe_of(settings), tmp_path / "out").parent
    before = {path.name: path.stat().st_mtime_ns for path in out.iterdir() if path.name != ".lock"}
    assert distill(recipe_of(settings), out) == out / "kept.jsonl"
    assert distill(recipe_of(settings, teacher={"life": 3}), out) == out / "kept.jsonl"
    assert {path.name: path.stat().st_mtime_ns for path in out.iterdir() if path.name != ".lock"} == before
    assert asked(settings).count("closed") == 1


def test_answers_that_are_there_are_not_asked_for_again(settings: dict[str, Any], tmp_path: Path) -> None:
    said: list[str] = []
    out = tmp_path / "out"
    with pytest.raises(RemoteError, match="tired"):
        distill(recipe_of(settings, teacher={"life": 3}), out)
    assert not (out / "kept.jsonl").exists()
    # A kill in the middle of a line.
    with open(out / "responses.jsonl", "ab") as file:
        file.write(b'{"id":"c#0","problem_id":"c","samp')
    distill(recipe_of(settings), out, notice=said.append)
    assert Counter(asked(settings)) == Counter({f"{name}#{n}": 1 for name in "abcd" for n in (0, 1)}) | {"closed": 2}
    assert said == ["3 of 8 answers are stored already"]
    whole = distill(recipe_of(settings), tmp_path / "whole")
    assert (out / "kept.jsonl").read_bytes() == whole.read_bytes()
    assert len(json.loads((out / "environment.json").read_text())) == 2


def test_killed_while_it_grades_it_needs_no_teacher(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("simplerl.distill.run.graded", interrupt)
        said: list[str] = []
        distill(recipe_of(settings), out, notice=said.append)
    assert said == [f"stopped; 8 of 8 answers are in {out}. Run the same command again to resume"]
    assert len(lines(distill(recipe_of(settings), out))) == 2
    assert asked(settings).count("closed") == 1


def interrupt(*arguments: Any) -> None:
    raise KeyboardInterrupt


def test_another_distillation_is_refused_with_what_differs(settings: dict[str, Any], tmp_path: Path) -> None:
    out = distill(recipe_of(settings), tmp_path / "out").parent
    with pytest.raises(ConfigError) as caught:
        distill(recipe_of(settings, sampling={"temperature": 0.5}, teacher={"tone": "shrill"}), out)
    assert str(caught.value) == (
        f"{out} holds another distillation:\n  sampling.temperature: stored 1.0, given 0.5\n"
        "  teacher.tone: stored 'plain', given 'shrill'\n"
        "Name another folder with --out (these may change: filter.*, verifier.*, teacher.life)"
    )
    assert (out / "kept.jsonl").exists()


def test_answers_are_looked_at_again_where_only_the_selection_changed(settings: dict[str, Any], tmp_path: Path) -> None:
    out = distill(recipe_of(settings), tmp_path / "out").parent
    again = recipe_of(settings, filter={"choose": "first", "per_problem": 2})
    assert [row["id"] for row in lines(distill(again, out))] == ["a#0", "a#1", "d#0", "d#1"]
    assert asked(settings).count("closed") == 1, "without the teacher"
    assert lines(out / "kept.jsonl")[0]["recipe_sha256"] == recipe_sha256(again) != recipe_sha256(recipe_of(settings))


def test_the_hash_of_a_recipe_knows_what_decides_the_data(settings: dict[str, Any]) -> None:
    one = recipe_sha256(recipe_of(settings))
    assert one == recipe_sha256(recipe_of(settings, teacher={"life": 3}))
    assert one == recipe_sha256(recipe_of(settings | {"description": "mine"}))
    assert one != recipe_sha256(recipe_of(settings, teacher={"tone": "shrill"}))
    assert one != recipe_sha256(recipe_of(settings | {"seed": 1}))


def test_another_teacher_under_the_same_recipe_is_refused(settings: dict[str, Any], tmp_path: Path) -> None:
    """Such as a model folder whose weights were replaced."""
    out = tmp_path / "out"
    with pytest.raises(RemoteError):
        distill(recipe_of(settings, teacher={"life": 3}), out)
    path = out / "provenance.json"
    stored = json.loads(path.read_text())
    path.write_text(json.dumps([stored[0] | {"tone": "husky"}]))
    with pytest.raises(ConfigError, match=r"answers of another teacher:\n  tone: stored 'husky', given 'plain'\n"):
        distill(recipe_of(settings), out)
    path.write_text(json.dumps(stored))
    distill(recipe_of(settings), out)
    assert [entry["versions"] for entry in json.loads(path.read_text())] == [{"life": 3}, {"life": 1000}]


def test_a_data_set_that_changed_is_noticed(settings: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(RemoteError):
        distill(recipe_of(settings, teacher={"life": 3}), tmp_path / "out")
    (tmp_path / "set.jsonl").write_text("\n".join(map(json.dumps, [*SET[:3], SET[3] | {"question": "5+5?"}])))
    with pytest.raises(DataError, match=r"holds an answer to another question under 'd#1'"):
        distill(recipe_of(settings), tmp_path / "out")


def test_one_process_at_a_time(settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from simplerl.storage.files import locked

    monkeypatch.setattr(DistillFolder, "lock", lambda folder: locked(folder.path, 0.1))
    with locked(tmp_path / "out"), pytest.raises(SimpleRLError, match="is in use by process"):
        distill(recipe_of(settings), tmp_path / "out")


@pytest.mark.parametrize(
    "body, fault",
    [
        ("return", "8 of 8 questions were never answered; the first is a#0"),
        (
            "yield said(asked[0]); yield said(asked[0])",
            "the teacher answered 'a#0', which was not asked, or was answered b",
        ),
    ],
)
def test_a_teacher_that_breaks_its_contract(settings: dict[str, Any], tmp_path: Path, body: str, fault: str) -> None:
    broken = TEACHER.replace("        for each in reversed(asked):", f"        {body}\n        for each in ():")
    (tmp_path / "parrot.py").write_text(broken)
    with pytest.raises(EngineError, match=fault):
        distill(recipe_of(settings), tmp_path / "out")


# --- names, and the command -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "model, name",
    [
        ("tiny-math-base", "tiny-math-base"),
        ("Qwen/QwQ-32B-Preview", "QwQ-32B-Preview"),
        ("/models/mine/", "mine"),
        ("runs/quickstart/exports/final", "quickstart"),
    ],
)
def test_short_names(model: str, name: str) -> None:
    assert short_name(model) == name


def test_the_command_prints_the_table_and_the_file(settings: dict[str, Any], tmp_path: Path, capsys: Any) -> None:
    import tomli_w

    (tmp_path / "mine.toml").write_text(tomli_w.dumps(settings))
    out = tmp_path / "out"
    assert run(["distill", str(tmp_path / "mine.toml"), "--out", str(out), "--set", "filter.choose=first"]) == 0
    shown = capsys.readouterr().out
    assert "kept                        1        1        2\n" in shown
    assert shown.endswith(f"training data: {out / 'kept.jsonl'}\n")
    assert [row["id"] for row in lines(out / "kept.jsonl")] == ["a#0", "d#0"]


def test_an_endpoint_takes_the_place_of_the_recipe_s_teacher(capsys: Any) -> None:
    command = ["distill", "quickstart-distill", "--endpoint", "http://127.0.0.1:8000/v1", "--dry-run"]
    assert run(command) == 2
    assert "teacher.model: is required" in capsys.readouterr().err
    assert run([*command, "--set", "teacher.model=qwq", "--set", "sampling.samples_per_problem=4"]) == 0
    shown = capsys.readouterr().out
    assert "2,500 problems x 4 samples = 10,000 responses\n2,000,000 tokens at most (200 each)\n" in shown


def test_the_published_recipe() -> None:
    from simplerl.config import load_recipe

    recipe = load_recipe("simplerl-distill-qwq", kind=DistillRecipe).model_dump()
    assert (recipe["teacher"]["name"], recipe["teacher"]["model"]) == ("openai", "Qwen/QwQ-32B-Preview")
    assert recipe["data"]["source"]["name"] == "math-lvl3to5"
    assert recipe["sampling"] == {"samples_per_problem": 4, "temperature": 0.7, "top_p": 0.95, "max_tokens": 3000}
    assert recipe["filter"]["max_tokens"] == 3000 and not recipe["filter"]["loops"]
    assert recipe["data"]["benchmarks"] == (
        "aime24", "amc23", "math500", "minerva-math", "olympiadbench", "gsm8k", "gaokao2023en", "college-math",
    )  # fmt: skip
