"""What each node of a network takes on this CPU, by ONNX Runtime's own profiler.

Profiling costs time of its own, so it runs in a session by itself and never where latency is measured. It knows
nothing of reports. It may import counting only; ONNX Runtime and onnx besides.
"""

import json
import math
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from edgetune import counting

Feed = Mapping[str, NDArray[Any]]
Shape = tuple[int, ...]

_LOG_ERRORS = 3
_CPU = "CPUExecutionProvider"
RUNS = 20
# Both sides of a copy: the second-level cache of a core has so much or more since about 2015.
CACHE_BYTES = 1 << 19
MEMORY_BYTES = 1 << 25
# ONNX Runtime's own operators, by the one of ONNX that counts the same: a prefix fewer, or another name.
_PREFIXES = ("QLinear", "Nhwc", "Fused", "Skip", "Bias", "Fast", "Quick", "Simplified")
_ALIASES = {
    **dict.fromkeys(("MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul"), "MatMul"),
    **dict.fromkeys(("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"), "Cast"),
    **dict.fromkeys(("ReorderInput", "ReorderOutput"), "Transpose"),
    **{"ConvInteger": "Conv", "QGemm": "Gemm", "TransposeMatMul": "MatMul"},
}


class Node(TypedDict):
    """One node as it ran, several of the file's fused into one where ONNX Runtime does so.

    `precision`: of its output, int8 also for uint8. `bytes`: read and written once, weights included. `operations`:
    as `counting` has them; None: not known.
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
        ran = _ran(optimised)
    times: dict[str, list[float]] = {}
    told: dict[str, dict[str, Any]] = {}
    for event in events:
        name = event["name"].removesuffix("_kernel_time")
        times.setdefault(name, []).append(event["dur"] * 1e-3)
        told[name] = event["args"]
    return [
        _node(name, told[name], found[1:] or found, ran.get(name, _Ran())) for name, found in times.items()
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


class _Ran(NamedTuple):
    """What the file that ran tells of a node, and the profiler does not; kernels repack their weights."""

    weights: Sequence[tuple[Shape, int]] = ()
    window: Shape = ()
    equation: str = ""


def _ran(optimised: Path) -> dict[str, _Ran]:
    """Return shape and bytes of the constants that each node reads, and the window of a pool; by node."""
    graph = onnx.load(str(optimised)).graph
    sizes = {
        item.name: (
            tuple(item.dims),
            math.prod(item.dims) * onnx.helper.tensor_dtype_to_np_dtype(item.data_type).itemsize,
        )
        for item in graph.initializer
    }
    found = {}
    for node in graph.node:
        said = {item.name: item for item in node.attribute}
        window = tuple(said["kernel_shape"].ints) if "kernel_shape" in said else ()
        equation = said["equation"].s.decode() if "equation" in said else ""
        found[node.name] = _Ran([sizes[name] for name in node.input if name in sizes], window, equation)
    return found


def _node(name: str, told: Mapping[str, Any], times: Sequence[float], ran: _Ran) -> Node:
    reads, writes = (_tensors(told.get(f"{side}_type_shape", [])) for side in ("input", "output"))
    kind = str(told.get("op_name", ""))
    precision = writes[0][0] if writes else ""
    moved = int(told.get("activation_size", 0)) + int(told.get("output_size", 0))
    return {
        "name": name,
        "kind": kind,
        "precision": {"float": "fp32", "float16": "fp16", "uint8": "int8"}.get(precision, precision),
        "ms": float(np.median(times)),
        "bytes": moved + sum(size for _, size in ran.weights),
        "operations": operations(
            kind,
            [shape for _, shape in reads],
            [shape for _, shape in writes],
            [shape for shape, _ in ran.weights],
            ran.window,
            ran.equation,
        ),
    }


def _tensors(listed: Sequence[Mapping[str, Sequence[int]]]) -> list[tuple[str, Shape]]:
    return [(kind, tuple(shape)) for entry in listed for kind, shape in entry.items()]


def operations(
    kind: str,
    reads: Sequence[Shape],
    writes: Sequence[Shape],
    weights: Sequence[Shape],
    window: Shape = (),
    equation: str = "",
) -> int | None:
    """Return how many operations a node takes, as `counting` has them; None where that cannot be told.

    Args:
        kind: its operator, which may be one of ONNX Runtime's own.
        reads: shapes of what it reads, its data first.
        writes: shapes of what it writes.
        weights: shapes of the constants that it reads.
        window: of a pool.
        equation: of an Einsum.
    """
    operator = _in_onnx(kind)
    if operator in ("Conv", "ConvTranspose"):
        # Scales and zero points stand between data and weights, or the kernel has taken the weights away.
        reads = [*reads[:1], max((*weights, *reads[1:]), key=len, default=())]
    return counting.operations(operator, reads, writes, window, equation)


def _in_onnx(kind: str) -> str:
    while kind not in _ALIASES and (prefix := next((p for p in _PREFIXES if kind.startswith(p)), "")):
        kind = kind[len(prefix) :]
    return _ALIASES.get(kind, kind)
