"""One evaluation from its plan to its table: generate what is missing, grade, keep, count."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simplerl.data.base import load_benchmark
from simplerl.data.rows import file_problems
from simplerl.data.templates import build_prompts
from simplerl.engines.base import Engine, checked
from simplerl.errors import DataError
from simplerl.evaluation.cache import ResponseCache
from simplerl.evaluation.folder import EvalFolder
from simplerl.evaluation.suite import Part, Plan
from simplerl.rollouts.grade import make_requests, results_in_order
from simplerl.stats.scores import Scores, average, score
from simplerl.storage.folder import recipe_table
from simplerl.storage.records import rollout_row
from simplerl.types import GradedRollout, Problem, Request, Rollout, Sampling, Verdict
from simplerl.verifiers.base import Verifier, same_answer

Row = dict[str, Any]
PROMPT_TOKENS = 1 << 20


@dataclass(frozen=True)
class Session:
    """Everything an evaluation needs.

    `progress` is called at each response with the part's name and the counts of finished and of all responses;
    `notice` with what the user should read.
    """

    plan: Plan
    folder: EvalFolder
    tokenizer: Any
    engine: Engine
    verifier: Verifier
    cache: ResponseCache | None = None
    progress: Callable[[str, int, int], None] = lambda part, done, total: None
    notice: Callable[[str], None] = lambda text: None

    def run(self) -> dict[str, Any]:
        """Every part, then the table, which is also written to `results.json`."""
        for part in self.plan.parts:
            if not self.folder.is_finished(part.name):
                self.folder.finish(part.name, self.answer(part))
        results = table(self.plan, {part.name: self.folder.read(part.name) for part in self.plan.parts})
        self.folder.write_results(results)
        return results

    def answer(self, part: Part) -> list[Row]:
        """All responses of a part, in the order of problems and samples. What is kept is not generated again."""
        requests = self.requests(part)
        kept = {(row["problem_id"], row["sample_index"]): row for row in self.folder.finished(part.name)}
        index = {request.id: sample for sample, request in samples(requests)}
        wanted = [r for r in requests if (r.prompt.problem.id, index[r.id]) not in kept]
        self.progress(part.name, len(kept), len(requests))
        for rollout, verdict in results_in_order(self.judged(wanted)):
            graded = GradedRollout(rollout, verdict, float(verdict.label == "correct"))
            row = rollout_row(self.plan.step or 0, graded, index[rollout.request_id])
            row |= {"set": part.name, "temperature": part.temperature}
            self.folder.append(part.name, row)
            kept[row["problem_id"], row["sample_index"]] = row
            self.progress(part.name, len(kept), len(requests))
        return [kept[r.prompt.problem.id, index[r.id]] for r in requests]

    def requests(self, part: Part) -> list[Request]:
        """`n` per problem. Random numbers depend on the seed, the part's benchmark, the problem and the sample."""
        problems = load_part(part, self.plan.limit, self.notice)
        prompts, _ = build_prompts(problems, self.plan.template, self.tokenizer, PROMPT_TOKENS)
        sampling = Sampling(part.max_tokens, part.temperature, part.top_p, n=part.n, stop=self.plan.stop)
        return make_requests(prompts, sampling, self.plan.seed, "eval", part.benchmark)

    def judged(self, requests: Sequence[Request]) -> Iterator[tuple[Rollout, Future[Verdict]]]:
        """Each rollout with the verdict to come, those of the cache first."""
        missing = []
        for request in requests:
            rollout = self.cache.get(request) if self.cache else None
            if rollout is None:
                missing.append(request)
            else:
                yield rollout, self.verdict(rollout)
        by_id = {request.id: request for request in missing}
        for rollout in self.engine.submit(missing) if missing else ():
            if self.cache:
                self.cache.put(by_id[rollout.request_id], checked(rollout))
            yield rollout, self.verdict(rollout)

    def verdict(self, rollout: Rollout) -> Future[Verdict]:
        return self.verifier.submit(rollout.prompt.problem, rollout)


def samples(requests: Sequence[Request]) -> Iterator[tuple[int, Request]]:
    """Each request with the number of its sample of the problem."""
    seen: dict[str, int] = {}
    for request in requests:
        number = seen.get(request.prompt.problem.id, 0)
        seen[request.prompt.problem.id] = number + 1
        yield number, request


def load_part(part: Part, limit: int | None, notice: Callable[[str], None]) -> list[Problem]:
    """The problems of a part. One without a gold answer stays in, as in the published sizes, and is never right."""
    problems = load_benchmark(part.benchmark) if part.path is None else file_problems(Path(part.path), part.name)
    if not problems:
        raise DataError(f"{part.benchmark} holds no problem")
    chosen = problems[:limit]
    empty = sum(not problem.has_answer for problem in chosen)
    if empty:
        notice(f"{part.name}: {empty} of {len(chosen)} problems have no gold answer; they count as wrong")
    return chosen


def table(plan: Plan, rows: dict[str, list[Row]]) -> dict[str, Any]:
    """Scores of every part and their average, as plain JSON."""
    same = same_answer(plan.verifier)
    scores: dict[str, Scores] = {name: score(part, same) for name, part in rows.items()}
    results: dict[str, Any] = {"plan": recipe_table(plan)}
    results["benchmarks"] = {name: one.as_dict() for name, one in scores.items()}
    over = [scores[name] for name in plan.average if name in scores]
    if over and len(over) == len(plan.average):
        results["average"] = {"over": list(plan.average), **average(over)}
    return results
