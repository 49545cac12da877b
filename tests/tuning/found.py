"""What a search and a comparison leave as JSON, made up."""

import math
import random
from typing import Any


def a_search(*, int8: bool = True, trials: int = 14) -> dict[str, Any]:
    """A search with trials that went through, were stopped, failed; under a latency limit with `int8`."""
    dice = random.Random(0)
    found = []
    for number in range(trials):
        state = "failed" if number == 4 else "pruned" if number % 5 == 3 else "complete"
        rate = float(f"{10 ** dice.uniform(-4, -1):.3g}") if number else 0.003
        top = 0.93 - 0.15 * abs(math.log10(rate) + 2)
        last = 3 if state == "pruned" else 6
        curve = [[epoch, round(top * (1 - 0.5**epoch), 4)] for epoch in range(1, last + 1)]
        trial: dict[str, Any] = {
            "number": number, "state": state, "curve": [] if state == "failed" else curve, "tries": 1,
            "values": {"finetune.learning_rate": rate, "finetune.strategy": ("full", "gradual")[number % 2],
                       "finetune.weight_decay": None if number == 2 else 0.01},
            "top1": curve[-1][1] if state == "complete" else None,
            "error": "epoch 1, step 2 of 9: the loss is no finite number" if state == "failed" else "",
        }  # fmt: skip
        if state == "complete":
            trial |= {"seconds": 12.5, "val_loss": 0.4}
            trial |= {"latency_ms": 2.0 + 0.3 * number, "trusted": number != 7} if int8 else {}
        found.append(trial)
    done = [trial for trial in found if trial["top1"] is not None]
    able = [trial for trial in done if not int8 or trial["latency_ms"] <= 4.5]
    best = max(able, key=lambda trial: trial["top1"])
    front: list[dict[str, Any]] = []
    for trial in sorted(done, key=lambda trial: trial.get("latency_ms", 0)):
        if not front or trial["top1"] > front[-1]["top1"]:
            front.append(trial)
    return {
        "schema_version": 1, "edgetune": "0.1.0", "made_at": "2026-11-21T10:00:00+00:00", "name": "insects",
        "command": "edgetune tune recipe.yaml --trials 14", "objective": "int8" if int8 else "top1",
        "latency_ms": 4.5 if int8 else None, "profile": "host-cpu:default", "classes": 2,
        "images": {"train": 200, "val": 40, "test": 153}, "as_it_is": 0, "running": 0,
        "space": {"finetune.learning_rate": {"low": 1e-4, "high": 0.1, "log": True, "step": None},
                  "finetune.strategy": ["full", "gradual"], "finetune.weight_decay": [None, 0.01]},
        "winner": {
            "number": best["number"], "values": best["values"], "recipe": "best.yaml",
            "changed": {"finetune.learning_rate": {"was": 0.003}},
            "val": {"images": 40, "top1": best["top1"], "low": 0.78, "high": 0.965},
            "test": {"images": 153, "top1": 0.8824, "low": 0.821, "high": 0.9243}, "looks": [],
        },
        "importance": {"finetune.learning_rate": 0.81, "finetune.strategy": 0.15, "finetune.weight_decay": 0.04},
        "front": [trial["number"] for trial in front] if int8 else [], "trials": found,
    }  # fmt: skip


def _group(
    label: str, kind: str, tops: list[float], seconds: float, seeds: int, **more: Any
) -> dict[str, Any]:
    curve = [
        {"epoch": e, "images": 200.0 * e, "seconds": seconds * e, "top1": top,
         "low": top - 0.05 if seeds > 1 else None, "high": min(1.0, top + 0.05) if seeds > 1 else None}
        for e, top in enumerate(tops, 1)
    ]  # fmt: skip
    return {
        "label": label, "kind": kind, "runs": [f"runs/{kind}-{seed}" for seed in range(seeds)],
        "seeds": list(range(seeds)), "network": "mobilenet_v2", "accelerators": ["cpu"], "train_images": 200,
        "trained_parameters": 2562, "epochs": len(tops), "seconds": seconds * len(tops), "val_top1": max(tops),
        "curve": curve, "reached": None, "against": None,
        "test": {"images": 153, "each": [max(tops) - 0.01 * s for s in range(seeds)], "top1": max(tops) - 0.01,
                 "low": max(tops) - 0.06, "high": max(tops) - 0.001, "over": "seeds" if seeds > 1 else "inputs"},
        **more,
    }  # fmt: skip


def a_comparison() -> dict[str, Any]:
    """Five kinds of training; from scratch has one seed."""
    reached = {"epoch": 1, "images": 200.0, "seconds": 1.5}
    many = {"images": 153, "points": 18.3, "low": 12.0, "high": 24.6, "p_value": None}
    many |= {"seeds_low": 14.2, "seeds_high": 22.4}
    one = {"images": 153, "points": -4.6, "low": -9.9, "high": 0.4, "p_value": 0.118}
    one |= {"seeds_low": None, "seeds_high": None}
    early = {"reached": reached, "against": many}
    groups = [
        _group("from scratch", "from scratch", [0.5, 0.55, 0.63, 0.71], 12.0, 1),
        _group("feature-extractor", "feature-extractor", [0.88, 0.9, 0.91, 0.92], 0.4, 3, **early),
        _group("full, 200 images", "full", [0.7, 0.85, 0.9, 0.93], 12.0, 3, **early),
        _group("full, 50 images", "full", [0.5, 0.6, 0.65, 0.66], 4.0, 1, against=one, train_images=50),
        _group("distilled", "distilled", [0.75, 0.87, 0.93, 0.95], 14.0, 3, reached=reached),
    ]
    return {
        "command": "edgetune compare runs/*", "classes": 2, "reference": "from scratch", "reference_top1": 0.71,
        "warnings": ["one seed only (from scratch; full, 50 images): no interval over seeds is drawn"],
        "groups": groups,
    }  # fmt: skip
