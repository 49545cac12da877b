"""What each node of a network takes on this CPU, by ONNX Runtime's own profiler.

Profiling costs time of its own, so it runs in a session by itself and never where latency is measured. It knows
nothing of reports. It may import artifact only; ONNX Runtime and onnx besides.
"""

import json
import math
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

Feed = Mapping[str, NDArray[Any]]
Shape = tuple[int, ...]

_LOG_ERRORS = 3
_CPU = "CPUExecutionProvider"
RUNS = 20
# Both sides of a copy: the second-level cache of a core has so much or more since about 2015.
CACHE_BYTES = 1 << 19
MEMORY_BYTES = 1 << 25
CONVOLUTIONS = ("Conv", "FusedConv", "NhwcFusedConv", "QLinearConv", "ConvInteger", "NhwcConv")
PRODUCTS = (
    *("Gemm", "FusedGemm", "QGemm", "MatMul", "FusedMatMul", "QLinearMatMul", "MatMulInteger"),
    *("MatMulIntegerToFloat", "DynamicQuantizeMatMul", "TransposeMatMul"),
)
MOVES = (
    *(
        "Reshape",
        "Flatten",
        "Transpose",
        "Concat",
        "Slice",
        "Split",
        "Identity",
        "Squeeze",
        "Unsqueeze",
        "Gather",
    ),
    *(
        "ReorderInput",
        "ReorderOutput",
        "Expand",
        "Pad",
        "Tile",
        "Shape",
        "Cast",
        "DepthToSpace",
        "SpaceToDepth",
    ),
    *("QLinearConcat", "Constant", "ConstantOfShape"),
)


class Node(TypedDict):
    """One node as it ran, several of the file's fused into one where ONNX Runtime does so.

    `precision`: of its output, int8 also for uint8. `bytes`: read and written once, weights included. `operations`:
    two for each multiplication with its addition, one for each value otherwise, none where values only move; None:
    not known.
    """

    name: str
    kind: str
    precision: str
    ms: float
    bytes: int
    operations: int | None


def nodes(model: Path | bytes, feed: Feed, threads: int = 1, runs: int = RUNS) -> list[Node]:
    """Time every node, in running order; the median of several runs counts, the first left out.

    Args:
        model: an ONNX file, or its content.
        feed: an array by the name of each input.
        threads: that work on one node.
        runs: of the whole network.
    """
    with tempfile.TemporaryDirectory() as folder:
        optimised = Path(folder) / "optimised.onnx"
        events = _events(model, feed, threads, runs, Path(folder), optimised)
        # Kernels repack their weights, which then are missing from what the profiler tells.
        weights = _weights(optimised)
    times: dict[str, list[float]] = {}
    told: dict[str, dict[str, Any]] = {}
    for event in events:
        name = event["name"].removesuffix("_kernel_time")
        times.setdefault(name, []).append(event["dur"] * 1e-3)
        told[name] = event["args"]
    return [
        _node(name, told[name], found[1:] or found, weights.get(name, [])) for name, found in times.items()
    ]


def node_seconds(model: bytes, feed: Feed, runs: int = 10) -> dict[str, float]:
    """Return how long each node of a network takes here, by its name, on one thread.

    Nodes that ONNX Runtime fuses count where the first of them stands.

    Args:
        model: the content of an ONNX file.
        feed: an array by the name of each input.
        runs: of which the median counts.
    """
    return {node["name"]: node["ms"] / 1e3 for node in nodes(model, feed, 1, runs)}


class Roof(TypedDict):
    """What a machine can do at most, dense.

    Attributes:
        cache_bytes_s: bandwidth for what is not larger than `cache_bytes`; None: that of memory.
        source: where the figures come from.
    """

    int8_ops_s: float | None
    fp16_ops_s: float | None
    fp32_ops_s: float | None
    bytes_s: float | None
    cache_bytes_s: float | None
    cache_bytes: int
    source: str


def roof(threads: int, side: int = 512, seconds: float = 0.2) -> Roof:
    """Measure what this CPU can do: square matrix products in ONNX Runtime, copies that a cache holds and none does.

    Args:
        threads: that work on a product; a copy has one.
        side: of the matrices.
        seconds: for each of the four; the best run counts.
    """
    return {
        "int8_ops_s": 2 * side**3 / _product("MatMulInteger", np.dtype(np.uint8), side, threads, seconds),
        "fp16_ops_s": None,
        "fp32_ops_s": 2 * side**3 / _product("MatMul", np.dtype(np.float32), side, threads, seconds),
        "bytes_s": _copied(MEMORY_BYTES, seconds),
        "cache_bytes_s": _copied(CACHE_BYTES // 2, seconds),
        "cache_bytes": CACHE_BYTES,
        "source": f"measured here: products of {side} x {side} matrices in ONNX Runtime, copies of "
        f"{CACHE_BYTES >> 11} KiB and {MEMORY_BYTES >> 20} MiB by one thread",
    }


def _copied(size: int, seconds: float) -> float:
    """Return bytes a second, reading and writing."""
    source, into = np.ones(size, np.uint8), np.empty(size, np.uint8)
    return 2 * size / _best(lambda: np.copyto(into, source), seconds)


def _product(kind: str, dtype: np.dtype[Any], side: int, threads: int, seconds: float) -> float:
    """Return the seconds of one product with a constant matrix."""
    whole = kind == "MatMulInteger"
    takes, gives = (onnx.TensorProto.UINT8, onnx.TensorProto.INT32) if whole else (1, 1)
    weight = np.ones((side, side), np.int8 if whole else np.float32)
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node(kind, ["x", "w"], ["y"])],
        kind,
        [onnx.helper.make_tensor_value_info("x", takes, [side, side])],
        [onnx.helper.make_tensor_value_info("y", gives, [side, side])],
        [onnx.numpy_helper.from_array(weight, "w")],
    )
    made = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    options = _options(threads)
    session = ort.InferenceSession(made.SerializeToString(), options, providers=[_CPU])
    feed = {"x": np.ones((side, side), dtype)}
    return _best(lambda: session.run(None, feed), seconds)


def _best(work: Any, seconds: float) -> float:
    work()
    times, end = list[float](), time.perf_counter() + seconds
    while time.perf_counter() < end or not times:
        begun = time.perf_counter()
        work()
        times.append(time.perf_counter() - begun)
    return min(times)


def _options(threads: int) -> Any:
    options = ort.SessionOptions()
    options.log_severity_level = _LOG_ERRORS
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    return options


def _events(
    model: Path | bytes, feed: Feed, threads: int, runs: int, folder: Path, optimised: Path
) -> Iterator[dict[str, Any]]:
    options = _options(threads)
    options.enable_profiling = True
    options.profile_file_prefix = str(folder / "profile")
    options.optimized_model_filepath = str(optimised)
    source = str(model) if isinstance(model, Path) else model
    session = ort.InferenceSession(source, options, providers=[_CPU])
    for _ in range(runs + 1):
        session.run(None, dict(feed))
    events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    return (e for e in events if e.get("cat") == "Node" and e["name"].endswith("_kernel_time"))


def _weights(optimised: Path) -> dict[str, list[tuple[Shape, int]]]:
    """Return shape and bytes of the constants that each node reads; by node."""
    graph = onnx.load(str(optimised)).graph
    sizes = {
        item.name: (
            tuple(item.dims),
            math.prod(item.dims) * onnx.helper.tensor_dtype_to_np_dtype(item.data_type).itemsize,
        )
        for item in graph.initializer
    }
    return {node.name: [sizes[name] for name in node.input if name in sizes] for node in graph.node}


def _node(
    name: str, told: Mapping[str, Any], times: Sequence[float], weights: Sequence[tuple[Shape, int]]
) -> Node:
    reads, writes = (_tensors(told.get(f"{side}_type_shape", [])) for side in ("input", "output"))
    kind = str(told.get("op_name", ""))
    precision = writes[0][0] if writes else ""
    moved = int(told.get("activation_size", 0)) + int(told.get("output_size", 0))
    return {
        "name": name,
        "kind": kind,
        "precision": {"float": "fp32", "float16": "fp16", "uint8": "int8"}.get(precision, precision),
        "ms": float(np.median(times)),
        "bytes": moved + sum(size for _, size in weights),
        "operations": operations(
            kind,
            [shape for _, shape in reads],
            [shape for _, shape in writes],
            [shape for shape, _ in weights],
        ),
    }


def _tensors(listed: Sequence[Mapping[str, Sequence[int]]]) -> list[tuple[str, Shape]]:
    return [(kind, tuple(shape)) for entry in listed for kind, shape in entry.items()]


def operations(
    kind: str, reads: Sequence[Shape], writes: Sequence[Shape], weights: Sequence[Shape]
) -> int | None:
    """Return how many operations a node takes; None where that cannot be told.

    Args:
        kind: its operator.
        reads: shapes of what it reads, its data first.
        writes: shapes of what it writes.
        weights: shapes of the constants that it reads.
    """
    if kind in MOVES or not writes or not reads:
        return 0
    most = max((*weights, *reads[1:]), key=len, default=())
    if kind in CONVOLUTIONS:
        return 2 * math.prod(writes[0]) * math.prod(most[1:]) if len(most) > 2 else None
    if kind == "ConvTranspose":
        return 2 * math.prod(reads[0]) * math.prod(most[1:]) if len(most) > 2 else None
    if kind in PRODUCTS:
        return 2 * math.prod(writes[0]) * reads[0][-1] if reads[0] else None
    return max(math.prod(reads[0]), math.prod(writes[0]))
