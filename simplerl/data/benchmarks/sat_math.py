"""SAT mathematics of May 2023: 32 multiple-choice problems."""

from __future__ import annotations

from simplerl.data.store import StoredFile, StoredSet

SET = StoredSet(
    name="sat_math",
    kind="test",
    files=(StoredFile("test_sat_math.jsonl", 32, "1e12bd2f730496eb7215e8d5cc1e572b5f9828c31f3c27d94d9d2f6ddaf972dd"),),
    rows_sha256="56d2bf25e2159b128f8ffcf1e85290a5427492fe6cde011724d7a5eaf623fedb",
)
