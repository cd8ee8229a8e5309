"""Rows of users' files as problems."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from simplerl.data.base import load_problems, source_config
from simplerl.data.rows import Keys, problems_from, read_table
from simplerl.errors import ConfigError, DataError
from simplerl.storage.jsonl import parse_jsonl

ROW = {"prompt": [{"content": "1+1?"}], "extra": {"gold": 2.0}, "difficulty": "Level 3", "uid": 7, "other": "kept"}
KEYS = Keys(question="prompt.0.content", answer="extra.gold", level="difficulty", id="uid")


def test_dotted_keys_lead_into_objects_and_lists() -> None:
    (problem,) = problems_from([ROW], KEYS, "mine")
    assert (problem.id, problem.question, problem.answer, problem.level) == ("7", "1+1?", "2", 3)
    assert problem.extra["other"] == "kept"


def test_a_key_with_a_dot_in_its_name_comes_first() -> None:
    (problem,) = problems_from([{"a.b": "x", "a": {"b": "y"}, "answer": 1}], Keys(question="a.b"), "mine")
    assert problem.question == "x"


def test_rows_without_ids_are_numbered_and_optional_keys_are_found_by_name() -> None:
    rows = [{"question": "q", "answer": "1", "level": 2, "subject": "Algebra"}, {"question": "r", "answer": [3]}]
    first, second = problems_from(rows, Keys(), "mine")
    assert (first.id, first.level, first.subject) == ("mine/0", 2, "Algebra")
    assert (second.id, second.level, second.answer) == ("mine/1", None, "3")


@pytest.mark.parametrize(
    ("given", "level"), [("Level ?", None), ("Level 5", 5), (4, 4), (4.0, 4), ("3", 3), (None, None)]
)
def test_levels(given: object, level: int | None) -> None:
    assert problems_from([{"question": "q", "answer": "1", "level": given}], Keys(), "m")[0].level == level


@pytest.mark.parametrize(
    ("row", "keys", "message"),
    [
        ({"problem": "q", "answer": 1}, Keys(), "mine: row 0 has no 'question'; it has problem, answer. Say which key"),
        ({"question": "q", "answer": 1}, Keys(level="lvl"), "no 'lvl'.*keys.level="),
        ({"question": "q", "answer": {"a": 1}}, Keys(), "the answer is {'a': 1}, a dict"),
        ({"question": "q", "answer": True}, Keys(), "the answer is True, a bool"),
        ({"question": "q", "answer": 1, "level": "hard"}, Keys(), "the level is 'hard'"),
    ],
)
def test_a_row_that_does_not_fit_says_which_and_why(row: dict[str, object], keys: Keys, message: str) -> None:
    with pytest.raises(DataError, match=message):
        problems_from([row], keys, "mine")


def test_an_id_used_twice_names_both_rows() -> None:
    with pytest.raises(DataError, match="rows 0 and 1 have the same id 'a'"):
        problems_from([{"question": "q", "answer": "1", "id": "a"}] * 2, Keys(id="id"), "mine")


def test_every_file_format_gives_the_same_rows(tmp_path: Path) -> None:
    # U+2028 is a line end to str.splitlines, but not in JSONL.
    rows = [{"question": "eins\u2028zwei", "answer": "2"}, {"question": "é", "answer": "3"}]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + lines)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines))
    (tmp_path / "a.json").write_text(json.dumps(rows))
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    assert all(read_table(path) == rows for path in tmp_path.iterdir())
    assert len(list(tmp_path.iterdir())) == 4


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"a": 1}\n{"a": \n', "line 2 is not JSON"),
        ("a.jsonl", b"[1]\n", "line 1 holds a list"),
        ("a.jsonl", b'{"a": "\xff"}', "not UTF-8: byte 7 is 0xff"),
        ("a.json", b'{"a": 1}', "must hold a list of objects"),
        ("a.json", b'{"a": 1}\n{"a": 2}', "call it .jsonl"),
        ("a.jsonl.gz", gzip.compress(b'{"a": 1}', mtime=0)[:-9], "is damaged"),
        ("a.jsonl.gz", b"plain", "is damaged"),
        ("a.parquet", b"PAR1", "is not a Parquet file"),
        ("a.csv", b"a,b", "known endings"),
    ],
)
def test_a_file_that_cannot_be_read_says_why(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_table(path)


@pytest.mark.parametrize("name", ["none.jsonl", "none.parquet"])
def test_a_file_that_is_not_there(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        read_table(tmp_path / name)


def test_blank_lines_are_no_rows() -> None:
    lines = b'\n{"a": 1}\r\n\n'.split(b"\n")
    assert list(parse_jsonl(lines, Path("x"))) == [(2, {"a": 1})]


def test_the_file_source_maps_keys_and_drops_what_cannot_be_trained_on(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text(
        '{"problem": "1+1", "answer": 2}\n{"problem": " ", "answer": 3}\n{"problem": "x", "answer": null}\n'
    )
    config = source_config("file", [f"data_path={path}", "keys.question=problem"])
    problems, notices = load_problems(config)
    assert [problem.id for problem in problems] == ["mine.jsonl/0"]
    assert notices == ["file: dropped 2 without a question or an answer: mine.jsonl/1, mine.jsonl/2"]


def test_the_file_source_checks_a_checksum_that_is_set(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text('{"question": "1+1", "answer": 2}\n')
    with pytest.raises(DataError, match=r"has changed: sha256 is [0-9a-f]{64}, the settings say abc"):
        load_problems(source_config("file", [f"data_path={path}", "sha256=abc"]))


def test_a_set_with_nothing_usable_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text('{"question": "1+1", "answer": ""}\n')
    with pytest.raises(DataError, match="none of its 1 problems"):
        load_problems(source_config("file", [f"data_path={path}"]))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [([], "data_path.*Field required"), (["data_path=x", "split=train"], "split='train'")],
)
def test_settings_that_do_not_fit_are_named(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        source_config("file", overrides)


def test_a_source_of_your_own_is_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        "from simplerl.types import Problem\n"
        "def load(config):\n    return [Problem('a', 'q', 'None'), Problem('b', 'q', '')]\n"
        "def repair(problems):\n    return [Problem('a', 'q', '1'), problems[1]], ['mine: repaired a']\n"
    )
    problems, notices = load_problems(source_config("mine", [f"path={path}"]))
    assert [problem.answer for problem in problems] == ["1"]
    assert notices == ["mine: repaired a", "mine: dropped 1 without a question or an answer: b"]
