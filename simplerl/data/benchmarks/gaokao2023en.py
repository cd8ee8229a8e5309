"""GaoKao 2023 in English: 385 problems; numbers 167 and 192 were published without an answer."""

from __future__ import annotations

from simplerl.data.hub import HubTable, without_dollars
from simplerl.data.store import StoredFile, StoredSet

SET = StoredSet(
    name="gaokao2023en",
    kind="test",
    files=(
        StoredFile("test_gaokao2023en.jsonl", 385, "4da88bcfe7dd9401c27c19551a3037b0ea597b16265afecfa400536c6e125d34"),
    ),
    rows_sha256="ec58bebc482d6ffbc6b4558917ef6047277a07bcff3a10e6b91bf0d82fd33efb",
    hub=HubTable("MARIO-Math-Reasoning/Gaokao2023-Math-En", split="train", convert=without_dollars),
)
