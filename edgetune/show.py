"""Tables for the terminal: networks, artifacts, measures, findings.

Profiles are shown by edgetune.show_profiles, a run's own summary by edgetune.report.table. It
knows how things look, not how they are made.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console

from edgetune.artifact import Artifact
from edgetune.terminal import console as _console
from edgetune.terminal import say
from edgetune.terminal import show_rows as _show_rows

# Places named of one reason; --json names all.
SHOWN = 3
SHOWN_TRIALS = 5
MARKS = {"ok": "ok", "missing": "MISSING", "optional": "optional", "warning": "warning"}


def show_findings(findings: list[dict[str, Any]]) -> None:
    """Show what `edgetune doctor` found."""
    console = _console()
    width = max(len(finding["what"]) for finding in findings)
    for finding in findings:
        console.print(f"{finding['what']:<{width}}  {MARKS[finding['status']]:<8}  {finding['found']}")
        if finding["way"]:
            console.print(f"{'':<{width}}  -> {finding['way']}")


def show_models(models: list[dict[str, Any]]) -> None:
    """List networks."""
    rows = [
        (
            model["name"], f"{model['parameters'] / 1e6:.2f} M", f"{model['operations'] / 1e9:.2f} G",
            f"{model['size_px']} px", str(model["weights"]),
        )
        for model in models
    ]  # fmt: skip
    _show_rows(("network", "params", "MACs", "input", "weights"), rows, right=("params", "MACs", "input"))
    _console().print("timm:NAME names any network of timm; edgetune models show NAME tells more")


def show_model(model: dict[str, Any]) -> None:
    """Show one network."""
    for key, value in model.items():
        shown = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
        _console().print(f"{key}: {shown}")


def show_artifact(artifact: Artifact) -> None:
    """Show what a stage made."""
    console = _console()
    file = artifact.details.get("file", "")
    size = (artifact.files[file].bytes if file else artifact.bytes) / 1e6
    classes = f", {len(artifact.classes)} classes" if artifact.classes else ""
    # A path is there to be copied: the terminal may break it, a line end may not.
    console.print(f"{artifact.path / file}: {artifact.kind}, {size:.2f} MB{classes}", soft_wrap=True)
    for warning in artifact.details.get("warnings") or []:
        console.print(f"warning: {warning}")
    for name, figure in (artifact.details.get("parity") or {}).items():
        if name != "lengths":
            console.print(f"  {name}: {figure:.3g}")
    for row in (artifact.details.get("parity") or {}).get("lengths", []):
        whose = "" if row["own"] else ", filled up or cut"
        console.print(
            f"  {row['length']} tokens, {row['images']} texts{whose}: difference_over_std "
            f"{row['difference_over_std']:.3g}"
        )
    if "training" in artifact.details:
        training = artifact.details["training"]
        console.print(
            f"  validation top-1: {100 * training['val_top1']:.1f}% (epoch {training['best_epoch']})"
        )
    if "quantized_ops" in artifact.details:
        console.print(
            f"  INT8: {artifact.details['quantized_ops']} operations, float: {artifact.details['float_ops']}"
        )
    if "comparison" in artifact.details:
        for line in _comparison(artifact.details["comparison"]):
            console.print(f"  {line}")
    if file:
        beside = [str(Path(file).with_suffix(".json")), *sorted(set(artifact.files) - {file})]
        console.print(f"  beside it: {', '.join(beside)}")


def _comparison(found: dict[str, Any]) -> Iterator[str]:
    """Say how far INT8 is from FP32."""
    same = "" if found["on"] == "held-out" else ", which also calibrated"
    yield f"INT8 beside FP32, {found['images']} {found['on']} inputs{same}:"
    if "agreement" in found:
        share, low, high = (100 * found[key] for key in ("agreement", "agreement_low", "agreement_high"))
        yield f"  same class: {share:.1f}% ({low:.1f} to {high:.1f})"
    for name, figures in found["outputs"].items():
        if "unlike" in figures:
            yield f"  {name}: not comparable, {figures['unlike']}"
        elif "same" in figures:
            yield f"  {name}: {100 * figures['same']:.1f}% of the values the same"
        elif figures["difference"] == 0:
            yield f"  {name}: no difference"
        else:
            yield (
                f"  {name}: SQNR {figures['sqnr_db']:.1f} dB, cosine {figures['cosine_mean']:.4f} "
                f"(least {figures['cosine_min']:.4f})"
            )


def show_measures(measures: dict[str, Any]) -> None:
    """Show parity, accuracy and latency."""
    console = _console()
    if measures.get("latency"):
        _show_latency(measures["latency"], console)
    if measures.get("accuracy"):
        for name, model in measures["accuracy"]["models"].items():
            low, high = 100 * model["low"], 100 * model["high"]
            console.print(f"{name}: top-1 {100 * model['top1']:.2f}% ({low:.1f} to {high:.1f})")
    compared = measures.get("parity") or {}
    rows = [(f"{row['length']} tokens", row) for row in compared.get("lengths", [])]
    for pair, figures in [*((name, one) for name, one in compared.items() if name != "lengths"), *rows]:
        flat = {key: value for key, value in figures.items() if isinstance(value, int | float)}
        console.print(f"{pair}: " + "  ".join(f"{key} {value:.4g}" for key, value in flat.items()))


def show_bench(found: dict[str, Any], folder: Path) -> None:
    """Show latencies as a table and a plot, who is faster, what else was measured, and the profile's limits."""
    from edgetune.report.wording import number

    latency, console = found["latency"], _console()
    _show_latency(latency, console)
    _plot(latency["models"], console)
    if latency["ranking"]:
        said = latency["ranking"]["sentence"]
        say(said if latency["trusted"] else f"{said}; the times themselves are not to be trusted")
    for title, part in (
        ("computation alone", "compute"),
        ("from the image file to the answer", "end_to_end"),
    ):
        for name, model in (latency[part] or {"models": {}})["models"].items():
            console.print(f"{name}, {title}: p50 {_span(model)} ms, p99 {model['p99_ms']:.4g} ms")
        if latency[part] and not latency[part]["trusted"]:
            _show_doubts(f"{title}: not to be trusted", latency[part]["why"])
    for name, off in (latency["offline"] or {}).items():
        early = latency["models"][name]["p90_early_ms"]
        console.print(
            f"{name}, MLPerf: SingleStream {f'{early:.4g} ms' if early else 'too few queries'}, Offline "
            f"{number(off['samples_per_second'])} samples/s ({off['samples']:,} in {off['seconds']:.0f} s)"
        )
    for name, layers in latency["layers"].items():
        _show_layers(name, layers, console)
    for name, gates in found["gates"].items():
        for gate in gates:
            value = "" if gate["value"] is None else f"{gate['value']:.4g} {gate['unit']}, "
            # For what reasons a timing is not to be trusted has been said.
            why = gate["why"].removesuffix(f": {latency['why']}") if latency["why"] else gate["why"]
            said = f"{value}limit {gate['limit']:g} {gate['unit']}: {gate['label']}"
            say(f"{name}: {gate['title']}: {said}{f': {why}' if why else ''}")
    console.print(f"report: {folder / 'bench.html'}", soft_wrap=True)


def _span(model: dict[str, Any]) -> str:
    return f"{model['p50_ms']:.4g} ({model['p50_low_ms']:.4g} to {model['p50_high_ms']:.4g})"


def _show_latency(latency: dict[str, Any], console: Console) -> None:
    figures = {
        "p90_ms": "{:.4g}".format, "p99_ms": "{:.4g}".format, "cv": "{:.0%}".format, "count": "{:,}".format,
        "peak_memory_mb": "{:.4g}".format,
    }  # fmt: skip
    rows = [
        (
            name,
            _span(model) if "p50_low_ms" in model else f"{model['p50_ms']:.4g}",
            *(write(model[key]) if model.get(key) is not None else "-" for key, write in figures.items()),
        )
        for name, model in latency["models"].items()
    ]
    columns = ("network", "p50 ms", "p90 ms", "p99 ms", "spread", "runs", "memory MB")
    _show_rows(columns, rows, right=columns[1:])
    batch = f", batch {latency['batch']}" if latency["batch"] else ""
    inputs = f"; inputs: {latency['inputs']}" if latency.get("inputs") else ""
    threads = f"{latency['threads']} thread{'' if latency['threads'] == 1 else 's'}"
    console.print(f"{latency['engine']}, {threads}{batch}{inputs}")
    for name, model in latency["models"].items():
        placed = model.get("operators") or {}
        if len(placed) > 1:
            console.print(
                f"{name}: operators by provider: {', '.join(f'{n} {p}' for p, n in placed.items())}"
            )
    for note in latency.get("notes") or []:
        console.print(f"note: {note}")
    if not latency.get("trusted", True):
        _show_doubts("not to be trusted", latency["why"])


def _show_doubts(lead: str, why: str) -> None:
    from edgetune.report.wording import doubts

    first, *more = doubts(why)
    say(f"{lead}: {first}")
    for reason in more:
        say(f"and {reason}", 2)


def _plot(models: dict[str, dict[str, Any]], console: Console) -> None:
    """Draw a bar to each median, and a thinner one on to p90."""
    plain = not console.encoding.lower().startswith("utf")
    full, more = ("#", "-") if plain else ("█", "─")
    label = min(max(map(len, models)), console.width // 3)
    width = max(10, min(50, console.width - label - 14))
    most = max(model["p90_ms"] for model in models.values())
    for name, model in models.items():
        median, tail = (round(width * model[key] / most) for key in ("p50_ms", "p90_ms"))
        bar = full * max(median, 1) + more * (tail - max(median, 1))
        console.print(f"{name[-label:]:<{label}} {bar:<{width}} {model['p50_ms']:.4g} ms", soft_wrap=True)


def _show_layers(name: str, found: dict[str, Any], console: Console) -> None:
    from edgetune.report.layers import costliest, shown
    from edgetune.report.wording import middle, number

    worst = costliest(found["layers"])
    share = sum(layer["share"] for layer in worst)
    console.print(
        f"\n{name}: the {len(worst)} costliest of {len(found['layers'])} layers ({share:.0%} of the time)"
    )
    rows = [
        (
            middle(shown(layer["name"]), 22), f"{layer['kind']} {layer['precision']}", f"{layer['ms']:.4g}",
            *("-" if amount is None else f"{amount / 1e6:.3g}" for amount in (layer["bytes"], layer["operations"])),
            "-" if layer["distance"] is None else f"{number(layer['distance'])}x {layer['bound']}",
        )
        for layer in worst
    ]  # fmt: skip
    columns = ("layer", "kind", "ms", "MB", "Mop", "over roofline")
    _show_rows(columns, rows, right=columns[2:])
    say(f"{found['source']}; peaks {found['roof']['source']}")


def show_search(found: dict[str, Any], folder: Path) -> None:
    """Show what `edgetune tune` found: the best trials, the winner, what decides."""
    from edgetune.report.schema_tune import read_search
    from edgetune.report.tune import decides_most, result, run_command, sentences, short, value_of

    typed, console = read_search(found), _console()
    best = sorted(typed.trials, key=lambda trial: -(trial.top1 or 0.0))[:SHOWN_TRIALS]
    won = typed.winner.number if typed.winner else None
    timed = any(trial.latency_ms is not None for trial in best)
    rows = [
        (
            f"{trial.number}{'*' if trial.number == won else ''}", result(trial, typed.latency_ms),
            *([f"{trial.latency_ms:.3g}" if trial.latency_ms is not None else "-"] if timed else []),
            *(value_of(trial.values.get(key)) for key in typed.space),
        )
        for trial in best
    ]  # fmt: skip
    _show_rows(
        ("trial", "val", *(["INT8 ms"] if timed else []), *map(short, typed.space)), rows, right=("trial",)
    )
    for sentence in [*sentences(typed), *decides_most(typed)]:
        console.print(sentence)
    console.print(f"report: {folder / 'tune.html'}", soft_wrap=True)
    if typed.winner:
        console.print(f"next: {run_command(typed, folder)}", soft_wrap=True)


def show_comparison(found: dict[str, Any], folder: Path) -> None:
    """Show what `edgetune compare` found."""
    from edgetune.report.compare import columns, rows, sentences
    from edgetune.report.schema_compare import read_comparison

    typed, console = read_comparison(found), _console()
    titles = columns(typed)
    _show_rows(titles, rows(typed), right=titles[1:5])
    for sentence in sentences(typed):
        console.print(sentence)
    for warning in typed.warnings:
        console.print(f"note: {warning}")
    console.print(f"report: {folder / 'compare.html'}", soft_wrap=True)


def show_engines(made: dict[str, Any]) -> None:
    """Show the engines that were built, what they are made of, and what went wrong."""
    rows = []
    for name, engine in made["engines"].items():
        layers = engine["layers"]
        counts = ", ".join(f"{count} {precision}" for precision, count in layers["counts"].items() if count)
        file = str(Path(made["folder"]) / engine["plan"])
        rows.append(
            (name, file, f"{engine['plan_bytes'] / 1e6:.1f} MB", f"{engine['seconds']:.1f} s", counts or "-")
        )
    console = _console()
    if rows:
        _show_rows(("engine", "plan", "size", "built in", "layers"), rows, right=("size", "built in"))
        console.print(
            f"TensorRT {made['tensorrt']}; they run with this version, on this module, in this power mode"
        )
    for step, problem in made["errors"].items():
        console.print(f"{step}: {problem['message']}")
        if problem["hint"]:
            console.print(f"  {problem['hint']}")


def show_verdict(verdict: dict[str, Any]) -> None:
    """Show what `edgetune lint` found, the same reasons together, the worst first."""
    console = _console()
    numbers = {word: verdict[f"{word}s"] for word in ("error", "warning", "info")}
    counts = ", ".join(f"{n} {word}{'s' if n > 1 else ''}" for word, n in numbers.items() if n)
    file = verdict["written"] or verdict["model"]
    where = f"{verdict['target']}{', on the DLA' if verdict['dla'] else ''}"
    console.print(f"{file} for {where}: {counts or 'nothing found'}", soft_wrap=True)
    for item in verdict["fixed"]:
        console.print(f"fixed {item['rule']}: {item['node']}{': ' if item['node'] else ''}{item['what']}")
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for item in verdict["findings"]:
        groups.setdefault((item["severity"], item["rule"]), []).append(item)
    for (severity, rule), items in groups.items():
        many = f" ({len(items)} places)" if len(items) > 1 else ""
        console.print(f"\n{severity}: {rule}{many}", style="bold red" if severity == "error" else "bold")
        for item in items[:SHOWN]:
            console.print(f"  {item['node']}{': ' if item['node'] else ''}{item['reason']}")
        if len(items) > SHOWN:
            console.print(f"  and {len(items) - SHOWN} more; --json lists all")
        fixable = sum(item["fixable"] for item in items)
        fix = f" [--fix: {fixable} of {len(items)}]" if fixable else ""
        console.print(f"  -> {items[0]['remedy']}{fix}")
        console.print(f"  known from: {items[0]['source']}")
