"""Networks above 2 GB, which no ONNX file or message can hold: their weights go into a file beside it.

It may import engines.
"""

import tempfile
from pathlib import Path

import onnx
from onnx import ModelProto
from onnx.external_data_helper import load_external_data_for_model

from edgetune.engines.onnxruntime import Session

# Protocol buffers end at 2 GiB; what is no weight takes far less than the rest.
LARGEST_BYTES = (1 << 31) - (1 << 26)
_SMALL_BYTES = 1024


def fits(model: ModelProto) -> bool:
    """Say whether a network fits into one message, and so into one file."""
    return sum(len(item.raw_data) for item in model.graph.initializer) <= LARGEST_BYTES


def save_beside(model: ModelProto, path: Path) -> None:
    """Write a network's weights into `NAME.data` beside its file; afterwards the model is as it was."""
    data = f"{path.name}.data"
    (path.parent / data).unlink(missing_ok=True)  # ONNX appends
    onnx.save_model(model, path, save_as_external_data=True, location=data, size_threshold=_SMALL_BYTES)
    load_external_data_for_model(model, str(path.parent))
    for item in model.graph.initializer:
        item.ClearField("data_location")


def open_model(model: ModelProto, threads: int = 0, exact: bool = False) -> Session:
    """Load a network of any size from memory; `threads` and `exact` as for a `Session`."""
    if fits(model):
        return Session(model.SerializeToString(), threads, exact)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        save_beside(model, path)
        return Session(path, threads, exact)
