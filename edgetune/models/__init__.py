"""Networks to start from: a table with one row each, and the functions that build and describe them.

They know no data, no training and no recipe. May import errors and artifact.
"""

from edgetune.models.build import build_model, build_taught, head_of, layer_names, operations, preprocess_for
from edgetune.models.describe import describe_model, list_models
from edgetune.models.rows import MODELS, ModelRow, build_cifar10, model_row

__all__ = [
    "MODELS",
    "ModelRow",
    "build_cifar10",
    "build_model",
    "build_taught",
    "describe_model",
    "head_of",
    "layer_names",
    "list_models",
    "model_row",
    "operations",
    "preprocess_for",
]
