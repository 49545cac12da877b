"""Reports as a pipeline leaves them: a quickstart, one for a Jetson without a latency, one that failed."""

import math
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import strategies as st

from edgetune.recipe import Gates
from edgetune.report.assemble import with_device

Report = dict[str, Any]


def _wilson(right: int, images: int) -> tuple[float, float]:
    share, z = right / images, 1.96
    middle = (share + z * z / (2 * images)) / (1 + z * z / images)
    half = z * math.sqrt(share * (1 - share) / images + z * z / (4 * images**2)) / (1 + z * z / images)
    return middle - half, min(middle + half, 1.0)


def _sign_test(worse: int, better: int) -> float:
    tail = sum(math.comb(worse + better, k) for k in range(min(worse, better) + 1))
    return min(1.0, 2 * tail / 2 ** (worse + better))


def _judged(classes: list[str], each: int, fp32_wrong: int, int8_wrong: int, seed: int) -> Report:
    """Accuracy and flips that fit each other: predictions are made up, the rest is counted."""
    dice = random.Random(seed)
    truth = np.repeat(np.arange(len(classes)), each)
    fp32, int8 = truth.copy(), truth.copy()
    missed = dice.sample(range(len(truth)), fp32_wrong + int8_wrong)
    for index in missed:
        other = (truth[index] + dice.randrange(1, len(classes))) % len(classes)
        int8[index] = other
        if index in missed[:fp32_wrong]:
            fp32[index] = other
    if fp32_wrong:
        int8[missed[0]] = truth[missed[0]]
    models = {}
    for name, said in (("fp32", fp32), ("int8", int8)):
        right = int((said == truth).sum())
        low, high = _wilson(right, len(truth))
        models[name] = {"right": right, "top1": right / len(truth), "low": low, "high": high,
                        "confidence": 0.97, "ece": 0.021 if name == "fp32" else 0.0294}  # fmt: skip
    confusion = {}
    for name, said in (("fp32", fp32), ("int8", int8)):
        table = np.zeros((len(classes), len(classes)), int)
        np.add.at(table, (truth, said), 1)
        confusion[name] = table.tolist()
    changed = np.flatnonzero(fp32 != int8)
    worse = int(((fp32 == truth) & (int8 != truth)).sum())
    better = int(((fp32 != truth) & (int8 == truth)).sum())
    points = 100 * (worse - better) / len(truth)
    spread = 196 * math.sqrt(worse + better) / len(truth)
    agreement = 1 - len(changed) / len(truth)
    low, high = _wilson(len(truth) - len(changed), len(truth))
    return {
        "accuracy": {
            "images": len(truth),
            "models": models,
            "drop": {
                "points": points, "low": points - spread, "high": points + spread,
                "p_value": _sign_test(worse, better), "worse": worse, "better": better,
            },
            "per_class": [
                {"name": name, "images": each, "fp32": int(((fp32 == i) & (truth == i)).sum()),
                 "int8": int(((int8 == i) & (truth == i)).sum()),
                 "flips": int(((int8 != fp32) & (truth == i)).sum())}
                for i, name in enumerate(classes)
            ],
            "confusion": confusion,
            "confused": _confused(classes, confusion),
        },
        "parity": {
            "fp32_vs_torch": {"images": 8, "difference": 3.8e-6, "difference_over_std": 1.3e-6,
                              "cosine_mean": 1.0, "agreement": 1.0},
            "int8_vs_fp32": {
                "images": len(truth), "cosine_mean": 0.99918, "cosine_min": 0.9861, "sqnr_db": 27.4,
                "difference": 1.93, "agreed": len(truth) - len(changed),
                "agreement": agreement, "agreement_low": low, "agreement_high": high,
                "flips": [
                    {"path": f"{classes[truth[i]]}/{i:04d}.png", "truth": classes[truth[i]],
                     "fp32": classes[fp32[i]], "int8": classes[int8[i]]}
                    for i in changed[:50]
                ],
            },
        },
    }  # fmt: skip


def _confused(classes: list[str], confusion: Report) -> list[Report]:
    """The fifty pairs that INT8 confuses most, as check counts them."""
    pairs = [
        {"truth": truth, "predicted": said, "int8": confusion["int8"][i][j], "fp32": confusion["fp32"][i][j]}
        for i, truth in enumerate(classes)
        for j, said in enumerate(classes)
        if i != j and confusion["int8"][i][j]
    ]
    return sorted(pairs, key=lambda pair: -pair["int8"])[:50]


def _timing(median: float, seed: int, memory: float) -> Report:
    dice = random.Random(seed)
    samples = np.round([median * (0.97 + dice.gammavariate(2.0, 0.02)) for _ in range(400)], 4)
    samples[::97] = np.round(samples[::97] * 1.9, 4)
    return {
        "count": 400, "warmup": 50, "p50_ms": float(np.median(samples)),
        "p90_ms": float(np.quantile(samples, 0.9)), "p99_ms": float(np.quantile(samples, 0.99)),
        "mean_ms": float(samples.mean()), "min_ms": float(samples.min()), "max_ms": float(samples.max()),
        "cv": float(samples.std() / samples.mean()),
        "p50_low_ms": float(np.median(samples) * 0.993), "p50_high_ms": float(np.median(samples) * 1.008),
        "samples_ms": samples.tolist(), "peak_memory_mb": memory,
    }  # fmt: skip


def _epochs(best: float, count: int, seed: int, *, rate: float = 0.45, phases: bool = False) -> list[Report]:
    dice = random.Random(seed)
    rows = []
    for epoch in range(1, count + 1):
        top1 = best - (best - 0.1) * rate**epoch - abs(dice.gauss(0, 0.004))
        rows.append({
            "epoch": epoch, "phase": ("head" if epoch <= count // 3 else "deeper") if phases else "all",
            "loss": 2.1 * 0.55**epoch + 0.31, "train_top1": min(top1 + 0.01, 1.0),
            "val_loss": 1.9 * 0.57**epoch + 0.34, "val_top1": top1,
            "learning_rate": 0.004 * (1 - epoch / (count + 1)), "seconds": 1.6,
            "images_per_second": 770.0, "waited_seconds": 0.02,
        })  # fmt: skip
    return rows


def _layers(blocks: int) -> list[Report]:
    rows = [
        {
            "name": "/features/features.0/Conv",
            "op": "Conv",
            "precision": "INT8",
            "why": "",
            "weight_bytes": 432,
        }
    ]
    for block in range(1, blocks + 1):
        for part, weight in (("expand", 1536), ("depthwise", 864), ("project", 1536)):
            rows.append({"name": f"/features/features.{block}/{part}/Conv", "op": "Conv", "precision": "INT8",
                         "why": "", "weight_bytes": weight * block})  # fmt: skip
        rows.append({"name": f"/features/features.{block}/Add", "op": "Add", "precision": "INT8", "why": "",
                     "weight_bytes": 0})  # fmt: skip
    rows.append({"name": "/pool/ReduceMean", "op": "ReduceMean", "precision": "FP32",
                 "why": "no INT8 kernel is faster here", "weight_bytes": 0})  # fmt: skip
    rows.append(
        {"name": "/classifier/Gemm", "op": "Gemm", "precision": "INT8", "why": "", "weight_bytes": 12800}
    )
    return rows


def _heard(layers: list[Report], seed: int, *, gains: bool = False, floats: int = 0) -> list[Report]:
    """Layers with what their outputs came to; some of them in float."""
    dice = random.Random(seed)
    found, sqnr = [], 44.0
    for layer in layers:
        if layer["op"] not in ("Conv", "Gemm"):
            found.append(layer)
        elif floats and "depthwise" in layer["name"]:
            floats -= 1
            found.append(layer | {"precision": "FP32", "why": "left in float: it hurts"})
        else:
            sqnr += dice.uniform(-3.5, 2.8)
            more = {"gain_db": dice.uniform(-0.1, 1.5)} if gains else {}
            found.append(layer | more | {"sqnr_db": sqnr, "operations": dice.randrange(10**5, 10**7)})
    return found


def _settling(images: int, last: float = 0.03) -> list[Report]:
    steps = [2**k for k in range(20) if 2**k < images]
    return [{"images": n, "median": last * (len(steps) - k) / 3, "p95": last * (len(steps) - k)}
            for k, n in enumerate(steps)] + [{"images": images, "median": 0.0, "p95": 0.0}]  # fmt: skip


def _ladder(*rungs: tuple[str, bool, float | None, str]) -> list[Report]:
    return [{"rung": name, "kept": kept, "seconds": 3.2 * place if sqnr else 0.0, "sqnr_db": sqnr,
             "agreement": 0.96875 if sqnr else None, "agreement_expected": 0.9712 if sqnr else None,
             "agreement_at_least": 0.9568 if sqnr else None, "why": why}
            for place, (name, kept, sqnr, why) in enumerate(rungs)]  # fmt: skip


def _gate(name: str, title: str, value: float | None, limit: float, low: float | None = None,
          high: float | None = None, *, direction: str = "max", unit: str = "", status: str = "pass",
          uncertain: bool = False, why: str = "") -> Report:  # fmt: skip
    return {"name": name, "title": title, "value": value, "limit": limit, "direction": direction,
            "unit": unit, "low": low, "high": high, "status": status, "uncertain": uncertain, "why": why,
            "label": f"{status} (uncertain)" if uncertain else status}  # fmt: skip


def _gates(report: Report) -> list[Report]:
    fall, near = report["accuracy"]["drop"], report["parity"]["int8_vs_fp32"]
    low, share, high = (100 * near[key] for key in ("agreement_low", "agreement", "agreement_high"))
    return [
        _gate("top1_drop_points", "top-1 drop, FP32 to INT8", fall["points"], 1.0, fall["low"], fall["high"],
              unit="points", status="pass" if fall["points"] <= 1 else "fail",
              uncertain=fall["low"] <= 1 < fall["high"]),
        _gate("fp32_difference", "FP32 ONNX against torch, largest difference", 1.3e-6, 1e-3,
              unit="of the logits' deviation"),
        _gate("int8_cosine_min", "INT8 against FP32, mean cosine", near["cosine_mean"], 0.99,
              near["cosine_mean"] - 2e-4, near["cosine_mean"] + 2e-4, direction="min",
              status="pass" if near["cosine_mean"] >= 0.99 else "fail"),
        _gate("int8_agreement_percent_min", "INT8 against FP32, same top-1", share, 95.0, low, high,
              direction="min", unit="%", status="pass" if share >= 95 else "fail",
              uncertain=low < 95 <= high),
    ]  # fmt: skip


def _counts(classes: list[str], train: int, val: int, test: int) -> Report:
    return {
        "train": {name: train + i % 3 for i, name in enumerate(classes)},
        "val": dict.fromkeys(classes, val),
        "test": dict.fromkeys(classes, test),
    }


def quickstart() -> Report:
    """Digits on this machine: everything was run, everything passed."""
    digits = [str(i) for i in range(10)]
    report = _judged(digits, 36, 3, 1, seed=3)
    pretrained, scratch = _epochs(0.9954, 10, 1, rate=0.3), _epochs(0.972, 10, 2, rate=0.66)
    report |= {
        "schema_version": 1,
        "edgetune": "0.1.0",
        "made_at": "2026-11-21T10:00:00+00:00",
        "name": "quickstart",
        "command": "edgetune quickstart",
        "verdict": {"status": "pass", "sentence": "INT8 keeps 99.2% of 99.2% top-1 on 360 images and is 1.9x "
                    "faster on this CPU; all 5 gates passed."},
        "recipe": {"schema_version": 1, "name": "quickstart", "profile": "host-cpu",
                   "model": {"name": "mobilenet_v2_035_cifar10", "weights": "default", "channels": 1},
                   "finetune": {"strategy": "full", "epochs": 10, "batch": 64}},
        "profile": {"label": "host-cpu:default", "title": "This machine's CPU", "kind": "host",
                    "rendering": "cpu"},
        "machine": {"cpu": "Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz", "cores": 2, "memory_gb": 24.0,
                    "python": "3.11.7", "system": "Linux x86_64", "vnni": True,
                    "libraries": {"torch": "2.15.0", "torchvision": "0.29.0", "onnx": "1.23.2",
                                  "onnxruntime": "1.31.0", "numpy": "2.4.1", "pillow": "12.0.0"}},
        "data": {"root": "/home/kim/.cache/edgetune/digits", "classes": digits,
                 "counts": _counts(digits, 122, 21, 36), "broken": [], "duplicates": [], "warnings": []},
        "training": {"strategy": "full", "optimizer": "adamw", "accelerator": "cpu", "seconds": 17.3,
                     "decode_seconds": 0.4, "stopped_early": False, "best_epoch": 9,
                     "val_top1": pretrained[8]["val_top1"], "parameters": 408_890,
                     "trained_parameters": 408_890, "epochs": pretrained},
        "transfer": {"images": 360, "split": "test", "pretrained_top1": 0.9917, "scratch_top1": 0.9583,
                     "points": 3.33, "low": 1.4, "high": 6.0, "epochs_pretrained": pretrained,
                     "epochs_scratch": scratch},
        "artifacts": [
            {"role": role, "kind": kind, "path": role, "digest": f"{index + 7:x}3b1c9e04" * 8, "bytes": size}
            for index, (role, kind, size) in enumerate(
                [("checkpoint", "checkpoint", 1_700_331), ("onnx", "onnx", 1_623_410),
                 ("int8", "qdq", 514_220)]
            )
        ],
        "layers": _heard(_layers(10), 7),
        "calibration": {"images": 96, "ranges": "percentile", "preset": "standard", "warnings": [],
                        "convergence": _settling(96), "enough_images": 64},
        "quantization": {"method": "auto", "held_images": 32, "seconds": 41.0, "ladder": _ladder(
            ("ranges", True, 27.9, ""), ("equalization", False, 26.71, "5023 channels scaled"),
            ("centering", True, 28.1, "19 of 54 tensors shifted"),
            ("bias", True, 28.3, ""), ("rounding", True, 31.2, ""),
            ("reconstruction", False, None, "torch has no Einsum"),
            ("training", True, 33.04, "loss 0.0041 to 0.0007"))},
        "latency": {"engine": "onnxruntime CPU", "threads": 2, "batch": 1, "preset": "quick",
                    "models": {"fp32": _timing(0.512, 4, 71.3), "int8": _timing(0.266, 5, 64.1)},
                    "speedup": {"value": 1.93, "low": 1.9, "high": 1.96}, "trusted": True, "why": ""},
        "size": {"fp32_bytes": 1_623_410, "int8_bytes": 514_220},
        "left_to_do": [],
        "reproduce": ["pip install edgetune==0.1.0", "edgetune quickstart"],
    }  # fmt: skip
    report["gates"] = [
        *_gates(report),
        _gate("speedup_min", "INT8 against FP32, speed", 1.93, 1.5, 1.9, 1.96, direction="min", unit="times"),
    ]
    return report


def _distillation(curve: list[Report]) -> Report:
    """A student that gained 3.3 points from a teacher seven times its cost, one network without a name."""

    def one(network: str, right: int, size: tuple[int, int | None], px: int, seconds: float | None) -> Report:
        return _share(right, 152) | {"network": network, "parameters": size[0], "operations": size[1],
                                     "size_px": px, "seconds": seconds}  # fmt: skip

    student = (2_226_434, 300_774_272)
    return {
        "images": 152, "split": "test",
        "models": {
            "teacher": one("resnet50", 149, (23_512_130, 4_089_184_256), 256, 1211.0),
            "alone": one("mobilenet_v2", 139, student, 224, 171.0),
            "distilled": one("mobilenet_v2", 144, student, 224, 214.0),
        },
        "gain": {"points": 3.29, "low": -0.4, "high": 7.6, "p_value": 0.125, "gained": 6, "lost": 1},
        "gap": {"points": 3.29, "low": 0.2, "high": 7.2, "p_value": 0.0625, "gained": 5, "lost": 0},
        "loss": "soft", "temperature": 4.0, "labels": 0.1, "features": {"features.13": "layer3"}, "views": 4,
        "unlabelled": 1200, "asking_seconds": 38.0, "asked_earlier": False, "warnings": [],
        "epochs_distilled": curve, "epochs_alone": [row | {"val_top1": row["val_top1"] - 0.03} for row in curve],
    }  # fmt: skip


def jetson() -> Report:
    """Photographs for a Jetson: no engine here, so no latency; a gate whose interval spans the limit."""
    classes = ["ants", "bees"]
    report = quickstart() | _judged(classes, 76, 8, 2, seed=1)
    epochs = _epochs(0.934, 9, 6, phases=True)
    for row in epochs[:3]:
        row["train_top1"] = None
    label = "jetson-orin-nano-8gb:15W@6.2"
    report |= {
        "name": "insects",
        "command": "edgetune run recipe.yaml",
        "verdict": {"status": "uncertain", "sentence": "INT8 keeps 94.1% of 94.7% top-1 on 152 images; all 4 "
                    "judged gates passed, 2 uncertain, 1 not judged."},
        "profile": {"label": label, "title": "Jetson Orin Nano 8GB", "kind": "jetson", "rendering": "weak"},
        "data": {"root": "/home/kim/photos/insects", "classes": classes,
                 "counts": _counts(classes, 102, 20, 76),
                 "broken": [["train/bees/IMG_0031.jpg", "truncated after 4,096 bytes"],
                            ["train/ants/notes.txt.jpg", "not an image"]],
                 "duplicates": [["train/ants/0013035.jpg", "test/ants/copy of 0013035.jpg"]],
                 "warnings": ["2 of 398 images are broken (0.5%)",
                              "1 image of test is also in train: its result counts too well"]},
        "training": {"strategy": "gradual", "optimizer": "sgd", "accelerator": "cpu", "seconds": 214.0,
                     "stopped_early": True, "best_epoch": 8, "val_top1": 0.931, "parameters": 2_226_434,
                     "trained_parameters": 1_206_722, "epochs": epochs},
        "transfer": None,
        "distillation": _distillation(epochs),
        "latency": None,
        "size": {"fp32_bytes": 8_902_113, "int8_bytes": 2_611_004},
        "left_to_do": [
            "Copy int8/model.onnx to the Jetson Orin Nano 8GB (JetPack 6.2, TensorRT 10.3.0): an engine must "
            "be built on the device that runs it.",
            "trtexec --onnx=model.onnx --saveEngine=model.plan --int8 --fp16 --skipInference "
            "--memPoolSize=workspace:512",
            "trtexec --loadEngine=model.plan --warmUp=2000 --duration=30 --useCudaGraph --useSpinWait",
            "Before timing, set the mode (15W) with nvpmodel and lock the clocks with jetson_clocks.",
        ],
        "reproduce": ["pip install edgetune==0.1.0", "edgetune run recipe.yaml"],
    }  # fmt: skip
    # As an edgetune wrote it that did not look at layers, ranges and confidence.
    report["layers"] = _layers(10)
    report["calibration"] = {"images": 128, "ranges": "minmax", "preset": "standard", "warnings": []}
    del report["quantization"]
    for model in report["accuracy"]["models"].values():
        del model["confidence"], model["ece"]
    for row in report["accuracy"]["per_class"]:
        del row["flips"]
    report["parity"]["int8_vs_fp32"]["exact"] = True
    report["accuracy"]["of"] = 153
    report["gates"] = [
        *_gates(report),
        _gate("latency_p50_ms", "INT8 latency, median", None, 4.0, unit="ms", status="not judged",
              why="no engine was built here: run it on the device"),
    ]  # fmt: skip
    return report


def failed() -> Report:
    """Thirty classes with long names, much lost by INT8, and a latency that is not to be trusted."""
    classes = [f"{kind} {part} of the northern hemisphere" if part == "beetle" else f"{kind} {part}"
               for kind in ("alpine", "common", "giant", "lesser", "spotted")
               for part in ("ant", "bee", "beetle", "hornet", "moth", "wasp")]  # fmt: skip
    report = quickstart() | _judged(classes, 20, 60, 60, seed=2)
    report |= {
        "name": "thirty-insects",
        "verdict": {
            "status": "fail",
            "sentence": "INT8 keeps 80.2% of 90.0% top-1 on 600 images; 3 of 4 gates failed "
            "(top-1 drop, FP32 to INT8, INT8 against FP32, mean cosine, INT8 against FP32, same top-1).",
        },
        "transfer": None,
    }
    report["data"] = report["data"] | {"classes": classes, "counts": _counts(classes, 122, 21, 20)}
    report["parity"]["int8_vs_fp32"] |= {"cosine_mean": 0.9712, "cosine_min": 0.61, "sqnr_db": 11.2}
    report["layers"] = _heard(_layers(17), 5, gains=True, floats=3)
    report["calibration"] = report["calibration"] | {
        "images": 24,
        "convergence": _settling(24, 0.09),
        "enough_images": None,
        "warnings": [
            "24 inputs are not enough for ranges to settle: from 16 to 24 inputs 5% of the scales moved "
            "by more than 9%; use more"
        ],
    }
    report["quantization"] = report["quantization"] | {
        "held_images": 8,
        "ladder": _ladder(
            ("ranges", True, 9.8, ""),
            (
                "mixed",
                True,
                11.2,
                "in float: " + ", ".join(f"/features/features.{block}/depthwise/Conv" for block in (1, 2, 3)),
            ),
        ),
    }
    report["latency"] = report["latency"] | {
        "trusted": False,
        "why": "the spread of FP32 is 31% of its mean: something else was running",
    }
    report["gates"] = _gates(report)
    return report


def _share(right: int, images: int) -> Report:
    low, high = _wilson(right, images)
    return {"images": images, "right": right, "top1": right / images, "low": low, "high": high}


def _built(name: str, agreed: int, right: int, host: int) -> Report:
    """An engine that was compared on 152 samples."""
    int8 = name == "int8"
    near = {"agreed": agreed, "agreement": agreed / 152, "difference": 0.31 if int8 else 0.004,
            "cosine_mean": 0.99981 if int8 else 0.999999, "sqnr_db": 36.2 if int8 else 71.4}  # fmt: skip
    near["agreement_low"], near["agreement_high"] = _wilson(agreed, 152)
    return near | {
        "build_seconds": 412.0 if int8 else 131.0, "plan_bytes": 2_911_044 if int8 else 4_820_112,
        "workspace_mb": 2048, "optimization_level": None, "memory_mb": 5.71 if int8 else 9.24,
        "layers": {"int8": 58, "fp16": 4, "fp32": 1, "other": 0} if int8
        else {"int8": 0, "fp16": 61, "fp32": 0, "other": 0},
        "reformats": 3 if int8 else 1, "fallbacks": ["/classifier/Gemm"] if int8 else [], "messages": [],
        "samples": 152, "accuracy": _share(right, 152), "host_accuracy": _share(host, 152),
    }  # fmt: skip


def _two_engines(factor: float, seed: int) -> Report:
    models = {name: _timing(ms * factor, seed + place, 0.0) for place, (name, ms) in
              enumerate({"fp16": 1.42, "int8": 0.83}.items())}  # fmt: skip
    for model in models.values():
        model |= {"p99_low_ms": model["p99_ms"] * 0.98, "p99_high_ms": model["p99_ms"] * 1.05}
    energy = {
        name: {"mj": mj * factor, "low": mj * factor * 0.99, "high": mj * factor * 1.01, "rails": ["VDD_IN"],
               "estimated": False}
        for name, mj in {"fp16": 12.4, "int8": 6.31}.items()
    }  # fmt: skip
    return {
        "engine": "TensorRT 10.3.0", "batch": 1, "rounds": 30, "models": models,
        "speedup": {"value": 1.71, "low": 1.68, "high": 1.74}, "trusted": True, "why": "", "energy": energy,
        "energy_why": "", "temperatures_c": {"gpu-thermal": [48.5, 55.1], "tj-thermal": [49.0, 56.2]},
    }  # fmt: skip


def on_device() -> Report:
    """The run for a Jetson with what came back from it: the engine agrees, and labels are few."""
    report = jetson()
    device = {
        "schema_version": 1, "bundle": "5c" * 32, "name": "insects", "tool": "TensorRT's Python bindings",
        "tensorrt": "10.3.0", "wanted": {"profile": report["profile"]["label"]}, "finished": True, "errors": {},
        "found": {"module": "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super",
                  "jetpack": "6.2", "l4t": "36.4.3", "cuda": "12.6.68", "power_mode": "15W",
                  "clocks_locked": True},
        "warnings": [{"code": "no_swap", "message": "no swap on a disk, and 7620 MiB of memory: a build that "
                      "needs more is killed", "remedy": "sudo swapon /swapfile"}],
        "samples": 152, "labelled": 152,
        "engines": {"fp16": _built("fp16", 152, 144, 144), "int8": _built("int8", 151, 142, 143)},
        "drop": {"images": 152, "points": 1.32, "low": -0.9, "high": 4.7, "worse": 2, "better": 0},
        "drop_from_fp32": {"images": 152, "points": 1.32, "low": -0.9, "high": 4.7, "worse": 2, "better": 0},
        "host": {"samples": 152, "agreed": 150, "agreement": 150 / 152,
                 "drop": {"images": 152, "points": 0.66, "low": -1.2, "high": 3.6}},
        "timing": {"compute": _two_engines(1.0, 31), "copies": _two_engines(1.06, 41)},
    }  # fmt: skip
    return with_device(report, device, Gates(latency_p99_ms=5.0, energy_mj=10.0), strict=False)


def on_dla() -> Report:
    """The same from a DLA that takes no Q/DQ, and leaves some layers to the GPU."""
    report = on_device()
    device = report["device"]
    device["found"]["module"] = "NVIDIA Jetson AGX Orin Developer Kit"
    device |= {"without_qdq": True, "wanted": device["wanted"] | {"dla_core": 0}}
    device["engines"]["fp16"] |= {"gpu_layers": 2, "gpu_names": ["/pool", "/flatten"], "all_layers": 64}
    gates = [f"/blocks.{index}/se/Mul" for index in range(1, 9)]
    device["engines"]["int8"] |= {"gpu_layers": 8, "gpu_names": gates, "all_layers": 64}
    return report


SAMPLES: dict[str, Callable[[], Report]] = {
    "quickstart": quickstart, "jetson": jetson, "failed": failed, "on-device": on_device, "on-dla": on_dla
}  # fmt: skip


@pytest.fixture(params=sorted(SAMPLES))
def any_report(request: pytest.FixtureRequest) -> Report:
    """Each of the sample reports."""
    return SAMPLES[request.param]()


@pytest.fixture(scope="session")
def samples() -> dict[str, Callable[[], Report]]:
    """The sample reports by name; each call makes a fresh one."""
    return SAMPLES


def _places(value: Any, here: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every key of every mapping in a report, and the first entries of its lists."""
    if isinstance(value, dict):
        inner = [place for key in value for place in _places(value[key], (*here, key))]
        return [(*here, key) for key in value] + inner
    if isinstance(value, list) and value and isinstance(value[0], dict | list):
        return _places(value[0], (*here, 0))
    return []


@st.composite
def _spoiled(draw: st.DrawFn) -> Report:
    report = SAMPLES[draw(st.sampled_from(sorted(SAMPLES)))]()
    every = [place for place in _places(report) if place[0] != "recipe"]
    assert len(every) > 100
    for place in draw(st.lists(st.sampled_from(every), min_size=1, max_size=12)):
        inner: Any = report
        for key in place[:-1]:
            inner = inner[key] if isinstance(inner, dict | list) else None
        if isinstance(inner, dict):
            inner[place[-1]] = draw(st.sampled_from([None, math.nan]))
    return report


@pytest.fixture
def spoiled() -> st.SearchStrategy[Report]:
    """Sample reports in which up to twelve values, small or large parts, are null or not a number."""
    return _spoiled()
