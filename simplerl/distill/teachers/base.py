"""The teacher protocol: questions in, answers out as they arrive. Nothing here imports torch.

A new teacher is one file with a class `Config(TeacherConfig)` and a function `build(config, sampling)`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

from simplerl.config import PluginConfig
from simplerl.types import Problem

AnswerEnd = Literal["stop", "length", "refused"]


class TeacherConfig(PluginConfig):
    """Settings of every teacher."""

    may_change: ClassVar[frozenset[str]] = frozenset()
    """Names of settings that change no answer, such as the address and time-outs."""

    model: str
    """The model that answers."""


@dataclass(frozen=True, slots=True)
class Asked:
    """One response to request. `seed` depends on the run's seed, the problem and the sample number alone."""

    id: str
    problem: Problem
    sample_index: int
    seed: int


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to a question. `tokens` is None if the teacher does not count them.

    "refused": this question gets no response, for the `reason`; `text` is empty.
    """

    id: str
    text: str
    tokens: int | None
    finish_reason: AnswerEnd
    reason: str | None = None
    prompt_tokens: int | None = None


class Teacher(Protocol):
    """A source of long responses."""

    def answer(self, asked: Sequence[Asked]) -> Iterator[Answer]:
        """Yield one answer to each question at its arrival, in any order."""
        ...

    def provenance(self) -> Mapping[str, Any]:
        """Origin of the answers, as plain JSON without secrets. A folder resumes only with an equal origin; "url" and
        "versions" may differ between sessions.
        """
        ...

    def close(self) -> None: ...


def short_name(model: str) -> str:
    """A model's name without its folders; an export (`RUN/exports/final`) is named after its run."""
    path = Path(model)
    return path.parents[1].name if path.parent.name == "exports" else path.name
