"""Minerva Math: 272 undergraduate problems in science and mathematics."""

from __future__ import annotations

from simplerl.data.hub import HubTable
from simplerl.data.rows import Keys
from simplerl.data.store import StoredFile, StoredSet

SET = StoredSet(
    name="minerva_math",
    kind="test",
    files=(
        StoredFile("test_minerva_math.jsonl", 272, "fa03595334d6b0970627bffb224cfd1c1099149af3a1ad4770fcc2f1a3b5503d"),
    ),
    rows_sha256="d58f76bd822ae73d2d290f6992cb3cc29b3e12b44651d766f6d3c63ae47735f9",
    hub=HubTable("zwhe99/simplerl-minerva-math", keys=Keys(question="problem")),
)
