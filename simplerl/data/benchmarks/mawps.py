"""MAWPS: 2,065 word problems of primary school."""

from __future__ import annotations

from simplerl.data.store import StoredFile, StoredSet

SET = StoredSet(
    name="mawps",
    kind="test",
    files=(StoredFile("test_mawps.jsonl", 2065, "28fb5db8d80bf31b904305bf465c7782aedaf81c9938201b9ce4f1c401fd2d22"),),
    rows_sha256="1a3ff8998a72e82c09d3a812224fb4e36b31ef00fac0f7b104b6e5bcb20fbeef",
)
