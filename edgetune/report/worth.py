"""Says what a device's measures come to: whose fault a loss is, and whether INT8 is worth it there.

Only intervals decide: a winner is named where the whole interval lies on one side. It knows nothing of how
anything was measured or looks. It may import recipe, the gates and wording.
"""

from collections.abc import Mapping
from typing import Any

from edgetune.recipe import Gates
from edgetune.report import wording
from edgetune.report.gate_rows import TIMED_BY
from edgetune.report.gates import FEWEST_SAMPLES

Device = Mapping[str, Any]

# Where a recipe sets no limit, its default tells a loss from none.
AGREEMENT, DROP, HOST_AGREEMENT = 99.0, 1.0, 95.0
# Speed that INT8 must have over FP16 to be worth its trouble.
GAIN = 1.05


def diagnosis(device: Device, gates: Gates) -> dict[str, str]:
    """Tell a bad model from a runtime that differs.

    ONNX Runtime ran the very network that the engine was built of: where the engine names other classes, the
    runtime differs; where it agrees and both have lost accuracy against FP32, quantization has.

    Returns:
        `status` (`fine`, `model`, `runtime`, `both` or `not known`) and a `sentence`.
    """
    judged = "fp16" if no_int8(device) else "int8"
    engine = (device.get("engines") or {}).get(judged) or {}
    samples, agreement = engine.get("samples") or 0, engine.get("agreement")
    if agreement is None or samples < FEWEST_SAMPLES:
        few = f"{wording.count(samples, 'sample')} compared" if samples else "no sample was compared"
        said = f"Whether the engine computes what ONNX Runtime does is not known: {few}"
        return {"status": "not known", "sentence": f"{said}, and it takes {FEWEST_SAMPLES}."}
    limit = gates.engine_agreement_percent_min or AGREEMENT
    differs = 100 * agreement < limit
    unsure = (100 * engine["agreement_low"] < limit) != (100 * engine["agreement_high"] < limit)
    share = (
        f"{wording.percent(agreement)} of {wording.count(samples, 'sample')} "
        f"({_span(engine['agreement_low'], engine['agreement_high'])})"
    )
    lost, loss = _lost(device.get("host") or {}, gates)
    if differs:
        # Above this line it could be chance; below it, never.
        maybe = " (few samples: it may be chance)" if unsure else ""
        both = f" ONNX Runtime's INT8 is not good either: {loss}" if lost else ""
        return {
            "status": "both" if lost else "runtime",
            "sentence": f"The runtime differs: the {judged.upper()} engine names the same class as ONNX Runtime on "
            f"{share}{maybe}, and should on {limit:g}%.{'' if judged == 'fp16' else _other(device)}{both}",
        }
    same = f"The engine computes what ONNX Runtime does: same class on {share}."
    if lost:
        return {
            "status": "model",
            "sentence": f"The quantized model is bad, not the runtime. {same} But {loss}",
        }
    return {"status": "fine", "sentence": f"{same} {loss[0].upper()}{loss[1:]}" if loss else same}


def no_int8(device: Device) -> str:
    """Return why there is no INT8 engine, as a clause; empty where one was wanted."""
    return str((device.get("wanted") or {}).get("no_int8") or "")


def _other(device: Device) -> str:
    """Say whether FP16 differs too: then INT8 is not the reason."""
    fp16 = (device.get("engines") or {}).get("fp16") or {}
    if fp16.get("agreement") is None:
        return ""
    return f" The FP16 engine agrees with FP32 on {wording.percent(fp16['agreement'])}."


def _lost(host: Mapping[str, Any], gates: Gates) -> tuple[bool, str]:
    """Say what INT8 lost against FP32 in ONNX Runtime, before any engine; by labels, else by agreement."""
    drop = host.get("drop")
    if drop:
        limit = DROP if gates.top1_drop_points is None else gates.top1_drop_points
        points = drop["points"]
        said = f"in ONNX Runtime, INT8 {_points(points)} against FP32 ({_ends(drop)} points lost)."
        return points > limit, said
    if host.get("agreement") is None:
        return False, ""
    limit = gates.int8_agreement_percent_min or HOST_AGREEMENT
    said = f"in ONNX Runtime, INT8 names FP32's class on {wording.percent(host['agreement'])}."
    return 100 * host["agreement"] < limit, said


def worth(device: Device, gates: Gates, why: Mapping[str, str]) -> dict[str, str]:
    """Say whether INT8 is worth it on this device: speed and accuracy of both engines.

    Args:
        device: the measures.
        gates: how much accuracy may be lost.
        why: the diagnosis.

    Returns:
        `winner` (`int8`, `fp16` or `undecided`) and a `sentence`.
    """
    if no_int8(device):
        return {"winner": "fp16", "sentence": f"No: {no_int8(device)}. FP16 is what runs there."}
    timing = (device.get("timing") or {}).get(TIMED_BY) or {}
    speedup, drop = timing.get("speedup"), device.get("drop")
    faster, speed = _speed(speedup, timing)
    kept, accuracy = _kept(drop, gates)
    facts = f"INT8 {speed}, and {accuracy}."
    if why["status"] in ("runtime", "both"):
        return {"winner": "undecided", "sentence": f"Not before the runtime's difference is found. {facts}"}
    if faster is False or kept is False:
        reason = "INT8 is not faster here" if faster is False else "INT8 loses too much accuracy"
        return {"winner": "fp16", "sentence": f"No, FP16 is the better choice: {reason}. {facts}"}
    if faster and kept:
        return {"winner": "int8", "sentence": f"Yes, INT8 is worth it here. {facts}"}
    return {"winner": "undecided", "sentence": f"Not decided. {facts}"}


def _speed(speedup: Mapping[str, float] | None, timing: Mapping[str, Any]) -> tuple[bool | None, str]:
    """Return whether INT8 is faster (None: not known), and a phrase."""
    if not speedup:
        return None, "was not timed against FP16"
    span = wording.interval(speedup["low"], speedup["high"], "times")
    said = f"is {wording.times(speedup['value'])} as fast as FP16 ({span})"
    if not timing.get("trusted"):
        return None, f"{said}, but that timing is not to be trusted"
    if speedup["low"] > 1:
        return True, said
    # So little buys nothing for the accuracy that it may cost.
    if speedup["high"] < GAIN:
        return False, said
    return None, f"{said}, so which is faster is open"


def _kept(drop: Mapping[str, Any] | None, gates: Gates) -> tuple[bool | None, str]:
    """Return whether INT8 keeps FP16's accuracy (None: not known), and a phrase."""
    if not drop:
        return None, "no labelled sample says what accuracy it costs"
    limit = DROP if gates.top1_drop_points is None else gates.top1_drop_points
    images = wording.count(drop["images"], "labelled sample")
    said = f"{_points(drop['points'])} on {images} ({_ends(drop)} points lost)"
    if drop["images"] < FEWEST_SAMPLES:
        return None, f"{said}: fewer than {FEWEST_SAMPLES} decide nothing"
    if drop["high"] <= limit:
        return True, said
    if drop["low"] > limit:
        return False, f"{said}, where {limit:g} may be lost"
    return (
        None,
        f"{said}: whether that is within {limit:g} {'point' if limit == 1 else 'points'} takes more labelled samples",
    )


def _points(points: float) -> str:
    if points == 0:
        return "loses no accuracy"
    return f"{'loses' if points > 0 else 'gains'} {wording.points(abs(points))} points of accuracy"


def _ends(drop: Mapping[str, Any]) -> str:
    return wording.interval(drop["low"], drop["high"], "points").removesuffix(" points")


def _span(low: float, high: float) -> str:
    return wording.interval(100 * low, 100 * high, "%")
