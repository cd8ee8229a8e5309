"""Responses that a report shows, chosen by rule: equal runs give equal choices, and a growing run keeps most."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import chain, zip_longest
from typing import Any, NamedTuple

from simplerl.formatting import to_utf8
from simplerl.report.plain_text import visible
from simplerl.report.response_files import ResponseFile, draw, eval_files, eval_key, spread_out, training_files
from simplerl.report.run_data import EvalKey, Row, RunData, sampling

PROBLEMS_PER_SET = 40
SAMPLES = 8
TRAINING_STEPS = 64
PROBLEMS_PER_STEP = 2
LONGEST = 10_000
"""Characters of a response shown in full; longer ones show the beginning and the end."""
LONGEST_ANSWER = 500
EVAL_BYTES, TRAINING_BYTES = 11_000_000, 3_000_000
"""Bytes of text; beyond them the last problems are left out. A page stays under 25 MB even if nothing compresses."""

TRAINING = "training"
COLUMNS = (
    "problem_id", "sample_index", "question", "answer", "text", "response_tokens", "finish_reason", "extracted",
    "verdict", "method", "reward", "level", "subject",
)  # fmt: skip


class Response(NamedTuple):
    """A response and its origin; `source` is the name of a set, or `TRAINING`."""

    run: int
    source: str
    sampling: str
    step: int
    row: Row


RULE = (
    f"Of every evaluated set up to {PROBLEMS_PER_SET} problems with their responses at every evaluation, taken in turn "
    "from the problems of each kind (solved or not at the first and at the last evaluation; truncated, without an "
    f"answer or with an error at the last), so that rare kinds are here more often than in the run. Of training "
    f"{PROBLEMS_PER_STEP} problems a step, of at most {TRAINING_STEPS} steps. Of a problem up to {SAMPLES} samples. "
    f"Within these by SHA-256 of the problem's name. Of a text longer than {LONGEST:,} characters the middle is left "
    "out."
)


def select(runs: Sequence[RunData]) -> list[Response]:
    """The chosen responses, problem by problem."""
    evaluations = _within(_interleaved(_evaluated(runs)), EVAL_BYTES)
    training = _within(_interleaved({run.path: _trained(i, run) for i, run in enumerate(runs)}), TRAINING_BYTES)
    return [response for group in (*evaluations, *training) for response in group]


def _interleaved(groups: Mapping[Any, list[list[Response]]]) -> list[list[Response]]:
    """The first problem of every set or run, then the second of every one, ..."""
    return [group for group in chain(*zip_longest(*groups.values())) if group]


def _within(groups: Sequence[list[Response]], most: int) -> list[list[Response]]:
    """The first groups whose texts together stay within `most` bytes."""
    kept = []
    for group in groups:
        most -= sum(_bytes(response.row) for response in group)
        if most < 0:
            break
        kept.append(group)
    return kept


# --- evaluations ------------------------------------------------------------------------------------------------------


def _evaluated(runs: Sequence[RunData]) -> dict[str, list[list[Response]]]:
    """Responses by set and problem."""
    chosen = eval_problems(runs)
    found: dict[str, dict[str, list[Response]]] = {
        name: {problem: [] for problem in problems} for name, problems in chosen.items()
    }
    for index, run in enumerate(runs):
        for key, file in _eval_files(run):
            for row in _rows(file, tuple(chosen[key.set])):
                found[key.set][row["problem_id"]].append(
                    Response(index, key.set, sampling(key.temperature), file.step, row)
                )
    return {name: list(problems.values()) for name, problems in found.items()}


def eval_problems(runs: Sequence[RunData]) -> dict[str, list[str]]:
    """The chosen problems of each set, equal for every run."""
    chosen: dict[str, list[str]] = {}
    for run in runs:
        files: dict[str, list[tuple[float, ResponseFile]]] = defaultdict(list)
        for key, file in _eval_files(run):
            files[key.set].append((key.temperature, file))
        for name, found in files.items():
            coldest = min(temperature for temperature, _ in found)
            ordered = [file for temperature, file in found if temperature == coldest]
            chosen.setdefault(name, choose(_ends(ordered[0]), _ends(ordered[-1])))
    return chosen


def choose(first: Mapping[str, str], last: Mapping[str, str], most: int = PROBLEMS_PER_SET) -> list[str]:
    """Problems in turn from each kind, by how each ended at the first and at the last evaluation."""
    kinds: dict[tuple[bool, bool, str], list[str]] = defaultdict(list)
    for problem in sorted(last, key=draw):
        before, after = first.get(problem, ""), last[problem]
        trouble = "" if after in ("correct", "wrong") else after
        kinds[before == "correct", after.startswith("correct"), trouble].append(problem)
    in_turn = chain(*zip_longest(*(kinds[kind] for kind in sorted(kinds))))
    return [problem for problem in in_turn if problem is not None][:most]


@lru_cache(maxsize=64)
def _ends(file: ResponseFile) -> dict[str, str]:
    """The verdict on each problem's first response, with a note if it was truncated."""
    names = ("problem_id", "verdict", "finish_reason")
    table = file.read(names)
    ends: dict[str, str] = {}
    for problem, verdict, finish in zip(*(table[name].to_pylist() for name in names), strict=True):
        ends.setdefault(problem, f"{verdict}, truncated" if finish == "length" else verdict)
    return ends


def _eval_files(run: RunData) -> Iterator[tuple[EvalKey, ResponseFile]]:
    for file in eval_files(run):
        if (key := eval_key(file)) is not None:
            yield key, file


# --- training ---------------------------------------------------------------------------------------------------------


def _trained(index: int, run: RunData) -> list[list[Response]]:
    """Responses by step and problem; steps are drawn, so that the omitted ones are not the last."""
    groups = []
    for file in sorted(spread_out(training_files(run), TRAINING_STEPS), key=lambda file: draw(file.step)):
        problems = set(file.read(("problem_id",))["problem_id"].to_pylist())
        for problem in sorted(problems, key=draw)[:PROBLEMS_PER_STEP]:
            groups.append([Response(index, TRAINING, TRAINING, file.step, row) for row in _rows(file, (problem,))])
    return groups


def _rows(file: ResponseFile, problems: tuple[str, ...]) -> list[Row]:
    rows = file.read(COLUMNS, problems).to_pylist()
    return [_shown(row) for row in rows if row["sample_index"] < SAMPLES]


def _shown(row: Row) -> Row:
    answer = None if row["extracted"] is None else visible(row["extracted"], LONGEST_ANSWER)
    return {**row, "text": visible(row["text"], LONGEST), "extracted": answer}


def _bytes(row: Row) -> int:
    return sum(len(to_utf8(row[name] or "")) for name in ("text", "extracted"))
