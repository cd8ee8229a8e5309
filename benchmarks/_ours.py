"""This project's side of the speed benchmarks, as a program that measures when asked; see `peers/_serve.py`.

`what` of the job: "step" is `RLTrainer.step`; "rollout" the engine alone. With `canned` a stub engine hands over random
responses, so that of the step only scoring and update cost anything.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

from peers._serve import Job, Phases, Server, canned_responses, held_mib, peak_mib, read_job, reset_peak

REWARD = Path(__file__).with_name("_first_token_reward.py")
HORIZON = 10_000


class FixedStream:
    """The job's prompts in their order, over and over."""

    def __init__(self, prompts: Sequence[Any]) -> None:
        self.prompts = prompts

    def take(self, step: int, count: int) -> list[Any]:
        return [self.prompts[(step * count + i) % len(self.prompts)] for i in range(count)]


class CannedEngine:
    """Answers with given tokens, as certain of them as a model that knows nothing."""

    def __init__(self, responses: list[list[int]], vocab: int) -> None:
        self.responses = [tuple(response) for response in responses]
        self.logprobs = [(-math.log(vocab),) * len(response) for response in responses]

    def submit(self, requests: Sequence[Any]) -> Iterator[Any]:
        from simplerl.types import Rollout

        for request, ids, logprobs in zip(requests, self.responses, self.logprobs, strict=True):
            yield Rollout.single_turn(request.id, request.prompt, ids, logprobs, "", "length", 0)

    def load_weights(self, weights: Any, version: int) -> None:
        for _ in weights:
            pass

    def close(self) -> None:
        pass


def make_recipe(job: Job) -> Any:
    """The job as a recipe: one optimiser step per rollout batch, and a rate that leaves the weights where they are."""
    from simplerl.config import Recipe, apply_overrides, validate_recipe

    fixed, responses = job["fixed"], job["prompts_per_step"] * job["samples"]
    table: dict[str, Any] = {
        "model": {"path": job["model"], "dtype": job["dtype"]},
        # The stream is replaced; these problems only let the trainer be built.
        "data": {"source": {"name": "arithmetic", "size": 64}, "template": "abel", "max_prompt_tokens": 1 << 16},
        "rollout": {
            "prompts_per_step": job["prompts_per_step"],
            "samples_per_prompt": job["samples"],
            "max_tokens": job["max_tokens"],
        },
        "reward": {"name": "first-token", "path": str(REWARD)} if fixed else {"name": "simplerl"},
        "algorithm": {"name": "ppo", "kl_coef": 0.0} if job["algorithm"] == "ppo" else {"name": "grpo"},
        "train": {"steps": HORIZON, "ppo_epochs": job["epochs"], "minibatch_size": responses, "mismatch_limit": 100.0},
        "actor": {"learning_rate": job["learning_rate"], "schedule": "constant"},
        "critic": {"learning_rate": job["learning_rate"], "schedule": "constant"},
    }
    if job.get("canned"):
        table["train"]["probe_tokens"] = 0
    if fixed:
        table["rollout"]["stop"] = []
    return validate_recipe(apply_overrides(table, job["set"]), kind=Recipe)


def make_prompts(job: Job) -> list[Any]:
    from simplerl.types import Problem, Prompt

    return [
        Prompt(Problem(f"prompt/{number}", p["question"], p["answer"]), p["text"], tuple(p["ids"]))
        for number, p in enumerate(job["prompts"])
    ]


class Clock(Phases):
    """Times the trainer's phases, and the most memory held in each."""

    def __init__(self, *, memory: bool) -> None:
        super().__init__()
        self.memory = memory
        self.peaks: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str, total: int) -> Iterator[None]:
        if self.memory:
            reset_peak()
        begun = time.perf_counter()
        yield
        self.add(name, time.perf_counter() - begun)
        if self.memory:
            self.peaks[name] = peak_mib()


def serve_steps(job: Job, server: Server) -> None:
    from simplerl.train.build.rl import reinforcement_job
    from simplerl.train.build.services import load_tokenizer

    recipe = make_recipe(job)
    clock = Clock(memory=job.get("memory", False))
    trainer: Any = reinforcement_job(recipe, load_tokenizer(recipe), print).build(clock.phase)
    collector = replace(trainer.rollouts.collector, stream=FixedStream(make_prompts(job)))
    if job["canned"]:
        collector = replace(collector, engine=CannedEngine(canned_responses(job), job["vocab"]))
    trainer = replace(trainer, rollouts=replace(trainer.rollouts, collector=collector))
    steps = count(1)
    held = held_mib()

    def measure() -> dict[str, Any]:
        metrics = trainer.step(next(steps)).metrics
        responses = job["prompts_per_step"] * job["samples"]
        figures: dict[str, Any] = {"phases": clock.take(), "responses": responses, "tokens": metrics["tokens/response"]}
        if clock.memory:
            figures |= {"peaks": clock.peaks, "held_mib": held}
        return figures

    server.serve(measure, versions=versions())
    trainer.verifier.close()


def serve_rollouts(job: Job, server: Server) -> None:
    import torch

    from simplerl.engines.base import generate
    from simplerl.rollouts.grade import make_requests
    from simplerl.train.build.services import build_engine, load_tokenizer
    from simplerl.types import Sampling

    recipe = make_recipe(job)
    engine = build_engine(recipe, load_tokenizer(recipe), torch.device("cpu"))
    sampling = Sampling(max_tokens=job["max_tokens"], n=job["samples"])
    prompts, turns = make_prompts(job)[: job["prompts_per_step"]], count()

    def measure() -> dict[str, Any]:
        rollouts = generate(engine, make_requests(prompts, sampling, 0, "benchmark", next(turns)))
        assert all(len(rollout.token_ids) == job["max_tokens"] for rollout in rollouts)
        return {"responses": len(rollouts), "tokens": sum(len(rollout.token_ids) for rollout in rollouts)}

    server.serve(measure, versions=versions())
    engine.close()


def serve_naive(job: Job, server: Server) -> None:
    """Scoring and update as first written down: the logits of all response tokens at once, then their log-softmax."""
    import torch
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32)
    responses = torch.tensor(canned_responses(job))
    prompt = torch.tensor(job["prompts"][0]["ids"]).expand(len(responses), -1)
    ids, new = torch.cat([prompt, responses], 1), responses.shape[1]
    optimiser = torch.optim.AdamW(model.parameters(), job["learning_rate"])
    held = held_mib()

    def logprobs() -> Any:
        logits = model(ids, logits_to_keep=new + 1).logits[:, :-1].float()
        return torch.log_softmax(logits, -1).gather(-1, responses[..., None]).squeeze(-1)

    def measure() -> dict[str, Any]:
        clock = Clock(memory=True)
        with clock.phase("score", 0), torch.no_grad():
            logprobs()
        with clock.phase("update", 0):
            logprobs().mean().backward()
            optimiser.step()
        model.zero_grad()
        figures = {"phases": clock.take(), "peaks": clock.peaks, "held_mib": held}
        return figures | {"responses": len(responses), "tokens": responses.numel()}

    server.serve(measure, versions=versions())


def versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("torch", "transformers", "simplerl")}


def main() -> None:
    job, server = read_job(), Server()
    import torch
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    torch.set_num_threads(job["threads"])
    {"step": serve_steps, "rollout": serve_rollouts, "naive": serve_naive}[job["what"]](job, server)


if __name__ == "__main__":
    main()
