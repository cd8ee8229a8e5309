"""CARP in English: 976 problems of middle school algebra."""

from __future__ import annotations

from simplerl.data.store import StoredFile, StoredSet

SET = StoredSet(
    name="carp_en",
    kind="test",
    files=(StoredFile("test_carp_en.jsonl", 976, "55a1490cf13a08cd4315885a9370b09abf6d30788f02183758badeb3c7d18d96"),),
    rows_sha256="fec41fb2badbcc502ae7d167f67fdffe36aec1dbbd80e9d12dd7e35c710359fc",
)
