"""Weight sync: give the engine the learner's weights, then probe that it really holds them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from simplerl.batch.batch import collate
from simplerl.config import Recipe
from simplerl.engines.base import Engine, generate
from simplerl.errors import EngineError
from simplerl.learner.base import Learner
from simplerl.losses.losses import GlobalCounts, difference_stats
from simplerl.seeding import seed_for
from simplerl.types import GradedRollout, Metrics, Prompt, Request, Sampling, Verdict

FLOAT32_LIMIT, BFLOAT16_LIMIT = 1e-3, 0.1
"""Default of `train.probe_limit`. A healthy engine differs by about 1e-5 in float32 and 1e-2 in bfloat16."""


@dataclass(slots=True)
class WeightSync:
    """Syncs one engine with one learner."""

    recipe: Recipe
    engine: Engine
    learner: Learner
    is_current: bool = True
    """True if the engine holds the learner's weights."""

    def sync_weights(self, version: int, prompt: Prompt) -> Metrics:
        """Load the learner's weights into an idle engine, and check them on a prompt."""
        self.engine.load_weights(self.learner.weights(), version)
        self.is_current = True
        return weight_sync_check(self.recipe, self.engine, self.learner, prompt, version)

    def delayed_sync(self, version: int) -> Callable[[], None]:
        """Copy the learner's weights now; the function returned loads them once the engine is idle.

        No check follows: by then the learner has newer weights.
        """
        weights = self.learner.weights(snapshot=True)
        return lambda: self.engine.load_weights(weights, version)


def weight_sync_check(recipe: Recipe, engine: Engine, learner: Learner, prompt: Prompt, version: int) -> Metrics:
    """Sample a few tokens from the engine and compare its log-probs with the learner's.

    Raises `EngineError` if they differ by more than `train.probe_limit`, or if the engine names another version.
    """
    tokens = min(recipe.train.probe_tokens, recipe.rollout.max_tokens)
    if tokens == 0:
        return {}
    sampling = Sampling(max_tokens=tokens, temperature=learner.temperature)
    request = Request(f"probe/{version}", prompt, sampling, seed_for(recipe.seed, "probe", version))
    (rollout,) = generate(engine, [request])
    batch = collate([[GradedRollout(rollout, Verdict("no_answer"), 0.0)]])
    counts = GlobalCounts(1, len(batch.sampled_logprobs))
    found = difference_stats(learner.logprobs(batch), batch.sampled_logprobs, None, counts)
    mean, most = (found[f"mismatch/{name}"].item() for name in ("mean", "max"))
    limit = recipe.train.probe_limit or (FLOAT32_LIMIT if recipe.model.dtype == "float32" else BFLOAT16_LIMIT)
    if rollout.policy_version != version or not mean <= limit:
        raise EngineError(
            f"the engine does not hold the learner's weights of step {version}: over {counts.tokens} tokens "
            f"the mean |log-prob difference| is {mean:.3g}, train.probe_limit={limit:g}, and it names version "
            f"{rollout.policy_version}"
        )
    return {"sync/mean": mean, "sync/max": most}
