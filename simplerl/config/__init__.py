"""Recipes: TOML files read into frozen trees. Unknown keys, wrong types and impossible combinations are errors.

Nothing here imports torch.
"""

from simplerl.config.base import RENAMED, Frozen, PluginConfig, explain, plugin_config
from simplerl.config.blocks import (
    STOP,
    ClusterConfig,
    DataConfig,
    DistillDataConfig,
    DistillSampling,
    EvalConfig,
    EvalStage,
    FilterConfig,
    LoraConfig,
    ModelConfig,
    RecipeStage,
    ReportStage,
    TrackConfig,
)
from simplerl.config.optimizers import OptimizerConfig, TensorSpec
from simplerl.config.reading import (
    apply_overrides,
    load_recipe,
    merge,
    parse_override,
    read_recipe,
    recipe_name,
    shipped_recipes,
    validate_recipe,
)
from simplerl.config.recipes import KINDS, AnyRecipe, DistillRecipe, PipelineRecipe, Recipe, SFTRecipe, TrainingRecipe

__all__ = [
    "KINDS",
    "RENAMED",
    "STOP",
    "AnyRecipe",
    "ClusterConfig",
    "DataConfig",
    "DistillDataConfig",
    "DistillRecipe",
    "DistillSampling",
    "EvalConfig",
    "EvalStage",
    "FilterConfig",
    "Frozen",
    "LoraConfig",
    "ModelConfig",
    "OptimizerConfig",
    "PipelineRecipe",
    "PluginConfig",
    "Recipe",
    "RecipeStage",
    "ReportStage",
    "SFTRecipe",
    "TensorSpec",
    "TrackConfig",
    "TrainingRecipe",
    "apply_overrides",
    "explain",
    "load_recipe",
    "merge",
    "parse_override",
    "plugin_config",
    "read_recipe",
    "recipe_name",
    "shipped_recipes",
    "validate_recipe",
]
