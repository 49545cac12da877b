"""What in a hardware profile contradicts itself, or what is known of NVIDIA's chips and TensorRT.

It looks at plain values, so that one wrong key hides no other: what is missing or of a wrong type is left to the
model. It knows no files. It imports nothing of edgetune.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

Values = Mapping[str, Any]
Found = Iterator[tuple[tuple[str, ...], str]]

# From here on Q/DQ scales may be FP16, which types written into the graph need.
STRONG_OPSET = 19
# NVIDIA: strong typing is fully available from this TensorRT on; the device program builds no other from there.
STRONG_SINCE = (10, 12)
SUPER_SINCE = (6, 2)
# Data sheets round: 20.5 TOPS are sold as 20.
TOLERANCE = 0.03
# The highest opset that TensorRT's ONNX parser reads, from a version on: onnx-tensorrt's operators.md, and from
# 10.15 on NVIDIA's guide. Below 8.0 nothing is known here.
OPSETS = (((8, 0), 13), ((8, 4), 17), ((10, 0), 20), ((10, 12), 24), ((11, 0), 25))
# The IR version that came with an opset (ONNX, docs/Versioning.md): a reader of the one reads the other.
IR_OF_OPSET = {
    7: 3, 8: 3, 9: 4, 10: 5, 11: 6, 12: 7, 13: 7, 14: 7, 15: 8, 16: 8, 17: 8, 18: 8, 19: 9, 20: 9, 21: 10, 22: 10,
    23: 11, 24: 12, 25: 13, 26: 13,
}  # fmt: skip


class Chip(NamedTuple):
    """What is known of a GPU by its compute capability.

    Attributes:
        int8: dense operations (a multiplication and an addition are two) of an SM in a cycle; 0: no INT8 path.
        fp16: the same; on chips with tensor cores those, with FP16 sums.
        sms: the most that a Jetson with it has; 0: it is in no Jetson.
        dlas: the most that a Jetson with it has.
    """

    int8: int
    fp16: int
    sms: int = 0
    dlas: int = 0


# Maxwell, Pascal: 128 cores x 2, twice in FP16. Volta of Xavier: 8 tensor cores x 256 in INT8 (22.6 TOPS at
# 1377 MHz). Orin: checked against every marketed TOPS within 1%. Ada and Ampere of desktops: NVIDIA's white papers
# (284 and 660.6 dense TOPS of RTX 3090 and 4090). Thor: 517 dense FP8 TOPS at 1575 MHz, INT8 taken to be the same.
CHIPS = {
    "5.3": Chip(0, 512, 1),
    "6.2": Chip(0, 512, 2),
    "7.2": Chip(2048, 1024, 8, 2),
    "8.6": Chip(2048, 1024),
    "8.7": Chip(4096, 2048, 16, 2),
    "8.9": Chip(2048, 1024),
    "11.0": Chip(16384, 8192, 20),
}
# What no Jetson and no GPU lies outside of by far: beyond it a figure is in another unit.
UNITS = {
    "memory_gb": (0.5, 1024, "GB"),
    "l2_mb": (0.05, 200, "MiB"),
    "gpu_mhz": (50, 5000, "MHz"),
    "bandwidth_gb_s": (2, 20_000, "GB/s"),
    "power_w": (1, 2000, "W"),
}
PEAKS = {"int8_dense_tops": "int8", "fp16_dense_tflops": "fp16"}


def peak(capability: str, figure: str, sms: float, mhz: float) -> float | None:
    """Return a dense peak in 10^12 operations a second: SMs x operations per cycle x clock; None: not known.

    Args:
        capability: compute capability.
        figure: `int8_dense_tops` or `fp16_dense_tflops`.
        sms: that are on.
        mhz: the GPU's clock.
    """
    chip = CHIPS.get(capability)
    return getattr(chip, PEAKS[figure]) * sms * mhz * 1e-6 if chip else None


def contradictions(values: Values) -> Found:
    """Name what cannot be true together, each with the key to look at and what to write instead.

    Args:
        values: of a profile, as its file has them, with what it inherits.
    """
    modes, jetpacks = _entries(values, "modes"), _entries(values, "jetpacks")
    yield from (((key,), said) for key, said in _units(values))
    yield from _whole(values, modes, jetpacks)
    yield from _accelerators(values)
    for name, mode in modes.items():
        yield from (((("modes", name, key), said)) for key, said in [*_units(mode), *_mode(values, mode)])
    yield from _order(modes)
    for name, jetpack in jetpacks.items():
        yield from (((("jetpacks", name, key), said)) for key, said in _jetpack(values, name, jetpack, modes))


def _units(values: Values) -> Iterator[tuple[str, str]]:
    for key, (least, most, unit) in UNITS.items():
        value = _number(values, key)
        if value and not least <= value <= most:
            yield (
                key,
                f"{value:g} {unit} is none that there is ({least:g} to {most:g}): is it in another unit?",
            )


def _whole(values: Values, modes: Mapping[str, Values], jetpacks: Mapping[str, Values]) -> Found:
    kind = values.get("kind")
    if modes and values.get("default_mode") not in list(modes):
        yield ("default_mode",), f"{values.get('default_mode')!r} is none of modes: {', '.join(modes)}"
    if kind == "host":
        if not values.get("host"):
            yield ("host",), "missing; a host profile needs opset, ir and rendering here"
        if jetpacks:
            yield ("jetpacks",), "a host has none: leave them out, or write kind: jetson"
        return
    if kind in ("jetson", "desktop"):
        if values.get("host"):
            yield ("host",), f"is for kind: host; a {kind} says the same per entry of jetpacks"
        if not jetpacks:
            yield ("jetpacks",), f"missing; a {kind} needs at least one, with its TensorRT"
        elif values.get("default_jetpack") not in list(jetpacks):
            known = ", ".join(jetpacks)
            yield ("default_jetpack",), f"{values.get('default_jetpack')!r} is none of jetpacks: {known}"


def _accelerators(values: Values) -> Found:
    capability, cores = str(values.get("compute_capability") or ""), _number(values, "dla_cores") or 0
    chip = CHIPS.get(capability)
    most = chip.dlas if chip and values.get("kind") == "jetson" else 0
    title = str(values.get("title") or "")
    if "orin nano" in title.lower():
        most = 0
    if cores > most and (chip or values.get("kind") != "jetson"):
        has = f"at most {most} DLAs" if most else "no DLA"
        shown = f" (compute capability {capability})" if capability else ""
        yield ("dla_cores",), f"{cores:g}, but {title or 'this chip'}{shown} has {has}"
    able = values.get("int8", True)
    if chip and able is not False and not chip.int8:
        yield ("int8",), f"compute capability {capability} has no INT8 path in TensorRT: write int8: false"
    if able is False and (
        values.get("kind") == "host"
        or any(jetpack.get("typing") == "strong" for jetpack in _entries(values, "jetpacks").values())
    ):
        # Where types are in the graph, quantizing is what writes the FP16 network.
        yield ("int8",), "false is for GPUs whose engines are weakly typed alone"


def _mode(values: Values, mode: Values) -> Iterator[tuple[str, str]]:
    capability = str(values.get("compute_capability") or "")
    chip = CHIPS.get(capability)
    sms, mhz = _number(mode, "sms"), _number(mode, "gpu_mhz")
    # What a clock in another unit makes of the peaks would hide where the mistake is.
    mhz = None if any(key == "gpu_mhz" for key, _ in _units(mode)) else mhz
    int8, fp16 = _number(mode, "int8_dense_tops"), _number(mode, "fp16_dense_tflops")
    if sms and chip and chip.sms and values.get("kind") == "jetson" and sms > chip.sms:
        yield "sms", f"{sms:g}, but no Jetson of compute capability {capability} has more than {chip.sms}"
    without = values.get("int8") is False or bool(chip and not chip.int8)
    if int8 and without:
        yield "int8_dense_tops", f"{int8:g}, but this GPU has no INT8 path: leave it out"
    formula = False
    for key, value in (("int8_dense_tops", int8), ("fp16_dense_tflops", fp16)):
        right = peak(capability, key, sms, mhz) if sms and mhz else None
        if value and right and not _close(value, right):
            formula = True
            yield (
                key,
                (
                    f"{value:g}, but {sms:g} SMs x {getattr(chip, PEAKS[key])} operations per cycle x {mhz:g} MHz "
                    f"make {right:.3g}; correct one of them (peaks are dense: half of a sparse figure)"
                ),
            )
    halves = chip.int8 == 2 * chip.fp16 if chip else False
    if int8 and fp16 and halves and not formula and not _close(2 * fp16, int8):
        yield "fp16_dense_tflops", f"{fp16:g}, but on this chip it is half of INT8's {int8:g}"
    figures = set(mode) - {"source", "sources", "confidence", "super"}
    sources = mode.get("sources")
    for key in sources if isinstance(sources, Mapping) else ():
        if key not in figures:
            yield (
                "sources",
                f"{key!r} is no figure of this mode: {', '.join(sorted(figures)) or 'it has none'}",
            )


def _order(modes: Mapping[str, Values]) -> Found:
    """A mode with more power has no lower peak and no slower memory."""
    for name, mode in modes.items():
        power = _number(mode, "power_w")
        for other, frugal in modes.items():
            less = _number(frugal, "power_w")
            if power is None or less is None or power <= less:
                continue
            for key in (*PEAKS, "bandwidth_gb_s"):
                here, there = _number(mode, key), _number(frugal, key)
                if here and there and here < there:
                    said = f"{here:g}, below the {there:g} of {other}, which has less power ({less:g} < {power:g} W)"
                    yield ("modes", name, key), said


def _jetpack(
    values: Values, name: str, jetpack: Values, modes: Mapping[str, Values]
) -> Iterator[tuple[str, str]]:
    listed = jetpack.get("modes")
    named = [mode for mode in listed if isinstance(mode, str)] if isinstance(listed, list | tuple) else []
    for mode in named:
        if mode not in modes:
            yield "modes", f"{mode!r} is none of this profile's modes: {', '.join(modes)}"
    early = values.get("kind") == "jetson" and version_of(name) and version_of(name) < SUPER_SINCE
    for mode in named or modes if early else ():
        if mode in modes and modes[mode].get("super") is True:
            yield "modes", f"offers {mode}, a Super mode, which begin with JetPack 6.2: list the others"
    opset, most, ir = (_number(jetpack, key) for key in ("opset", "opset_max", "ir"))
    tensorrt, typing = jetpack.get("tensorrt"), jetpack.get("typing")
    version = version_of(tensorrt) if isinstance(tensorrt, str) else ()
    reads = next((cap for since, cap in reversed(OPSETS) if version and version >= since), None)
    if most and reads and most > reads:
        yield "opset_max", f"{most:g}, but TensorRT {tensorrt} reads opset {reads} at most"
    if opset and most and opset > most:
        yield "opset", f"{opset:g} is above opset_max, {most:g}"
    least = IR_OF_OPSET.get(int(opset)) if opset else None
    if ir and least and ir < least:
        yield "ir", f"{ir:g}, but opset {opset:g} came with IR version {least}"
    if typing == "strong" and opset and opset < STRONG_OPSET:
        yield "opset", f"strong typing needs {STRONG_OPSET} or later"
    if version and typing in ("weak", "strong") and (typing == "strong") != (version >= STRONG_SINCE):
        right = "strong" if version >= STRONG_SINCE else "weak"
        yield "typing", f"{typing}, but TensorRT {tensorrt} takes {right}: strong typing begins with 10.12"


def version_of(text: str) -> tuple[int, ...]:
    """Return the major and minor number of a version; empty where there is none."""
    match = re.match(r"(\d+)(?:\.(\d+))?", text)
    return (int(match[1]), int(match[2] or 0)) if match else ()


def _close(value: float, right: float) -> bool:
    return abs(value - right) <= TOLERANCE * right


def _entries(values: Values, key: str) -> dict[str, Values]:
    found = values.get(key)
    if not isinstance(found, Mapping):
        return {}
    return {name: entry for name, entry in found.items() if isinstance(entry, Mapping)}


def _number(values: Values, key: str) -> float | None:
    value = values.get(key)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
