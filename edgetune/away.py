"""A run's networks on a device: what `edgetune bundle|build|verify|device probe` and `--on` do.

It may import everything but the cli.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgetune.artifact import Artifact, write_atomic
from edgetune.errors import ConfigError
from edgetune.profile import Target, merged_gates, target_of
from edgetune.progress import Progress
from edgetune.recipe import Gates
from edgetune.steps import current_report, find_data, roles_of

# Test images that a bundle verifies on, at most.
SAMPLES = 500


def bundle_run(
    run: Path,
    out: Path | None,
    data: Path | None,
    samples: int,
    progress: Progress,
    dla_core: int | None = None,
) -> dict[str, Any]:
    """Pack a finished run for the device that it was made for, its GPU or one of its DLAs.

    Raises:
        ConfigError: it was made for this machine itself, or the device has no such DLA.
        ArtifactError: there is no finished run.
    """
    from edgetune.stages.bundle import bundle

    report, roles = current_report(run), roles_of(run)
    network = Artifact.load(roles["onnx"], "onnx")
    int8 = Artifact.load(roles["int8"], "qdq") if "int8" in roles else None
    target = target_of(report["profile"]["label"], report["profile"].get("own"))
    return bundle(
        network, int8, find_data(network, data, progress), target,
        name=report["name"], samples=samples, into=out or run / "bundle", dla_core=dla_core,
        preset=report["recipe"]["bench"]["preset"], progress=progress,
    )  # fmt: skip


def build_engines(run: Path, out: Path | None, url: str, progress: Progress) -> dict[str, Any]:
    """Build a finished run's engines, on a device or with the TensorRT of this machine.

    Args:
        run: its folder.
        out: the bundle's folder; None: RUN/bundle.
        url: the device; empty: this machine.
        progress: is told what happens.

    Returns:
        `folder` that the plans lie in, `tensorrt`, `finished`, `errors` (by step) and `engines` by name: `plan`,
        `plan_bytes`, `seconds`, `layers`.

    Raises:
        EdgetuneError: what `bundle_run` and `device.remote.run` (or `device.local.run`) raise.
    """
    from edgetune.device import local, remote
    from edgetune.device.results import load_result, load_work

    bundle = out or run / "bundle"
    bundle_run(run, bundle, None, SAMPLES, progress)
    arguments = ["--only", "build"]
    if url:
        remote.run(bundle, url, arguments, progress)
    else:
        local.run(bundle, arguments, progress)
    work = load_work(bundle)
    result = load_result(work)
    built = {name: engine.build.model_dump(mode="json") for name, engine in result.engines.items()}
    return {
        "folder": str(work.results), "tensorrt": result.tensorrt, "finished": result.finished,
        "errors": {name: trouble.model_dump() for name, trouble in result.errors.items()}, "engines": built,
    }  # fmt: skip


def run_on_device(
    out: Path, url: str, strict: bool, progress: Progress, *, only: str = ""
) -> tuple[dict[str, Any], Path]:
    """Build, verify and time a finished run's engines on a device; return what `verify_bundle` does.

    Args:
        out: the run's folder.
        url: the device.
        strict: a gate that could not be judged counts as failed.
        progress: is told what happens there.
        only: `compare` or `time`, and the builds that either needs; what was done before is judged as well.

    Raises:
        EdgetuneError: what `bundle_run`, `device.remote.run` and `verify_bundle` raise.
    """
    from edgetune.device.remote import run

    bundle = out / "bundle"
    bundle_run(out, bundle, None, SAMPLES, progress)
    came = run(bundle, url, ["--only", only] if only else [], progress)
    for step, problem in came["errors"].items():
        progress.line(f"warning: {step}: {problem['message']}")
    return verify_bundle(bundle, out, strict=strict)


def verify_bundle(folder: Path, run: Path | None, *, strict: bool) -> tuple[dict[str, Any], Path]:
    """Judge what came back from a device, beside the bundle and in the report of its run.

    Args:
        folder: the bundle, with its results.
        run: that the bundle was made of; None: the folder that it lies in, if that is one.
        strict: a gate that could not be judged counts as failed.

    Returns:
        The report with `device`, and the page that shows it; of a bundle in no run, only what the bundle knows.

    Raises:
        ConfigError: no bundle, no results, or a run that is named and not the bundle's.
        ArtifactError: something that came back is cut, damaged or of another bundle.
    """
    from edgetune.report.assemble import MEASURES, limits_of, made_of, publish, with_device
    from edgetune.report.render import write_device_report
    from edgetune.stages.verify import verify

    found = verify(folder)
    work = json.loads((folder / "work.json").read_text(encoding="utf-8"))
    place = run or folder.absolute().parent
    report = current_report(place) if run or (place / "report.json").is_file() else None
    if report and not made_of(work, report):
        if run:
            raise ConfigError(
                f"{folder}: was made of other networks than {run}", hint="bundle that run again"
            )
        report = None
    target = target_of(work["wanted"]["profile"], work["wanted"].get("own"))
    limits = limits_of(report) if report else merged_gates(target.profile.gates, Gates())
    profile = {"label": target.label, "title": target.profile.title, "kind": target.profile.kind,
               "rendering": target.runtime.rendering}  # fmt: skip
    bare = {"name": work["name"], "profile": profile}
    write_atomic(folder / MEASURES, json.dumps(found, indent=1, allow_nan=False) + "\n")
    judged = with_device(report or bare, found, limits, strict=strict)
    write_device_report(judged, folder / "report.md")
    if report:
        publish(judged, place)
    return judged, place / "report.html" if report else folder / "report.md"


def probe_device(url: str) -> dict[str, Any]:
    """Ask a device what it is: `found` and `warnings`; nothing stays there.

    Raises:
        EdgetuneError: it does not answer, or has no Python.
    """
    import tempfile

    from edgetune.device.packing import write_program
    from edgetune.device.remote import probe

    with tempfile.TemporaryDirectory() as scratch:
        program = Path(scratch) / "edgetune.pyz"
        write_program(program)
        return probe(url, program.read_bytes())


def look_at_device(target: Target, url: str, progress: Progress) -> None:
    """Ask a device what it is, before an hour is spent on what it is to run.

    Raises:
        ConfigError: the profile is of this machine itself, or the address is no address.
        EdgetuneError: it does not answer, or has no Python.
    """
    if target.is_host:
        raise ConfigError(
            f"--on {url}: {target.label} is this machine itself",
            hint="name the device's profile: --profile jetson-orin-nano-8gb",
        )
    found = probe_device(url)
    progress.line(f"{url}: {(found['found'].get('module') or {}).get('model') or 'an unknown board'} answers")


def one_run(folders: Sequence[Path]) -> Path:
    """Return the run that is named for a device.

    Raises:
        ConfigError: several folders, or one that holds no run.
    """
    if len(folders) != 1 or not (folders[0] / "report.json").is_file():
        named = ", ".join(map(str, folders))
        raise ConfigError(
            f"{named}: on a device the engines of one finished run are measured",
            hint="name the run's folder: the one with report.json",
        )
    return folders[0]
