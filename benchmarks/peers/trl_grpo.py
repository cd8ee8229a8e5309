"""TRL's GRPO trainer, one measured step at a time. Run by an interpreter that has trl; see `_serve`.

With one optimizer step per rollout batch and no KL, TRL scores nothing beforehand: the update's own forward pass gives
the old log-probs. Phases: `rollout` is its generation, `score` the rest of what prepares the inputs (rewards,
advantages, padding), `update` everything else (forward, backward, optimizer, the Trainer's own work).
"""

# pyright: reportMissingImports=false

from __future__ import annotations

from typing import Any

from _serve import Job, Phases, Server, canned_responses, read_job, rule_reward
from _trl import STEPS, shared_arguments, train, turns, versions


def reward_of(job: Job) -> Any:
    def reward(completions: list[str], completion_ids: list[list[int]], answer: list[str], **more: Any) -> list[float]:
        rows = zip(completions, completion_ids, answer, strict=True)
        return [rule_reward(job, ids[0], text, gold) for text, ids, gold in rows]

    return reward


def checked_rows(job: Job, tokenizer: Any) -> list[dict[str, str]]:
    """The prompts as texts, which must give the very tokens that everybody else gets."""
    for prompt in job["prompts"]:
        assert tokenizer(prompt["text"])["input_ids"] == prompt["ids"], prompt["text"]
    return [{"prompt": prompt["text"], "answer": prompt["answer"]} for prompt in job["prompts"]]


def settings(job: Job) -> Any:
    from trl import GRPOConfig

    return GRPOConfig(
        **shared_arguments(job),
        per_device_train_batch_size=job["prompts_per_step"] * job["samples"],
        gradient_accumulation_steps=1,
        num_generations=job["samples"],
        max_completion_length=job["max_tokens"],
        max_steps=STEPS,
        beta=0.0,
        num_iterations=1,
        top_k=0,
        top_p=1.0,
        shuffle_dataset=False,
    )


def main() -> None:
    job, server, phases = read_job(), Server(), Phases()
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import GRPOTrainer

    torch.set_num_threads(job["threads"])
    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32)
    lengths: list[int] = []

    def finish(read: dict[str, float]) -> dict[str, Any]:
        taken = phases.take()
        rollout, prepare = taken["rollout"], taken["prepare"]
        parts = {"rollout": rollout, "score": prepare - rollout, "update": read["seconds"] - prepare}
        figures = {"phases": parts, "responses": len(lengths), "tokens": sum(lengths)}
        lengths.clear()
        return figures

    trainer = GRPOTrainer(
        model=model,
        reward_funcs=reward_of(job),
        args=settings(job),
        train_dataset=Dataset.from_list(checked_rows(job, tokenizer)),
        processing_class=tokenizer,
        callbacks=[turns(server, finish, versions=versions("trl"))],
    )
    canned = canned_responses(job) if job["canned"] else None
    generate = trainer._generate_single_turn

    def rollout(*given: Any, **named: Any) -> Any:
        result = (canned, None) if canned else generate(*given, **named)
        lengths.extend(map(len, result[0]))
        return result

    trainer._generate_single_turn = phases.timed("rollout", rollout)
    trainer._prepare_inputs = phases.timed("prepare", trainer._prepare_inputs)
    train(trainer)


if __name__ == "__main__":
    main()
