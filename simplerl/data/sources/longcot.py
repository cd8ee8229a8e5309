"""2,027 real long chains of thought on competition problems, for SFT; five collections of different habits."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from simplerl.data.base import StoredConfig, stored_problems
from simplerl.data.store import StoredFile, StoredSet
from simplerl.types import Problem

SET = StoredSet(
    name="longcot",
    kind="train",
    files=(StoredFile("sft_longcot.jsonl", 2027, "88253dd2f7ef7f791524fd4844b0658c00db3d8af5f9d0ab4530070e39d469e0"),),
    rows_sha256="143bf9ffb1693f3f8e5cad0db6d582c005992441229e347ab9f30f5cb6f43b4d",
)


class Config(StoredConfig):
    """Long responses, 130 to 53,000 characters; a quarter of them never box their answer."""

    name: Literal["longcot"] = "longcot"

    boxed: bool = False
    """Keep only responses that box their answer."""


def load(config: Config) -> list[Problem]:
    problems = [replace(p, solution=str(p.extra["response"])) for p in stored_problems(SET, config.data_path)]
    return [p for p in problems if p.solution and "\\boxed" in p.solution] if config.boxed else problems
