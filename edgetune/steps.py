"""One stage at a time, on artifacts: what `edgetune finetune|distill|export|quantize|check` do.

The same stages and the same store as in a run, so a stage run alone is found again by `edgetune run`. It
may import everything but the cli.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgetune import learned, pipeline
from edgetune.artifact import ARTIFACT_FILE, Artifact, Tokens
from edgetune.data.folders import Dataset, load_dataset, scan, unchanged
from edgetune.data.preprocess import Given
from edgetune.errors import ArtifactError, ConfigError
from edgetune.profile import load_target
from edgetune.progress import Progress
from edgetune.recipe import (
    CheckSection,
    DataSection,
    ExportSection,
    ModelSection,
    QuantizeSection,
    Recipe,
    load_recipe,
)
from edgetune.report.assemble import read_measures
from edgetune.store import Store


def finetune_alone(recipe: Path, out: Path | None, accelerator: str, progress: Progress) -> Artifact:
    """Run the first stage of a recipe."""
    loaded = load_recipe(recipe)
    with _begun(loaded, out, accelerator, progress) as (keep, data, name):
        return learned.make_checkpoint(keep, loaded, data, accelerator, progress, name)


def distill_alone(recipe: Path, out: Path | None, accelerator: str, progress: Progress) -> Artifact:
    """Make a recipe's teacher and distill its student.

    Raises:
        ConfigError: the recipe has no teacher.
    """
    loaded = load_recipe(recipe)
    if loaded.distill is None:
        raise ConfigError(
            f"{recipe}: distill: missing; nothing says who teaches",
            hint="distill: {teacher: {path: runs/large/checkpoint}}, or {teacher: {name: resnet50, finetune: {}}}",
        )
    with _begun(loaded, out, accelerator, progress) as (keep, data, name):
        unlabelled = learned.look_at_unlabelled(loaded, keep.out, progress)
        teacher = learned.make_teacher(keep, loaded, data, accelerator, progress)
        assert teacher is not None
        return learned.make_distilled(keep, loaded, teacher, data, unlabelled, accelerator, progress, name)


@contextmanager
def _begun(
    recipe: Recipe, out: Path | None, accelerator: str, progress: Progress
) -> Iterator[tuple[Store, Dataset, str]]:
    """Check a recipe and read its images; gives the store, the images and the artifact's name."""
    pipeline.preflight(recipe, load_target(recipe.profile), accelerator)
    folder = out or Path("runs") / recipe.name / "checkpoint"
    with Store(folder.parent, progress.line).locked() as keep:
        known = folder / "data.json"
        root = recipe.resolve(recipe.data.path)
        data = scan(recipe.data, root, known if known.is_file() else None, progress)
        for warning in data.warnings:
            progress.line(f"warning: {warning}")
        yield keep, data, folder.name


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
    checkpoint: Path, network: Path, int8: Path | None, data: Path | None, settings: CheckSection,
    out: Path | None, progress: Progress,
) -> dict[str, Any]:  # fmt: skip
    """Compare three artifacts on the test split; two where there is no INT8."""
    trained = Artifact.load(checkpoint, "checkpoint")
    exported, quantized = Artifact.load(network, "onnx"), Artifact.load(int8, "qdq") if int8 else None
    recipe = _recipe(data).model_copy(update={"check": settings})
    folder = out or checkpoint.parent / "check"
    with Store(folder.parent, progress.line).locked() as keep:
        images = find_data(trained, data, progress)
        made = pipeline.make_check(keep, recipe, trained, exported, quantized, images, progress, folder.name)
    return read_measures(made)


def three_of(folders: Sequence[Path]) -> tuple[Path, Path, Path | None]:
    """Return checkpoint, network and INT8 of a run, or as they are named; None where a run has no INT8.

    Raises:
        ConfigError: neither one folder nor three.
        ArtifactError: the run is not finished.
    """
    if len(folders) == 1:
        roles = roles_of(folders[0])
        return roles["checkpoint"], roles["onnx"], roles.get("int8")
    if len(folders) != 3:
        raise ConfigError(
            f"{len(folders)} folders",
            hint="name a run, or three: the checkpoint, its ONNX and its INT8 artifact",
        )
    return folders[0], folders[1], folders[2]


def roles_of(run: Path) -> dict[str, Path]:
    """Return a finished run's artifacts by what they are in it."""
    return {entry["role"]: run / entry["path"] for entry in current_report(run)["artifacts"]}


def compare_runs(
    runs: Sequence[Path], out: Path, data: Path | None, command: str, progress: Progress
) -> dict[str, Any]:
    """Set the trainings of runs side by side, and write compare.html and compare.json.

    Args:
        runs: folders of runs, each with one or more checkpoints, or of checkpoints.
        out: where the page goes, and what each network answers to the test images.
        data: where the images lie now; default: where they lay.
        command: what the user typed.
        progress: told of every network.

    Raises:
        ConfigError: a run is named twice, classes differ, or images have changed.
        ArtifactError: no run, or one that is not finished.
    """
    from edgetune.report.compare import publish
    from edgetune.stages.compare import Training, answers, compare

    found = [(name, Artifact.load(path, "checkpoint")) for run in runs for name, path in _checkpoints(run)]
    paths = [checkpoint.path.resolve() for _, checkpoint in found]
    twice = next((str(path) for path in paths if paths.count(path) > 1), "")
    if twice:
        raise ConfigError(f"{twice}: named twice")
    trainings, right = [], []
    with Store(out, progress.line).locked() as keep:
        for name, checkpoint in found:
            images = find_data(checkpoint, data, progress)
            trainings.append(Training(name, checkpoint, images))
            if images.splits["test"]:
                place = f"answers/{checkpoint.digest[:16]}"
                made = keep(place, answers, checkpoint, images, uses=learned.TRAINING)
                right.append(json.loads(made.file("right.json").read_text(encoding="utf-8")))
            else:
                right.append(None)
        compared = compare(trainings, right) | {"command": command}
        publish(compared, out)
    return compared


def _checkpoints(run: Path) -> list[tuple[str, Path]]:
    """Return names and folders of a run's checkpoints, or the folder itself where it is one."""
    if (run / ARTIFACT_FILE).is_file():
        return [(str(run), run)]
    unfinished = sorted(path.name for path in run.glob("*.partial")) if run.is_dir() else []
    if unfinished:
        raise ArtifactError(
            f"{run}: not finished ({', '.join(unfinished)})", hint="the same edgetune run goes on with it"
        )
    described = sorted(run.glob(f"*/{ARTIFACT_FILE}")) if run.is_dir() else []
    kinds = {file.parent: Artifact.load(file.parent).kind for file in described}
    found = [path for path, kind in kinds.items() if kind == "checkpoint" and path.name != "teacher"]
    if not found:
        raise ArtifactError(f"{run}: no run with a checkpoint", hint="edgetune run RECIPE makes one")
    return [(str(run) if len(found) == 1 else f"{run}/{path.name}", path) for path in found]


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
    """Return the images or texts an artifact was made with, where they lay or where the user says.

    Each stays in the split it was in. Only a place that holds none of them is cut anew.

    Raises:
        ConfigError: the classes there are not the artifact's, something has changed, or nothing says where it is.
    """
    places = (artifact.path.parent / "data.json", artifact.path / "data.json")
    known = next((load_dataset(manifest) for manifest in places if manifest.is_file()), None)
    if data is None:
        if known is None:
            raise ConfigError(f"{artifact.path}: nothing says where its data is", hint="name it with --data")
        return _unchanged(known)
    section = DataSection(path=str(data))
    if isinstance(artifact.preprocess, Tokens):
        text, label = known.columns if known else ("", "")
        section = DataSection(path=str(data), task="text-classification", text=text, label=label)
    found = scan(section, data, progress=progress)
    if artifact.classes and found.classes != artifact.classes:
        raise ConfigError(
            f"{data}: its classes ({', '.join(found.classes[:8])}) are not those of {artifact.path} "
            f"({', '.join(artifact.classes[:8])})"
        )
    return _as_before(found, known, progress) if known else found


def _unchanged(known: Dataset) -> Dataset:
    """Refuse inputs that are not what they were when the artifact was made."""
    samples = (sample for split in known.splits.values() for sample in split)
    changed = [sample.path for sample in samples if not unchanged(known, sample)]
    if changed:
        raise ConfigError(
            f"{known.root}: {len(changed)} {known.noun}s are gone or changed: {', '.join(changed[:5])}",
            hint="edgetune run reads them anew; if they have moved, name them with --data",
        )
    return known


def _as_before(found: Dataset, known: Dataset, progress: Progress) -> Dataset:
    """Put each sample into the split that its content was in."""
    place = {sample.sha256: split for split, samples in known.splits.items() for sample in samples}
    samples = [sample for split in found.splits.values() for sample in split]
    splits = {
        split: tuple(sample for sample in samples if place.get(sample.sha256) == split)
        for split in known.splits
    }
    strangers = sum(sample.sha256 not in place for sample in samples)
    if strangers == len(samples):
        progress.line(f"{found.root}: other {found.noun}s than the network was made with; cut anew")
        return found
    if strangers:
        progress.line(
            f"{found.root}: {strangers} {found.noun}s that the network was not made with are left out"
        )
    return replace(found, splits=splits)


def _recipe(data: Path | None) -> Recipe:
    """A recipe that carries one section to a stage; the others are not looked at."""
    return Recipe(
        schema_version=1, data=DataSection(path=str(data or ".")), model=ModelSection(name="custom")
    )
