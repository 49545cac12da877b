"""edgetune: fine-tune a compact network, export it, quantize it to INT8, and prove what it kept.

Everything public is listed in `__all__` and loaded when it is first used, so that `import edgetune` and
`edgetune --help` stay fast.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgetune.artifact import Artifact, Preprocess
    from edgetune.data.folders import Dataset, scan
    from edgetune.errors import ArtifactError, ConfigError, EdgetuneError, MissingTool, StageError
    from edgetune.pipeline import Run, quickstart, run
    from edgetune.profile import Profile, Target, load_profile, load_target
    from edgetune.recipe import Recipe, load_recipe, recipe_from
    from edgetune.stages.bench import bench
    from edgetune.stages.check import check
    from edgetune.stages.distill import distill
    from edgetune.stages.estimate import estimate
    from edgetune.stages.export import export
    from edgetune.stages.finetune import finetune
    from edgetune.stages.init import init
    from edgetune.stages.lint import lint
    from edgetune.stages.predict import predict
    from edgetune.stages.quantize import quantize, quantize_onnx
    from edgetune.tuning.tune import tune

__version__ = "0.1.0"

__all__ = [
    "Artifact",
    "ArtifactError",
    "ConfigError",
    "Dataset",
    "EdgetuneError",
    "MissingTool",
    "Preprocess",
    "Profile",
    "Recipe",
    "Run",
    "StageError",
    "Target",
    "bench",
    "check",
    "distill",
    "estimate",
    "export",
    "finetune",
    "init",
    "lint",
    "load_profile",
    "load_recipe",
    "load_target",
    "predict",
    "quantize",
    "quantize_onnx",
    "quickstart",
    "recipe_from",
    "run",
    "scan",
    "tune",
]

_STAGES = (
    "bench",
    "check",
    "distill",
    "estimate",
    "export",
    "finetune",
    "init",
    "lint",
    "predict",
    "quantize",
)
_HOME = {
    **dict.fromkeys(("Artifact", "Preprocess"), "artifact"),
    **dict.fromkeys(("Dataset", "scan"), "data.folders"),
    **dict.fromkeys(("ArtifactError", "ConfigError", "EdgetuneError", "MissingTool", "StageError"), "errors"),
    **dict.fromkeys(("Run", "quickstart", "run"), "pipeline"),
    **dict.fromkeys(("Profile", "Target", "load_profile", "load_target"), "profile"),
    **dict.fromkeys(("Recipe", "load_recipe", "recipe_from"), "recipe"),
    **{name: f"stages.{name}" for name in _STAGES},
    "quantize_onnx": "stages.quantize",
    "tune": "tuning.tune",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'edgetune' has no attribute {name!r}")
    return getattr(importlib.import_module(f"edgetune.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
