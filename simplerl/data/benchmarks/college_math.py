"""College Math: 2,818 problems from open textbooks."""

from __future__ import annotations

from simplerl.data.hub import HubTable, without_dollars
from simplerl.data.rows import Keys
from simplerl.data.store import StoredFile, StoredSet

SET = StoredSet(
    name="college_math",
    kind="test",
    files=(
        StoredFile("test_college_math.jsonl", 2818, "668c891f3f56c11c2abe919a898b99ef53343bfd949114ba5f8b518abb8cfc3a"),
    ),
    rows_sha256="80580c236eb04fcbc2850ec40916c1d559511fff8effbb06adc90e1df2968b8d",
    hub=HubTable(
        "realtreetune/college_math", convert=without_dollars, keys=Keys(question="problem", subject="data_topic")
    ),
)
