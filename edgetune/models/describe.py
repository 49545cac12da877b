"""Networks in words and figures, without their weights.

It may import errors and artifact.
"""

from typing import Any

from edgetune.artifact import Tokens
from edgetune.models.build import operations, skeleton
from edgetune.models.rows import MODELS, model_row


def describe_model(name: str) -> dict[str, Any]:
    """Describe a network: size, input, weights, groups, how well it takes INT8.

    `parameters` and `operations` (multiply-accumulates per input) are those of the pretrained network, with
    its own head and input size.

    Raises:
        ConfigError: no such network.
        MissingTool: a timm network, and timm is not installed.
    """
    row = model_row(name)
    parameters, macs = row.parameters, row.operations
    if not parameters or not macs:
        net = skeleton(row)
        parameters = sum(parameter.numel() for parameter in net.parameters())
        macs = operations(net, row.preprocess)
    own = row.preprocess
    if isinstance(own, Tokens):
        takes: dict[str, Any] = {"length": own.length, "most": row.most}
    else:
        least = own.size_px if row.step_px == 0 else max(row.least_px, row.step_px)
        takes = {"size_px": own.size_px, "least_px": least, "channels": own.channels}
    return {
        "name": name,
        "parameters": parameters,
        "operations": macs,
        **takes,
        "weights": row.weights,
        "source": row.source,
        "head": row.head,
        "groups": [_title(group) for group in row.groups],
        "int8": row.int8,
    }


def list_models() -> list[dict[str, Any]]:
    """Describe every network of the table."""
    return [describe_model(name) for name in MODELS]


def _title(group: tuple[str, ...]) -> str:
    return " + ".join(group) if len(group) < 3 else f"{group[0]} … {group[-1]}"
