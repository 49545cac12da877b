"""What the stand-in for `trtexec` prints and writes, word for word as facts 3c and 3d have it: six digits, bare nan.

A record is what is known of one query, in ms: starts and ends of enqueueing, copy in, computation, copy out, then the
durations of copy in, computation, copy out and all three.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

_KEYS = (
    *("startEnqMs", "endEnqMs", "startH2dMs", "endH2dMs", "startComputeMs", "endComputeMs"),
    *("startD2hMs", "endD2hMs", "h2dMs", "computeMs", "d2hMs", "latencyMs"),
)

Record = tuple[float, ...]


_DLA = ("Conv", "Relu", "Clip", "Add", "MaxPool", "AveragePool", "Concat", "Gemm")


class Node(NamedTuple):
    """What is known of a layer of an ONNX file."""

    name: str
    op_type: str
    output: str


def known_flags(version: tuple[int, ...]) -> set[str]:
    """List every flag that a version takes."""
    table = Path(__file__).with_name("trtexec_flags.txt").read_text(encoding="utf-8")
    rows = [line.split() for line in table.splitlines() if not line.startswith("#")]
    return {flag for flag, since, until in rows if _parts(since) <= version < _parts(until)}


def _parts(version: str) -> tuple[int, ...]:
    return (99,) if version == "-" else tuple(int(part) for part in version.split("."))


def nodes_of(network: bytes) -> list[Node]:
    """Read the nodes of an ONNX file; ValueError where it is none. The onnx package takes long to import."""
    nodes = []
    for graph in _fields(network)[7]:
        for raw in _fields(graph).get(1, []):
            node = _fields(raw)
            name, kind, output = (node.get(field, [b""])[0].decode("utf-8") for field in (3, 4, 2))
            nodes.append(Node(name, kind, output))
    if not nodes:
        raise ValueError("no nodes")
    return nodes


def _fields(raw: bytes) -> dict[int, list[bytes]]:
    """Split a protocol buffer into the bytes of its fields, by number."""
    found: dict[int, list[bytes]] = {}
    place = 0
    while place < len(raw):
        key, place = _integer(raw, place)
        if key & 7 == 0:
            _, place = _integer(raw, place)
            continue
        length, place = {1: (8, place), 5: (4, place)}.get(key & 7) or _integer(raw, place)
        if key & 7 not in (1, 2, 5) or place + length > len(raw):
            raise ValueError("no protocol buffer")
        found.setdefault(key >> 3, []).append(raw[place : place + length])
        place += length
    return found


def _integer(raw: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = raw[place]
        value |= (byte & 127) << shift
        place, shift = place + 1, shift + 7
        if byte < 128:
            return value, place


def queries(count: int, warmup_ms: float, copies: bool) -> list[Record]:
    """Make up the records of a run, the same every time."""
    h2d, d2h = (0.0625, 0.03125) if copies else (0.0, 0.0)
    at, records = warmup_ms, []
    for index in range(count):
        compute = 1.25 + 0.0123456789 * ((index * 7) % 10)
        start, begin = at + 0.001, at + 0.001 + h2d
        end = begin + compute
        stamps = (at, at + 0.05, start, begin, begin, end, end, end + d2h)
        records.append((*stamps, h2d, compute, d2h, h2d + compute + d2h))
        at = end + d2h
    return records


def times(records: Sequence[Record]) -> str:
    """Write `--exportTimes`."""
    lines = [", ".join(f'"{key}" : {ms:g}' for key, ms in zip(_KEYS, r, strict=True)) for r in records]
    return "[\n  " + ", ".join(f"{{ {line} }}\n" for line in lines) + "]\n"


def outputs(values: Mapping[str, Any]) -> str:
    """Write `--exportOutput`: names as they are."""
    parts = []
    for name, array in values.items():
        words = ", ".join(f"{value:g}" for value in array.reshape(-1).tolist())
        shape = "x".join(map(str, array.shape))
        parts.append(
            f'{{ "name" : "{name}"\n  , "dimensions" : "{shape}"\n  , "values" : [ {words} ]\n  }}\n'
        )
    return "[\n  " + ", ".join(parts) + "]\n"


def profile(names: Sequence[str], medians: bool) -> str:
    """Write `--exportProfile`: names as they are."""
    count, total = 50, len(names) * (len(names) + 1) / 2
    lines = [f'  {{ "count" : {count} }}\n']
    for place, name in enumerate(names, 1):
        each = 0.01 * place
        median = f', "medianMs" : {each:g}' if medians else ""
        share = f'"percentage" : {100 * place / total:g}'
        lines.append(
            f', {{ "name" : "{name}", "timeMs" : {each * count:g}, "averageMs" : {each:g}{median}, {share} }}\n'
        )
    return "[\n" + "".join(lines) + "]\n"


def summary(records: Sequence[Record], version: tuple[int, ...], warmup: str) -> Iterator[tuple[str, str]]:
    """Give the lines of the summary with their levels."""
    count = len(records)
    wall = records[-1][7] - records[0][0]
    compute = [record[9] for record in records]
    latency = _line([record[11] for record in records], version)
    yield "I", f"Warmup completed 100 queries over {warmup} ms"
    yield "I", f"Timing trace has {count} queries over {wall / 1000:g} s"
    yield "I", "\n=== Trace details ===\nTrace averages of 10 runs:"
    yield "I", "\n=== Performance summary ==="
    yield "I", f"Throughput: {1000 * count / wall:g} qps"
    yield "I", f"Latency: {latency}"
    if version < (8, 4):
        yield "I", f"End-to-End Host Latency: {latency}"
    yield "I", f"Enqueue Time: {_line([record[1] - record[0] for record in records], version)}"
    yield "I", f"H2D Latency: {_line([record[8] for record in records], version)}"
    yield "I", f"GPU Compute Time: {_line(compute, version)}"
    yield "I", f"D2H Latency: {_line([record[10] for record in records], version)}"
    yield "I", f"Total Host Walltime: {wall / 1000:g} s"
    yield "I", f"Total GPU Compute Time: {sum(compute) / 1000:g} s"
    mean = sum(compute) / count
    spread = 100 * (sum((ms - mean) ** 2 for ms in compute) / count) ** 0.5 / mean
    if spread > (2.5 if version >= (10, 16) else 1.0):
        yield "W", f"* GPU compute time is unstable, with coefficient of variance = {spread:g}%."
    yield "I", "Explanations of the performance metrics are printed in the verbose logs.\n"


def _line(values: Sequence[float], version: tuple[int, ...]) -> str:
    ordered = sorted(values)
    count = len(ordered)
    parts = [
        f"min = {ordered[0]:g} ms",
        f"max = {ordered[-1]:g} ms",
        f"mean = {sum(ordered) / count:g} ms",
    ]
    parts.append(f"median = {(ordered[count // 2] + ordered[(count - 1) // 2]) / 2:g} ms")
    for percent in (90, 95, 99) if version >= (8, 5) else (99,):
        value = ordered[max(count - 1 - int((1 - percent / 100) * count), 0)]
        parts.append(f"percentile({percent}%) = {value:g} ms")
    return ", ".join(parts)


def layers(nodes: Sequence[Any], version: tuple[int, ...], given: set[tuple[str, str]]) -> str:
    """Write `--exportLayerInfo` as the inspector does: names alone unless asked for more."""
    if ("--profilingVerbosity", "detailed") not in given:
        return json.dumps({"Layers": [node.name for node in nodes]})
    quantized = any(node.op_type == "QuantizeLinear" for node in nodes)
    half = ("--fp16", "") in given or version >= (11,)
    told = []
    for node in nodes:
        of = "Int8" if quantized and node.op_type in ("Conv", "Gemm") else "Half" if half else "Float"
        words = f"Row major {of} format." if version < (10,) else f"{of} NC/32HW32"
        ends = [{"Name": node.output[0], "Dimensions": [1], "Format/Datatype": words}]
        told.append({"Name": node.name, "LayerType": node.op_type, "Inputs": ends, "Outputs": ends})
    # Metadata joins layers by a control character, which strict JSON does not take.
    told[0]["Metadata"] = "[ONNX Layer: a]\x1e[ONNX Layer: b]"
    text = json.dumps({"Layers": told, "Bindings": ["input", "output"]})
    return text.replace("\\u001e", "\x1e")


def placed(nodes: Sequence[Node]) -> Iterator[str]:
    """Give the lines that tell what runs where: nothing on a DLA where there is Q/DQ."""
    pairs = ("QuantizeLinear", "DequantizeLinear", "Constant")
    plain = [node for node in nodes if node.op_type not in pairs]
    there = [node for node in plain if node.op_type in _DLA and len(plain) == len(nodes)]
    yield "---------- Layers Running on DLA ----------"
    if there:
        yield f"[DlaLayer] {{ForeignNode[{there[0].name}...{there[-1].name}]}}"
    yield "---------- Layers Running on GPU ----------"
    yield from (f"[GpuLayer] {node.op_type.upper()}: {node.name}" for node in plain if node not in there)


def other_version(version: tuple[int, ...], of: Sequence[int]) -> str:
    """Say that a plan is of another version, as this one says it."""
    if version < (10,):
        return (
            "[TRT] 1: [stdArchiveReader.cpp::StdArchiveReader::32] Error Code 1: Serialization (Serialization "
            "assertion stdVersionRead == serializationVersion failed.Version tag does not match. Note: Current "
            "Version: 213, Serialized Engine Version: 232)"
        )
    theirs, ours = ".".join(map(str, of)), ".".join(map(str, [*version, 9]))
    return (
        "[TRT] IRuntime::deserializeCudaEngine: Error Code 6: API Usage Error (The engine plan file is not compatible "
        f"with this version of TensorRT, expecting library version {ours} got {theirs}, please rebuild.)"
    )
