"""ASDiv: 2,215 word problems of primary school."""

from __future__ import annotations

from simplerl.data.store import StoredFile, StoredSet

SET = StoredSet(
    name="asdiv",
    kind="test",
    files=(StoredFile("test_asdiv.jsonl", 2215, "0a93a7eb1ac6d1b49518b3cf99ab128bd7b9f101583a6ba2a7e088086f92d2bc"),),
    rows_sha256="8dd6da3a9fd3e709e3e2eb2c2a3f7f6ee424d4f331b05ac2418e8d34944e0cab",
)
