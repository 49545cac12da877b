"""One stage at a time, on artifacts: what `edgetune finetune|export|quantize|check|bench` do.

The same stages and the same store as in a run, so a stage run alone is found again by `edgetune run`. It
may import everything but the cli.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgetune import pipeline
from edgetune.artifact import Artifact, sha256_of, write_atomic
from edgetune.data.folders import Dataset, load_dataset, scan
from edgetune.data.preprocess import Given
from edgetune.errors import ArtifactError, ConfigError
from edgetune.machine import cores
from edgetune.profile import Target, load_target, merged_gates
from edgetune.progress import Progress
from edgetune.recipe import (
    CheckSection,
    DataSection,
    ExportSection,
    Gates,
    ModelSection,
    QuantizeSection,
    Recipe,
    load_recipe,
    section_from,
)
from edgetune.report.assemble import read_measures
from edgetune.store import Store

# Test images that a bundle verifies on, at most.
SAMPLES = 500


def finetune_alone(recipe: Path, out: Path | None, accelerator: str, progress: Progress) -> Artifact:
    """Run the first stage of a recipe."""
    loaded = load_recipe(recipe)
    target = load_target(loaded.profile)
    pipeline.preflight(loaded, target, accelerator)
    folder = out or Path("runs") / loaded.name / "checkpoint"
    with Store(folder.parent, progress.line).locked() as keep:
        known = folder / "data.json"
        root = loaded.resolve(loaded.data.path)
        data = scan(loaded.data, root, known if known.is_file() else None, progress)
        for warning in data.warnings:
            progress.line(f"warning: {warning}")
        return pipeline.make_checkpoint(keep, loaded, data, accelerator, progress, folder.name)


def export_alone(
    checkpoint: Path,
    profile: str,
    settings: ExportSection,
    data: Path | None,
    out: Path | None,
    progress: Progress,
) -> Artifact:
    """Export a checkpoint for a profile; beside it, as `onnx`, unless another folder is named."""
    network = Artifact.load(checkpoint, "checkpoint")
    target = load_target(profile)
    recipe = _recipe(data).model_copy(update={"export": settings})
    folder = out or checkpoint.parent / "onnx"
    with Store(folder.parent, progress.line).locked() as keep:
        images = find_data(network, data, progress)
        return pipeline.make_onnx(keep, recipe, network, target.runtime, images, progress, folder.name)


def quantize_alone(
    network: Path,
    profile: str,
    settings: QuantizeSection,
    data: Path | None,
    out: Path | None,
    progress: Progress,
    preprocess: Given | None = None,
    accelerator: str = "auto",
) -> Artifact:
    """Quantize a network for a profile.

    An exported one becomes an artifact beside it, as `int8`, unless another folder is named. Any ONNX file,
    or an artifact where `out` is one, becomes an ONNX file.

    Raises:
        ConfigError: a file without images to calibrate with; an artifact whose preprocessing is said again.
    """
    given = preprocess if preprocess != Given() else None
    if not network.is_dir() or (out is not None and out.suffix == ".onnx"):
        from edgetune.stages.quantize import quantize_onnx

        if data is None:
            raise ConfigError(
                f"{network}: nothing says which images calibrate it",
                hint="name a folder of images such as the network will see: --data DIR",
            )
        return quantize_onnx(
            network, data, out, profile=profile, preprocess=given, settings=settings,
            accelerator=accelerator, progress=progress,
        )  # fmt: skip
    if given:
        raise ConfigError(f"{network}: the artifact says itself how inputs are preprocessed")
    exported = Artifact.load(network, "onnx")
    target = load_target(profile)
    recipe = _recipe(data).model_copy(update={"quantize": settings})
    folder = out or network.parent / "int8"
    with Store(folder.parent, progress.line).locked() as keep:
        images = find_data(exported, data, progress)
        return pipeline.make_int8(keep, recipe, exported, target, images, accelerator, progress, folder.name)


def check_alone(
    checkpoint: Path, network: Path, int8: Path, data: Path | None, settings: CheckSection, out: Path | None,
    progress: Progress,
) -> dict[str, Any]:  # fmt: skip
    """Compare three artifacts on the test split."""
    trained = Artifact.load(checkpoint, "checkpoint")
    exported, quantized = Artifact.load(network, "onnx"), Artifact.load(int8, "qdq")
    recipe = _recipe(data).model_copy(update={"check": settings})
    folder = out or checkpoint.parent / "check"
    with Store(folder.parent, progress.line).locked() as keep:
        images = find_data(trained, data, progress)
        made = pipeline.make_check(keep, recipe, trained, exported, quantized, images, progress, folder.name)
    return read_measures(made)


def bench_alone(models: Sequence[Path], preset: str, threads: int, progress: Progress) -> dict[str, Any]:
    """Time any networks on this machine, in turns."""
    from edgetune.stages.bench import bench_models

    paths = {_label(path, models): _onnx_file(path) for path in models}
    if len(paths) < len(models):
        raise ConfigError("the same network is named twice")
    settings = section_from("bench", {"preset": preset})
    return {"latency": bench_models(paths, settings.preset, threads or cores(), progress=progress)}


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

    report = current_report(run)
    roles = {entry["role"]: run / entry["path"] for entry in report["artifacts"]}
    network, int8 = Artifact.load(roles["onnx"], "onnx"), Artifact.load(roles["int8"], "qdq")
    return bundle(
        network, int8, find_data(network, data, progress), load_target(report["profile"]["label"]),
        name=report["name"], samples=samples, into=out or run / "bundle", dla_core=dla_core,
        progress=progress,
    )  # fmt: skip


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
    target = load_target(work["wanted"]["profile"])
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

    from edgetune.device.remote import probe
    from edgetune.stages.bundle import write_program

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


def run_on_device(out: Path, url: str, strict: bool, progress: Progress) -> dict[str, Any]:
    """Build, verify and time a finished run's engines on a device; return the run's report with them judged.

    Raises:
        EdgetuneError: what `bundle_run`, `device.remote.run` and `verify_bundle` raise.
    """
    from edgetune.device.remote import run

    bundle = out / "bundle"
    bundle_run(out, bundle, None, SAMPLES, progress)
    came = run(bundle, url, [], progress)
    for step, problem in came["errors"].items():
        progress.line(f"warning: {step}: {problem['message']}")
    return verify_bundle(bundle, out, strict=strict)[0]


def current_report(out: Path) -> dict[str, Any]:
    """Read a run's report, if it is still that of the artifacts beside it.

    Raises:
        ArtifactError: no report, or a later call has made other artifacts and not finished.
    """
    from edgetune.report.render import load_report

    report = load_report(out / "report.json")
    for entry in report["artifacts"]:
        if Artifact.load(out / entry["path"]).digest != entry["digest"]:
            raise ArtifactError(
                f"{out}: {entry['path']} is newer than the report", hint="finish the run: edgetune run RECIPE"
            )
    return report


def find_data(artifact: Artifact, data: Path | None, progress: Progress) -> Dataset:
    """Return the images an artifact was made with, where they lay or in a folder the user names.

    Each image stays in the split it was in. Only a folder that holds none of them is cut anew.

    Raises:
        ConfigError: the folder's classes are not the artifact's, images have changed, or nothing says where
            they are.
    """
    places = (artifact.path.parent / "data.json", artifact.path / "data.json")
    known = next((load_dataset(manifest) for manifest in places if manifest.is_file()), None)
    if data is None:
        if known is None:
            raise ConfigError(
                f"{artifact.path}: nothing says where its images are", hint="name their folder with --data"
            )
        return _unchanged(known)
    found = scan(DataSection(path=str(data)), data, progress=progress)
    if artifact.classes and found.classes != artifact.classes:
        raise ConfigError(
            f"{data}: its classes ({', '.join(found.classes[:8])}) are not those of {artifact.path} "
            f"({', '.join(artifact.classes[:8])})"
        )
    return _as_before(found, known, progress) if known else found


def _unchanged(known: Dataset) -> Dataset:
    """Refuse images that are not what they were when the artifact was made."""
    changed = []
    for sample in (sample for split in known.splits.values() for sample in split):
        file = known.root / sample.path
        try:
            found = file.stat()
            same = (found.st_size, found.st_mtime_ns) == (sample.size_bytes, sample.mtime_ns)
            if not same and sha256_of(file) != sample.sha256:
                changed.append(sample.path)
        except OSError:
            changed.append(sample.path)
    if changed:
        raise ConfigError(
            f"{known.root}: {len(changed)} images are gone or changed: {', '.join(changed[:5])}",
            hint="edgetune run reads the folder anew; if it has moved, name it with --data",
        )
    return known


def _as_before(found: Dataset, known: Dataset, progress: Progress) -> Dataset:
    """Put each image into the split that its content was in."""
    place = {sample.sha256: split for split, samples in known.splits.items() for sample in samples}
    samples = [sample for split in found.splits.values() for sample in split]
    splits = {
        split: tuple(sample for sample in samples if place.get(sample.sha256) == split)
        for split in known.splits
    }
    strangers = sum(sample.sha256 not in place for sample in samples)
    if strangers == len(samples):
        progress.line(f"{found.root}: other images than the network was made with; cut anew")
        return found
    if strangers:
        progress.line(f"{found.root}: {strangers} images that the network was not made with are left out")
    return replace(found, splits=splits)


def _recipe(data: Path | None) -> Recipe:
    """A recipe that carries one section to a stage; the others are not looked at."""
    return Recipe(
        schema_version=1, data=DataSection(path=str(data or ".")), model=ModelSection(name="custom")
    )


def _label(path: Path, among: Sequence[Path]) -> str:
    """The shortest name that tells a model from the others."""
    same = [other for other in among if other.name == path.name]
    return path.name if len(same) == 1 else str(path)


def _onnx_file(path: Path) -> Path:
    if path.is_dir():
        return Artifact.load(path, "onnx", "qdq").file("model.onnx")
    if not path.is_file():
        raise ConfigError(
            f"{path}: no such file or folder", hint="name an onnx or int8 folder, or an .onnx file"
        )
    return path
