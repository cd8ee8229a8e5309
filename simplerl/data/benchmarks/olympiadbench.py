"""OlympiadBench's 675 English, text-only, open-ended mathematics problems."""

from __future__ import annotations

from simplerl.data.hub import HubTable, without_dollars
from simplerl.data.rows import Row
from simplerl.data.store import StoredFile, StoredSet


def _first_answer(row: Row) -> Row:
    return without_dollars({**row, "answer": row["final_answer"][0]})


SET = StoredSet(
    name="olympiadbench",
    kind="test",
    files=(
        StoredFile("test_olympiadbench.jsonl", 675, "872c7e01bff98e8a66a85ff944d23c508896cb86d49a974ce491b462e7fdb3f0"),
    ),
    rows_sha256="bf5e09d7d5d7899e1afd036ff5fa8f68894a1ee1270af9b8cb4fa3127eaf2498",
    hub=HubTable("zwhe99/simplerl-OlympiadBench", convert=_first_answer),
)
