"""Training sets in the file formats of other tools."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence

from simplerl.data.templates import render
from simplerl.errors import DataError
from simplerl.types import Problem


def openrlhf(problems: Sequence[Problem]) -> bytes:
    """The layout of simpleRL's v0 training file: the prompt rendered and stored without its last newline."""
    rows = [
        {
            "input": render("qwen25-math-cot-v0", problem.question),
            "answer": problem.answer,
            "gt_answer": problem.answer,
            "subject": problem.subject,
            "level": problem.level,
            "question": problem.question,
            "ground_truth_answer": problem.answer,
            "target": problem.answer,
        }
        for problem in problems
    ]
    return json.dumps(rows, indent=4).encode()


FORMATS: dict[str, Callable[[Sequence[Problem]], bytes]] = {"openrlhf": openrlhf}


def export(problems: Sequence[Problem], format_name: str, blob_id: str | None = None) -> bytes:
    """The file. `blob_id`, where the original's is known, is what git would call it; another is a `DataError`."""
    if format_name not in FORMATS:
        raise DataError(f"no export format {format_name!r}; available: {', '.join(FORMATS)}")
    content = FORMATS[format_name](problems)
    if blob_id is not None and git_blob_id(content) != blob_id:
        raise DataError(
            f"the export is not the original file: its git blob id is {git_blob_id(content)}, should be {blob_id}. "
            "The rows in use differ from the published ones; `simplerl data list` says where they come from"
        )
    return content


def git_blob_id(content: bytes) -> str:
    """What `git hash-object` prints."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
