"""AQuA: 254 multiple-choice algebra problems."""

from __future__ import annotations

from simplerl.data.hub import HubTable
from simplerl.data.rows import Row
from simplerl.data.store import StoredFile, StoredSet


def _with_options(row: Row) -> Row:
    options = "  ".join(f"({option[0]}) {option[2:].strip()}" for option in row["options"])
    question = f"{row['question'].strip()}\nAnswer Choices: {options}"
    return {"question": question, "answer": row["correct"], "solution": row["rationale"]}


SET = StoredSet(
    name="aqua",
    kind="test",
    files=(StoredFile("test_aqua.jsonl", 254, "37f6f1f6900f85f7e947b547906efef524e0393692c83840338908b98c057d0a"),),
    rows_sha256="1654e73bca558ea3a84f3162876118681c61429b3cc33ffe9e1ad485c90f8747",
    hub=HubTable("deepmind/aqua_rat", subset="raw", convert=_with_options),
)
