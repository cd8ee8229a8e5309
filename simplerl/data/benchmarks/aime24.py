"""AIME 2024, both papers: 30 problems with answers from 000 to 999, leading zeros kept."""

from __future__ import annotations

from simplerl.data.hub import HubTable
from simplerl.data.rows import Keys
from simplerl.data.store import StoredFile, StoredSet

SET = StoredSet(
    name="aime24",
    kind="test",
    files=(StoredFile("test_aime24.jsonl", 30, "4ef1d12d0c9af09a891eb22b4973ec712ed83f6333b739526df5dbca9e78639c"),),
    rows_sha256="11202356f3b1fd7535e7163720bce4abd90f785be0ae772b8823fd9de884a949",
    hub=HubTable("HuggingFaceH4/aime_2024", split="train", keys=Keys(question="problem")),
)
