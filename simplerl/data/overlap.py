"""Problems of a training set that occur in a benchmark, so that contamination is seen before training.

Three keys, each looser than the one before:

- exact: the text after whitespace is made uniform,
- format-insensitive: also without case, spaces, sentence punctuation and LaTeX's `$ \\ { } [ ]`,
- 13-gram: thirteen consecutive words in common, as for GPT-3 (arXiv:2005.14165, appendix C); also as there, word
  runs of more than ten training problems are stock phrases ("where m and n are relatively prime ...") and ignored.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from simplerl.types import Problem

Kind = Literal["exact", "format-insensitive", "13-gram"]
KINDS: tuple[Kind, ...] = ("exact", "format-insensitive", "13-gram")
NGRAM = 13
STOCK_PHRASE = 10
_FORMAT = re.compile(r"[\s$\\{}\[\].,;:!?'\"]")


@dataclass(frozen=True, slots=True)
class Match:
    """A training problem and the benchmark's problem it meets first, by the strictest key that matches."""

    problem_id: str
    benchmark: str
    test_id: str
    kind: Kind


def exact_key(text: str) -> str:
    return " ".join(text.split())


def format_key(text: str) -> str:
    """`Simplify: $\\sqrt{245}$` and `Simplify $\\sqrt{245}$.` are one."""
    return _FORMAT.sub("", text.lower())


def ngrams(text: str) -> set[int]:
    """Hashes of every 13 consecutive words; a word is a run of letters and digits."""
    words = re.findall(r"\w+", text.lower())
    return {hash(tuple(words[i : i + NGRAM])) for i in range(len(words) - NGRAM + 1)}


def texts_of(problem: Problem) -> set[str]:
    """What of a problem may have been copied: its text, and for multiple choice the question without its options."""
    bare = problem.extra.get("question")
    return {problem.question, bare} if isinstance(bare, str) else {problem.question}


def find_overlap(problems: Sequence[Problem], benchmarks: Mapping[str, Sequence[Problem]]) -> list[Match]:
    """One match per training problem and benchmark it occurs in, in the order of the problems."""
    indices = {name: _index(tests) for name, tests in benchmarks.items()}
    keys_of = [_keys(texts_of(problem)) for problem in problems]
    used = Counter(gram for keys in keys_of for gram in keys["13-gram"])
    matches: list[Match] = []
    for problem, keys in zip(problems, keys_of, strict=True):
        keys["13-gram"] = {gram for gram in keys["13-gram"] if used[gram] <= STOCK_PHRASE}
        for name, index in indices.items():
            matches += _first_match(problem.id, name, keys, index)
    return matches


def count(matches: Iterable[Match]) -> dict[str, dict[Kind, int]]:
    """Training problems per benchmark and kind; under "any", problems that occur in any, by their strictest kind."""
    strictest: dict[str, Kind] = {}
    table: dict[str, dict[Kind, int]] = {}
    for match in matches:
        row = table.setdefault(match.benchmark, dict.fromkeys(KINDS, 0))
        row[match.kind] += 1
        known = strictest.get(match.problem_id, match.kind)
        strictest[match.problem_id] = KINDS[min(KINDS.index(known), KINDS.index(match.kind))]
    table["any"] = {kind: list(strictest.values()).count(kind) for kind in KINDS}
    return table


Index = dict[Kind, dict[str | int, str]]


def _keys(texts: set[str]) -> dict[Kind, set[str | int]]:
    return {
        "exact": {key for text in texts if (key := exact_key(text))},
        "format-insensitive": {key for text in texts if (key := format_key(text))},
        "13-gram": {gram for text in texts for gram in ngrams(text)},
    }


def _index(tests: Sequence[Problem]) -> Index:
    index: Index = {kind: {} for kind in KINDS}
    for test in tests:
        for kind, keys in _keys(texts_of(test)).items():
            for key in keys:
                index[kind].setdefault(key, test.id)
    return index


def _first_match(problem_id: str, benchmark: str, keys: dict[Kind, set[str | int]], index: Index) -> Iterator[Match]:
    for kind in KINDS:
        # min: a set's order changes from run to run.
        found = min((index[kind][key] for key in keys[kind] if key in index[kind]), default=None)
        if found is not None:
            yield Match(problem_id, benchmark, found, kind)
            return
