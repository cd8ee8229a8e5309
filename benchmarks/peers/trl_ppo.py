"""TRL's PPO trainer, one measured step at a time. Run by an interpreter that has trl 1.12.0, the last with PPO.

It always runs a reference model, and its rewards come from a model, which a rule replaces here. Phases: `rollout` is
its generation, whose logits also give the old log-probs; `score` goes on until the first forward pass with gradients
(reference, values, rewards, advantages); `update` is everything else. Every response has the full length: this trainer
generates on until all have ended.
"""

# pyright: reportMissingImports=false

from __future__ import annotations

from typing import Any

from _serve import Job, Server, canned_responses, read_job, rule_reward
from _trl import STEPS, Marks, shared_arguments, train, turns, versions


def settings(job: Job) -> Any:
    from trl.experimental.ppo import PPOConfig

    responses = job["prompts_per_step"] * job["samples"]
    return PPOConfig(
        **shared_arguments(job),
        per_device_train_batch_size=responses,
        gradient_accumulation_steps=1,
        num_mini_batches=1,
        num_ppo_epochs=1,
        total_episodes=responses * STEPS,
        local_rollout_forward_batch_size=responses,
        response_length=job["max_tokens"],
        num_sample_generations=0,
    )


def repeated_rows(job: Job) -> list[dict[str, Any]]:
    """This trainer knows no groups, so each prompt occurs as often as it is answered."""
    return [{"input_ids": prompt["ids"]} for prompt in job["prompts"] for _ in range(job["samples"])]


def patch(job: Job, tokenizer: Any, reward_model: Any, marks: Marks) -> None:
    """Puts the rule in the reward model's place, and notes when generation ends and when training begins."""
    import torch
    import trl.experimental.ppo.ppo_trainer as module

    get_reward, generation, forward = module.get_reward, module.batch_generation, module.forward

    def ruled(model: Any, sequences: Any, pad: int, context: int) -> Any:
        if model is not reward_model:
            return get_reward(model, sequences, pad, context)
        texts = tokenizer.batch_decode(sequences[:, context:])
        first = sequences[:, context].tolist()
        return (
            None,
            torch.tensor([rule_reward(job, token, text, "") for token, text in zip(first, texts, strict=True)]),
            None,
        )

    def generated(model: Any, queries: Any, *more: Any) -> Any:
        marks.once("begin")
        if job["canned"]:
            tokens = torch.tensor(canned_responses(job))
            result = torch.cat([queries, tokens], 1), torch.zeros(*tokens.shape, job["vocab"])
        else:
            result = generation(model, queries, *more)
        marks.once("generated")
        return result

    def passed(*given: Any, **named: Any) -> Any:
        if torch.is_grad_enabled():
            marks.once("training")
        return forward(*given, **named)

    module.get_reward, module.batch_generation, module.forward = ruled, generated, passed


def main() -> None:
    job, server, marks = read_job(), Server(), Marks()
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
    from trl.experimental.ppo import PPOTrainer

    torch.set_num_threads(job["threads"])
    tokenizer = AutoTokenizer.from_pretrained(job["model"], padding_side="left")
    policy, reference = (AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32) for _ in range(2))
    critic, rewards = (
        AutoModelForSequenceClassification.from_pretrained(job["model"], dtype=torch.float32, num_labels=1)
        for _ in range(2)
    )
    patch(job, tokenizer, rewards, marks)
    responses = job["prompts_per_step"] * job["samples"]

    def finish(read: dict[str, float]) -> dict[str, Any]:
        rollout, score = marks.between("begin", "generated"), marks.between("generated", "training")
        marks.clear()
        parts = {"rollout": rollout, "score": score, "update": read["seconds"] - rollout - score}
        return {"phases": parts, "responses": responses, "tokens": responses * job["max_tokens"]}

    dataset = Dataset.from_list(repeated_rows(job))
    trainer = PPOTrainer(
        args=settings(job),
        processing_class=tokenizer,
        model=policy,
        ref_model=reference,
        reward_model=rewards,
        value_model=critic,
        train_dataset=dataset,
        eval_dataset=dataset,
        callbacks=[turns(server, finish, versions=versions("trl"))],
    )
    train(trainer)


if __name__ == "__main__":
    main()
