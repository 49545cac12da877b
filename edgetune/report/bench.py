"""The page of a latency measurement: bench.html, bench.json beside it, and its charts as pictures.

It may import artifact, machine and the report's other files.
"""

import datetime
from pathlib import Path
from typing import Any

import edgetune
from edgetune.artifact import disk_error, write_atomic
from edgetune.machine import machine
from edgetune.report import layers as of_layers
from edgetune.report import wording
from edgetune.report.render import write_page

SCHEMA_VERSION = 1
COLUMNS = ("Network", "p50", "95%", "p90", "p99", "Spread", "Runs", "Memory")


def publish(found: dict[str, Any], folder: Path) -> None:
    """Write bench.html, bench.json and the pictures.

    Raises:
        StageError: the disk is full, or the folder cannot be written.
    """
    from edgetune.report import charts_bench

    latency, here = found["latency"], machine()
    made_at = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    content = {
        "schema_version": SCHEMA_VERSION, "edgetune": edgetune.__version__, "made_at": made_at, "machine": here,
        **found,
    }  # fmt: skip
    spans = charts_bench.span_chart(latency["models"])
    parts = [
        (
            name, layers, of_layers.rows(layers["layers"]),
            charts_bench.layer_chart(name, of_layers.costliest(layers["layers"]), f"layers{place}"),
        )
        for place, (name, layers) in enumerate(latency["layers"].items())
    ]  # fmt: skip
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / "latency.svg", charts_bench.picture(spans))
        for place, (_, _, _, chart) in enumerate(parts):
            if chart:
                write_atomic(folder / f"layers{place or ''}.svg", charts_bench.picture(chart))
    except OSError as error:
        raise disk_error(error, folder) from error
    batch = [f"batch {latency['batch']}"] if latency["batch"] else []
    write_page(
        "bench.html.j2", content, folder / "bench",
        title=" and ".join(latency["models"]) if len(latency["models"]) < 3 else f"{len(latency['models'])} networks",
        eyebrow="edgetune bench", version=edgetune.__version__, beside="bench.json",
        meta=[here["cpu"], latency["engine"], wording.count(latency["threads"], "thread"), *batch,
              f"preset {latency['preset']}", wording.when(made_at)],
        latency=latency, columns=COLUMNS, rows=rows(latency["models"]), also=also(latency), spans=spans,
        layer_columns=of_layers.COLUMNS, parts=parts, gates=gate_rows(found["gates"], latency["why"]),
        offline=offline_rows(latency),
    )  # fmt: skip


def rows(models: dict[str, Any]) -> list[list[str]]:
    """Return the table of latencies."""
    ms = wording.milliseconds
    return [
        [
            name, ms(one["p50_ms"]), wording.interval(one["p50_low_ms"], one["p50_high_ms"], "ms"), ms(one["p90_ms"]),
            ms(one["p99_ms"]), wording.percent(one["cv"]), wording.count(one["count"]),
            f"{wording.number(one['peak_memory_mb'])} MB" if one.get("peak_memory_mb") else wording.NONE,
        ]
        for name, one in models.items()
    ]  # fmt: skip


def also(latency: dict[str, Any]) -> list[tuple[str, str, list[list[str]]]]:
    """Return what else was timed: its title, why it is not to be trusted, its rows."""
    parts = (("compute", "The computation alone"), ("end_to_end", "From the image file to the answer"))
    return [
        (title, latency[key]["why"], rows(latency[key]["models"])) for key, title in parts if latency.get(key)
    ]


def offline_rows(latency: dict[str, Any]) -> list[list[str]]:
    """Return what MLPerf's rules make of it."""
    return [
        [
            name, wording.milliseconds(latency["models"][name]["p90_early_ms"]),
            f"{wording.number(one['samples_per_second'])} samples/s", wording.count(one["samples"]),
        ]
        for name, one in (latency["offline"] or {}).items()
    ]  # fmt: skip


def gate_rows(gates: dict[str, list[dict[str, Any]]], doubts: str) -> list[list[str]]:
    """Return what the profile allows; `doubts` stand above."""
    return [
        [
            name,
            one["title"],
            one["label"],
            _unit(one["value"], one["unit"]),
            _unit(one["limit"], one["unit"]),
            one["why"].removesuffix(f": {doubts}"),
        ]
        for name, own in gates.items()
        for one in own
    ]


def _unit(value: float | None, unit: str) -> str:
    return wording.NONE if value is None else f"{wording.number(value)} {unit}"
