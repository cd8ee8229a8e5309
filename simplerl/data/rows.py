"""Rows of a table, wherever it comes from, and the problems they hold."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from simplerl.config import Frozen
from simplerl.errors import DataError
from simplerl.storage.jsonl import Row, opened, read_jsonl
from simplerl.types import Problem


class Keys(Frozen):
    """Which key of a row holds what. A dot leads into an object or a list: `extra_info.question`, `prompt.0.content`.

    The first two must be there. The others, left empty, are taken from the key of that name where a row has it.
    """

    question: str = "question"
    """Key of the problem's text."""

    answer: str = "answer"
    """Key of the gold answer: a string, a number, or a list of one."""

    id: str | None = None
    """Key of an identifier, unique in the set; empty numbers the rows."""

    level: str | None = None
    """Key of the difficulty: a number or "Level 3"."""

    subject: str | None = None
    """Key of the field of mathematics."""

    solution: str | None = None
    """Key of a worked solution."""


def problems_from(rows: Iterable[Row], keys: Keys, name: str) -> list[Problem]:
    """The problem of every row, in order. Raises `DataError` for a missing key or an identifier used twice."""
    problems = [_problem(row, keys, name, number) for number, row in enumerate(rows)]
    first: dict[str, int] = {}
    for number, problem in enumerate(problems):
        earlier = first.setdefault(problem.id, number)
        if earlier != number:
            raise DataError(
                f"{name}: rows {earlier} and {number} have the same id {problem.id!r}, and sampling is seeded by it; "
                "make them unique, or leave keys.id empty to number the rows"
            )
    return problems


def file_problems(path: Path, name: str) -> list[Problem]:
    """The problems of a user's own file; the key of the text is `question` or `problem`."""
    rows = read_table(path)
    question = "problem" if rows and "problem" in rows[0] and "question" not in rows[0] else "question"
    return problems_from(rows, Keys(question=question), name)


def _problem(row: Row, keys: Keys, name: str, number: int) -> Problem:
    where = f"{name}: row {number}"

    def optional(field: str) -> Any:
        key = getattr(keys, field)
        return row.get(field) if key is None else _value(row, key, field, where)

    subject, solution = optional("subject"), optional("solution")
    taken = {getattr(keys, field) or field for field in Keys.model_fields if field != "id"} | {keys.id, "source"}
    return Problem(
        id=f"{name}/{number}" if keys.id is None else _text(optional("id"), "id", where),
        question=_text(_value(row, keys.question, "question", where), "question", where),
        answer=_text(_value(row, keys.answer, "answer", where), "answer", where),
        level=_level(optional("level"), where),
        subject=None if subject is None else str(subject),
        source=str(row.get("source", f"{name}#{number}")),
        solution=None if solution is None else str(solution),
        extra={key: value for key, value in row.items() if key not in taken},
    )


def _value(row: Row, key: str, field: str, where: str) -> Any:
    if key in row:
        return row[key]
    value: Any = row
    for part in key.split("."):
        if isinstance(value, Mapping) and part in value:
            value = value[part]
        elif isinstance(value, list) and part.isdecimal() and int(part) < len(value):
            value = value[int(part)]
        else:
            raise DataError(
                f"{where} has no {key!r}; it has {', '.join(row)}. "
                f"Say which key holds the {field} with keys.{field}=..."
            )
    return value


def _text(value: Any, field: str, where: str) -> str:
    if value is None:
        return ""
    if isinstance(value, list) and len(value) == 1:
        return _text(value[0], field, where)
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        return str(value)
    raise DataError(f"{where}: the {field} is {value!r}, a {type(value).__name__}; it must be a string or a number")


def _level(value: Any, where: str) -> int | None:
    if value is None or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    if isinstance(value, float) and value.is_integer():
        return int(value)
    # MATH says "Level 3", and "Level ?" of two problems.
    match = re.fullmatch(r"(?:level\s*)?(\d+|\?)", str(value).strip(), re.IGNORECASE)
    if match is None:
        raise DataError(f'{where}: the level is {value!r}; it must be a number such as 3, or "Level 3"')
    return None if match[1] == "?" else int(match[1])


# --- files ------------------------------------------------------------------------------------------------------------


def read_content(path: Path) -> bytes:
    """The bytes of a file, unpacked if its name ends in .gz."""
    with opened(path) as file:
        return file.read()


def read_table(path: Path) -> list[Row]:
    """The rows of a JSONL, JSON (a list of objects) or Parquet file; the first two may be gzipped."""
    kind = path.name.lower().removesuffix(".gz").rpartition(".")[2]
    if kind == "jsonl":
        return [row for _, row in read_jsonl(path)]
    if kind == "json":
        return _parse_json(read_content(path), path)
    if kind == "parquet":
        return _read_parquet(path)
    raise DataError(f"{path}: cannot tell what it holds; known endings: .jsonl, .json (both also .gz) and .parquet")


def _parse_json(content: bytes, path: Path) -> list[Row]:
    try:
        rows = json.loads(_decode(content, path))
    except json.JSONDecodeError as error:
        raise DataError(f"{path} is not JSON: {error}. If it has one object per line, call it .jsonl") from None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise DataError(f"{path} must hold a list of objects, one per problem")
    return rows


def _decode(content: bytes, path: Path) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8: byte {error.start} is {content[error.start]:#04x}") from None


def _read_parquet(path: Path) -> list[Row]:
    import pyarrow
    from pyarrow import parquet

    try:
        return parquet.read_table(path).to_pylist()
    except FileNotFoundError:
        raise DataError(f"{path} cannot be read: no such file") from None
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path} is not a Parquet file that can be read: {error}") from error
