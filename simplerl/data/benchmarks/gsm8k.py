"""GSM8K's test split: 1,319 word problems."""

from __future__ import annotations

from simplerl.data.hub import HubTable, after_hashes
from simplerl.data.store import StoredFile, StoredSet

SET = StoredSet(
    name="gsm8k",
    kind="test",
    files=(StoredFile("test_gsm8k.jsonl", 1319, "4b3ef697a309831454386a806bf42bdb04b83b001b092691a1d1512368a1a07e"),),
    rows_sha256="5ce871f10b043b8314aad55c6bef71d1811875cd65d55cbc07c9938b66d9b27b",
    hub=HubTable("openai/gsm8k", subset="main", convert=after_hashes),
    prefix="gsm8k_test",
)
