"""AIME 2025, both papers: 30 problems with answers from 0 to 999."""

from __future__ import annotations

from simplerl.data.hub import HubTable
from simplerl.data.rows import Keys
from simplerl.data.store import StoredFile, StoredSet

SET = StoredSet(
    name="aime25",
    kind="test",
    files=(StoredFile("test_aime25.jsonl", 30, "5962abc91eae95b088b9977e2655fb3b227c3a11db0bf2c82233c07cb53457fe"),),
    rows_sha256="cf85a6c6efe1381e9718c2cdd3380fde4b8ebb7f192d146ed04283f3a36757eb",
    hub=HubTable("math-ai/aime25", keys=Keys(question="problem")),
)
