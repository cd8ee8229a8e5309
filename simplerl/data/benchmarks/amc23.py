"""AMC 12 of 2023, both papers: the 40 problems whose answer is a whole number."""

from __future__ import annotations

from simplerl.data.hub import HubTable
from simplerl.data.store import StoredFile, StoredSet

SET = StoredSet(
    name="amc23",
    kind="test",
    files=(StoredFile("test_amc23.jsonl", 40, "a1997913ce39b2ef3e7c5568d3414a7118b1b8ae39f52d12b44ddb20176a828f"),),
    rows_sha256="7f8b7e4883eb2ded803ede4c34455356a67fc5e1ba0de3086d34cce72f74f686",
    hub=HubTable("math-ai/amc23"),
)
