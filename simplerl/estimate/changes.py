"""Changes to a recipe that does not fit, found by placing changed recipes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import cycle

from simplerl.config import LoraConfig, Recipe, apply_overrides, validate_recipe
from simplerl.engines.embedded import Config as EmbeddedConfig
from simplerl.errors import ConfigError
from simplerl.estimate.hardware import Hardware
from simplerl.estimate.placement import Placement, best_placement
from simplerl.estimate.shapes import Shape
from simplerl.estimate.times import MeanTokens

Settings = tuple[str, ...]
"""Overrides such as `model.dtype=bfloat16`."""

GPU_COUNTS = (2, 4, 8, 16, 32, 64)
"""Numbers of GPUs that `fewest_gpus` tries."""
GPUS_PER_NODE = 8
"""GPUs of a node, if a recipe needs more than the given ones have."""


@dataclass(frozen=True, slots=True)
class Change:
    """The best placement of a changed recipe."""

    settings: Settings
    reason: str
    placement: Placement

    @property
    def peak(self) -> float:
        """Peak bytes of the worker that takes most."""
        return self.placement.largest_worker.peak


@dataclass(frozen=True, slots=True)
class _Option:
    """One kind of change: `levels` of settings that save more and more, and what they cost."""

    levels: tuple[Settings, ...]
    reason: str


@dataclass(frozen=True, slots=True)
class _Search:
    """Tries changes of a recipe that does not fit."""

    recipe: Recipe
    peak: float
    shape: Shape
    hardware: Hardware
    tokens: MeanTokens

    def first_that_fits(self, settings: Settings, option: _Option, reason: str = "") -> Change | None:
        """The first level of an option that fits on top of `settings`.

        If none fits, the first level whose peak is within 1 % of the lowest. None: the recipe forbids the option.
        """
        tried: list[Change] = []
        for level in option.levels:
            # Settings that the recipe has anyway are not listed.
            own = _optimizers({block: optimizer.name for block, optimizer in self.recipe.optimizers.items()})
            combined = tuple(setting for setting in _combined(settings, level) if setting not in own)
            try:
                recipe = changed_recipe(self.recipe, combined)
            except ConfigError:
                break
            placement = best_placement(recipe, self.shape, self.hardware, self.tokens)
            tried.append(Change(combined, reason or option.reason, placement))
            if placement.fits:
                return tried[-1]
        lowest = min((change.peak for change in tried), default=0.0)
        return next((change for change in tried if change.peak <= 1.01 * lowest), None)

    def combine(self, options: list[_Option]) -> Change | None:
        """Options on top of each other, each if it lowers the peak, until the recipe fits or none lowers it."""
        reached: Change | None = None
        without_effect = 0
        for option in cycle(options):
            settings, peak = (reached.settings, reached.peak) if reached else ((), self.peak)
            change = self.first_that_fits(settings, option, "several changes together")
            if change is not None and change.peak < peak:
                reached, without_effect = change, 0
            else:
                without_effect += 1
            if (reached is not None and reached.placement.fits) or without_effect == len(options):
                break
        return reached


def suggest_changes(
    recipe: Recipe, placement: Placement, shape: Shape, hardware: Hardware, tokens: MeanTokens
) -> list[Change]:
    """Changed recipes with lower peaks than `placement`.

    First changes that keep what is learned: each by itself, and combined if none is enough. Then changes to what is
    learned, by themselves and combined with the others.
    """
    peak = placement.largest_worker.peak
    search = _Search(recipe, peak, shape, hardware, tokens)
    same, other = _options(recipe, hardware, placement), _learning_options(recipe)
    found: list[Change] = []
    for single, together in ((same, same), (other, [*other, *same])):
        tried = [search.first_that_fits((), option) for option in single]
        found += [change for change in tried if change is not None and change.peak < 0.99 * peak]
        if not any(change.placement.fits for change in found):
            combined = search.combine(together)
            if combined is not None and combined.settings not in [change.settings for change in found]:
                found.append(combined)
    return found


def fewest_gpus(recipe: Recipe, shape: Shape, hardware: Hardware, tokens: MeanTokens) -> tuple[Hardware, Change] | None:
    """The smallest of `GPU_COUNTS` on which the recipe fits, unchanged or with changes that keep what is learned.

    Offloading of weights is not tried. None: it fits on none of them.
    """
    for count in GPU_COUNTS:
        if count <= hardware.count:
            continue
        per_node = max(hardware.per_node, GPUS_PER_NODE)
        larger = Hardware(hardware.gpu, min(count, per_node), -(-count // per_node))
        placement = best_placement(recipe, shape, larger, tokens)
        if placement.fits:
            return larger, Change((), "recipe unchanged", placement)
        options = _options(recipe, larger, placement, offload_weights=False)
        change = _Search(recipe, placement.largest_worker.peak, shape, larger, tokens).combine(options)
        if change is not None and change.placement.fits:
            return larger, change
    return None


def _options(
    recipe: Recipe, hardware: Hardware, placement: Placement, *, offload_weights: bool = True
) -> list[_Option]:
    """Changes that save memory and keep what is learned, except for rounding."""
    options = []
    if recipe.model.dtype == "float32":
        options.append(_Option((("model.dtype=bfloat16",),), "bfloat16 matrix products"))
    if not recipe.model.gradient_checkpointing:
        reason = "gradient checkpointing; about a third more time"
        options.append(_Option((("model.gradient_checkpointing=true",),), reason))
    if not recipe.model.offloads_activations:
        both = {"none": "activations", "weights": "all"}[recipe.model.offload]
        options.append(_Option(((f"model.offload={both}",),), "activations on the host; time for copies"))
    longest = recipe.data.max_prompt_tokens + recipe.rollout.max_tokens
    if recipe.train.micro_batch_tokens > longest:
        options.append(_Option(((f"train.micro_batch_tokens={longest}",),), "micro-batches of one long sequence"))
    options += _engine_options(recipe, hardware)
    if {optimizer.name for optimizer in recipe.optimizers.values()} == {"adamw"}:
        eight_bit = _optimizers(dict.fromkeys(recipe.optimizers, "adamw-8bit"))
        options.append(_Option((eight_bit,), "AdamW's moments in 8 bits; one learner only"))
    if offload_weights and not recipe.model.offloads_weights:
        options.append(_offload_all(recipe, placement))
    return options


def _engine_options(recipe: Recipe, hardware: Hardware) -> list[_Option]:
    """Changes of the embedded engine: smaller batches, or vLLM in its place."""
    if not isinstance(recipe.engine, EmbeddedConfig):
        return []
    options = []
    slots, halves = min(recipe.engine.max_batch, recipe.rollout.sequences), list[Settings]()
    while slots >= 32:
        slots //= 2
        halves.append(("engine.name=embedded", f"engine.max_batch={slots}"))
    if halves:
        options.append(_Option(tuple(halves), "smaller batches in the engine; slower rollout"))
    if hardware.count > 1:
        vllm = ("engine.name=vllm", "engine.gpu_memory=0.9")
        options.append(_Option((vllm,), "vLLM, whose cache is as large as memory allows"))
    elif recipe.cluster.ray is None:
        shares = tuple(map(_sleeping_vllm, (0.8, 0.6, 0.4, 0.2)))
        options.append(_Option(shares, "vLLM that sleeps while the learner works"))
    return options


def _offload_all(recipe: Recipe, placement: Placement) -> _Option:
    """Offload everything to the host.

    FSDP2 moves the weights of a learner that has a process of its own. On one GPU the engine's process shares it, and
    the two take turns.
    """
    if placement.single_process:
        cluster = ("cluster.ray=auto", "cluster.colocated=true", *_sleeping_vllm(0.8))
    else:
        cluster = placement.settings
    optimizers = {
        block: optimizer.name if optimizer.supports_offload else "adamw"
        for block, optimizer in recipe.optimizers.items()
    }
    settings = (*cluster, *_optimizers(optimizers), "model.offload=all")
    return _Option((settings,), "weights, moments and activations on the host; time for copies")


def _sleeping_vllm(share: float) -> Settings:
    return ("engine.name=vllm", f"engine.gpu_memory={share}", "engine.sleep=true")


def _optimizers(names: Mapping[str, str]) -> Settings:
    return tuple(f"{block}.name={name}" for block, name in names.items())


def _learning_options(recipe: Recipe) -> list[_Option]:
    """Changes that save memory and change what is learned."""
    options = []
    if recipe.model.lora is None:
        options.append(_Option(((f"model.lora.rank={LoraConfig().rank}",),), "LoRA adapters instead of all weights"))
    used = [name for name in ("kl_coef", "kl_loss_coef") if getattr(recipe.algorithm, name, 0)]
    if used:
        without = tuple(f"algorithm.{name}=0.0" for name in used)
        settings = (f"algorithm.name={recipe.algorithm.name}", *without)
        options.append(_Option((settings,), "no KL, so no reference model"))
    return options


def _combined(settings: Settings, more: Settings) -> Settings:
    """Both; of two values for one key the later one."""
    keys = {setting.partition("=")[0] for setting in more}
    return (*(setting for setting in settings if setting.partition("=")[0] not in keys), *more)


def changed_recipe(recipe: Recipe, settings: Settings) -> Recipe:
    """The recipe with settings changed, validated. Raises `ConfigError`."""
    table = recipe.model_dump(mode="json", exclude_none=True)
    return validate_recipe(apply_overrides(table, settings), kind=Recipe)
