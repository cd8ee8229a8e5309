"""MATH-500: 500 competition problems of levels 1-5."""

from __future__ import annotations

from simplerl.data.hub import HubTable
from simplerl.data.rows import Keys
from simplerl.data.store import StoredFile, StoredSet

SET = StoredSet(
    name="math500",
    kind="test",
    files=(StoredFile("test_math500.jsonl", 500, "6cab433597035cbd51ef11dcae7f39328014b8cbdc20e45d9062a45163fa0884"),),
    rows_sha256="f4baeb27c3e5bac0396fdc3e42173df932f77910bb436684edaf9c6fa18cc3df",
    hub=HubTable("HuggingFaceH4/MATH-500", keys=Keys(question="problem")),
)
