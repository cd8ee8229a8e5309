"""MMLU-STEM: 3,018 multiple-choice questions in science and mathematics."""

from __future__ import annotations

from simplerl.data.store import StoredFile, StoredSet

SET = StoredSet(
    name="mmlu_stem",
    kind="test",
    files=(
        StoredFile("test_mmlu_stem.jsonl", 3018, "6b6846bb7f67de07494a743f25996741179fb83a871477534467e867414f1ff3"),
    ),
    rows_sha256="88d3ced85ccdc4ee16081ca6b091012091adaefbea970e5e177ab9ce9cddce1b",
)
