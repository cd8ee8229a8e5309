"""SVAMP: 1,000 one-step word problems with varied wording."""

from __future__ import annotations

from simplerl.data.hub import HubTable
from simplerl.data.rows import Row
from simplerl.data.store import StoredFile, StoredSet


def _joined(row: Row) -> Row:
    answer = float(row["Answer"])
    return {
        "question": f"{row['Body'].strip()} {row['Question'].strip()}",
        "answer": int(answer) if answer.is_integer() else answer,
        "subject": row["Type"],
        "solution": row["Equation"],
    }


SET = StoredSet(
    name="svamp",
    kind="test",
    files=(StoredFile("test_svamp.jsonl", 1000, "5435c480bee512295edac4b9aac40814b1061875c03ba9238b0f7791554c78d1"),),
    rows_sha256="e41c135673a59a956aa67b818da9f5224ac34a589be9afc213fb1dab8e8f1290",
    hub=HubTable("ChilleD/SVAMP", split="train+test", convert=_joined),
)
