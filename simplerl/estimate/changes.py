"""What to change in a recipe that does not fit, found by planning changed ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import cycle

from simplerl.config import LoraConfig, Recipe, apply_overrides, validate_recipe
from simplerl.errors import ConfigError
from simplerl.estimate.hardware import Hardware
from simplerl.estimate.placement import Placement, best
from simplerl.estimate.shapes import Shape
from simplerl.estimate.times import Tokens

Settings = tuple[str, ...]
COUNTS = (2, 4, 8, 16, 32, 64)
"""Numbers of GPUs that are tried where those given are too few."""
NODE = 8
"""GPUs of a node beyond which there are more nodes."""


@dataclass(frozen=True, slots=True)
class Change:
    """A changed recipe's best placement."""

    settings: Settings
    why: str
    placement: Placement

    @property
    def peak(self) -> float:
        """Bytes of the worker that takes the most."""
        return self.placement.largest.peak


@dataclass(frozen=True, slots=True)
class _Step:
    """One kind of change: settings that save more and more, and what they cost."""

    rungs: tuple[Settings, ...]
    why: str


@dataclass(frozen=True, slots=True)
class _Trial:
    """Tries changes of a recipe that does not fit."""

    given: Recipe
    peak: float
    shape: Shape
    hardware: Hardware
    tokens: Tokens

    def climb(self, settings: Settings, step: _Step, why: str = "") -> Change | None:
        """The first rung of a step that fits on top of settings; else the first whose peak no later one lowers by a
        hundredth. None where the recipe forbids it."""
        tried: list[Change] = []
        for rung in step.rungs:
            # What the recipe has anyway is not said.
            own = _optimizers({block: optimizer.name for block, optimizer in self.given.optimizers.items()})
            joined = tuple(each for each in _joined(settings, rung) if each not in own)
            try:
                recipe = changed_recipe(self.given, joined)
            except ConfigError:
                break
            tried.append(Change(joined, why or step.why, best(recipe, self.shape, self.hardware, self.tokens)))
            if tried[-1].placement.fits:
                return tried[-1]
        least = min((each.peak for each in tried), default=0.0)
        return next((each for each in tried if each.peak <= 1.01 * least), None)

    def together(self, steps: list[_Step]) -> Change | None:
        """The steps on top of each other, each where it lowers the peak, until it fits or none does."""
        reached: Change | None = None
        idle = 0
        for step in cycle(steps):
            settings, peak = (reached.settings, reached.peak) if reached else ((), self.peak)
            change = self.climb(settings, step, "together")
            if change is not None and change.peak < peak:
                reached, idle = change, 0
            else:
                idle += 1
            if (reached is not None and reached.placement.fits) or idle == len(steps):
                break
        return reached


def changes(recipe: Recipe, placement: Placement, shape: Shape, hardware: Hardware, tokens: Tokens) -> list[Change]:
    """Changed recipes and how far each gets: one change at a time, and those that help on top of each other where none
    is enough; then changes of what is learned, alone and with the others."""
    peak = placement.largest.peak
    trial = _Trial(recipe, peak, shape, hardware, tokens)
    steps, others, found = _steps(recipe, hardware, placement), _other_steps(recipe), list[Change]()
    for group in (steps, [*others, *steps]):
        alone = [trial.climb((), step) for step in (group if group is steps else others)]
        lower = [each for each in alone if each is not None and each.peak < 0.99 * peak]
        found += lower
        if not any(each.placement.fits for each in found):
            joined = trial.together(group)
            if joined is not None and joined.settings not in [each.settings for each in found]:
                found.append(joined)
    return found


def enough(recipe: Recipe, shape: Shape, hardware: Hardware, tokens: Tokens) -> tuple[Hardware, Change] | None:
    """The fewest GPUs of the kind, of some numbers, that do: with the recipe as it is, or changed but for what is
    learned and for weights on the host. None where not even the most do."""
    for count in (each for each in COUNTS if each > hardware.count):
        node = max(hardware.per_node, NODE)
        more = Hardware(hardware.gpu, min(count, node), -(-count // node))
        found = best(recipe, shape, more, tokens)
        if found.fits:
            return more, Change((), "as it is", found)
        on_gpus = _steps(recipe, more, found, host=False)
        changed = _Trial(recipe, found.largest.peak, shape, more, tokens).together(on_gpus)
        if changed is not None and changed.placement.fits:
            return more, changed
    return None


def _steps(recipe: Recipe, hardware: Hardware, placement: Placement, *, host: bool = True) -> list[_Step]:
    """What saves memory and leaves what is learned alone, but for rounding. With `host` also what waits there, last."""
    steps = []
    if recipe.model.dtype == "float32":
        steps.append(_Step((("model.dtype=bfloat16",),), "bfloat16 products"))
    if not recipe.model.gradient_checkpointing:
        steps.append(_Step((("model.gradient_checkpointing=true",),), "activations computed again: a third more time"))
    if not recipe.model.offloads_activations:
        both = {"none": "activations", "weights": "all"}[recipe.model.offload]
        steps.append(_Step(((f"model.offload={both}",),), "activations wait on the host: time for copies"))
    longest = recipe.data.max_prompt_tokens + recipe.rollout.max_tokens
    if recipe.train.micro_batch_tokens > longest:
        steps.append(_Step(((f"train.micro_batch_tokens={longest}",),), "one sequence of full length at a time"))
    rows, halves = min(getattr(recipe.engine, "max_batch", 0), recipe.rollout.sequences), list[Settings]()
    while recipe.engine.name == "embedded" and rows >= 32:
        rows //= 2
        halves.append(("engine.name=embedded", f"engine.max_batch={rows}"))
    if halves:
        steps.append(_Step(tuple(halves), "fewer responses at once: a slower rollout"))
    if recipe.engine.name == "embedded" and hardware.count > 1:
        steps.append(_Step((("engine.name=vllm", "engine.gpu_memory=0.9"),), "vLLM: a cache as large as there is room"))
    elif recipe.engine.name == "embedded" and recipe.cluster.ray is None:
        shares = tuple(map(_sleeping, (0.8, 0.6, 0.4, 0.2)))
        steps.append(_Step(shares, "vLLM, which sleeps while the learner works"))
    if {optimizer.name for optimizer in recipe.optimizers.values()} == {"adamw"}:
        rounded = _optimizers(dict.fromkeys(recipe.optimizers, "adamw-8bit"))
        steps.append(_Step((rounded,), "AdamW's moments rounded to 8 bits; one learner"))
    if host and not recipe.model.offloads_weights:
        steps.append(_on_host(recipe, placement))
    return steps


def _on_host(recipe: Recipe, placement: Placement) -> _Step:
    """FSDP2 moves the weights of a learner in a process of its own. On one GPU the engine's process is there too, and
    takes turns with it."""
    if placement.together:
        where = ("cluster.ray=auto", "cluster.colocated=true", *_sleeping(0.8))
    else:
        where = placement.settings
    able = {name: each.name if each.supports_offload else "adamw" for name, each in recipe.optimizers.items()}
    return _Step(
        ((*where, *_optimizers(able), "model.offload=all"),), "all that can wait waits on the host: time for copies"
    )


def _sleeping(share: float) -> Settings:
    return ("engine.name=vllm", f"engine.gpu_memory={share}", "engine.sleep=true")


def _optimizers(names: Mapping[str, str]) -> Settings:
    return tuple(f"{block}.name={name}" for block, name in names.items())


def _other_steps(recipe: Recipe) -> list[_Step]:
    """What saves memory and changes what is learned."""
    steps = []
    if recipe.model.lora is None:
        steps.append(_Step(((f"model.lora.rank={LoraConfig().rank}",),), "adapters instead of all weights"))
    used = [name for name in ("kl_coef", "kl_loss_coef") if getattr(recipe.algorithm, name, 0)]
    if used:
        without = tuple(f"algorithm.{name}=0.0" for name in used)
        steps.append(_Step(((f"algorithm.name={recipe.algorithm.name}", *without),), "no KL, no reference model"))
    return steps


def _joined(settings: Settings, more: Settings) -> Settings:
    """Both, the later one where they set the same."""
    keys = {text.partition("=")[0] for text in more}
    return (*(text for text in settings if text.partition("=")[0] not in keys), *more)


def changed_recipe(recipe: Recipe, settings: Settings) -> Recipe:
    """The recipe with some settings changed, validated."""
    table = recipe.model_dump(mode="json", exclude_none=True)
    return validate_recipe(apply_overrides(table, settings), kind=Recipe)
