"""Engine and learner must agree: on every batch before it is trained on, and whenever weights were handed over."""

from __future__ import annotations

from simplerl.batch.batch import collate
from simplerl.config import Recipe
from simplerl.engines.base import Engine, generate
from simplerl.errors import EngineError
from simplerl.learner.learner import Learner
from simplerl.losses.losses import GlobalCounts, difference_stats
from simplerl.seeding import seed_for
from simplerl.types import GradedRollout, Metrics, Prompt, Request, Sampling, Verdict

EXACT, ROUNDED = 1e-3, 0.1
"""Mean difference of log-probs that a probe allows in float32, where 1e-5 is usual, and in bfloat16."""


def check_mismatch(recipe: Recipe, metrics: Metrics) -> None:
    """Raises `EngineError` for a batch's statistics beyond the limit, where both speak of the same distribution."""
    rollout, train = recipe.rollout, recipe.train
    same = train.logprob_temperature == "sampling" or rollout.temperature == 1.0
    if not same or rollout.top_p < 1 or rollout.top_k or "mismatch/mean" not in metrics:
        return
    if not metrics["mismatch/mean"] <= train.mismatch_limit:
        raise EngineError(
            f"engine and learner disagree: mean |log-prob difference| {metrics['mismatch/mean']:.3g} over all "
            f"tokens exceeds train.mismatch_limit={train.mismatch_limit:g}; its weights or precision are off"
        )


def weight_sync_check(recipe: Recipe, engine: Engine, learner: Learner, prompt: Prompt, version: int) -> Metrics:
    """Lets the engine answer a prompt and the learner say how likely that was: both must hold the same weights.

    Raises `EngineError` where they do not.
    """
    tokens = min(recipe.train.probe_tokens, recipe.rollout.max_tokens)
    if tokens == 0:
        return {}
    sampling = Sampling(max_tokens=tokens, temperature=learner.temperature)
    request = Request(f"probe/{version}", prompt, sampling, seed_for(recipe.seed, "probe", version))
    (rollout,) = generate(engine, [request])
    batch = collate([[GradedRollout(rollout, Verdict("no_answer"), 0.0)]])
    found = difference_stats(
        learner.logprobs(batch), batch.sampled_logprobs, None, GlobalCounts(1, len(rollout.token_ids))
    )
    mean, most = (found[f"mismatch/{name}"].item() for name in ("mean", "max"))
    limit = recipe.train.probe_limit or (EXACT if recipe.model.dtype == "float32" else ROUNDED)
    if rollout.policy_version != version or not mean <= limit:
        raise EngineError(
            f"the engine does not hold the learner's weights of step {version}: over {len(rollout.token_ids)} tokens "
            f"the mean |log-prob difference| is {mean:.3g}, train.probe_limit={limit:g}, and it names version "
            f"{rollout.policy_version}"
        )
    return {"sync/mean": mean, "sync/max": most}
