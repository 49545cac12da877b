"""One stage at a time, on artifacts: what `edgetune finetune|export|quantize|check|bench` do.

The same stages and the same store as in a run, so a stage run alone is found again by `edgetune run`. It
may import everything but the cli.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgetune import pipeline
from edgetune.artifact import Artifact, Store
from edgetune.data.folders import Dataset, load_dataset, scan
from edgetune.errors import ConfigError
from edgetune.machine import cores
from edgetune.profile import load_target
from edgetune.progress import Progress
from edgetune.recipe import (
    BenchSection,
    CheckSection,
    DataSection,
    ExportSection,
    ModelSection,
    QuantizeSection,
    Recipe,
    load_recipe,
)


def finetune_alone(recipe: Path, out: Path | None, accelerator: str, progress: Progress) -> Artifact:
    """Run the first stage of a recipe."""
    loaded = load_recipe(recipe)
    target = load_target(loaded.profile)
    pipeline.preflight(loaded, target, accelerator)
    folder = out or Path("runs") / loaded.name / "checkpoint"
    with Store(folder.parent, progress.line).locked() as keep:
        data = pipeline.look(loaded, folder.parent, progress)
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
) -> Artifact:
    """Quantize an exported network for a profile; beside it, as `int8`, unless another folder is named."""
    exported = Artifact.load(network, "onnx")
    target = load_target(profile)
    recipe = _recipe(data).model_copy(update={"quantize": settings})
    folder = out or network.parent / "int8"
    with Store(folder.parent, progress.line).locked() as keep:
        images = find_data(exported, data, progress)
        return pipeline.make_int8(keep, recipe, exported, target.runtime, images, progress, folder.name)


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
    return _measures(made)


def bench_alone(models: Sequence[Path], preset: str, threads: int, progress: Progress) -> dict[str, Any]:
    """Time any networks on this machine, in turns."""
    from edgetune.stages.bench import bench_models

    paths = {_label(path, models): _onnx_file(path) for path in models}
    if len(paths) < len(models):
        raise ConfigError("the same network is named twice")
    settings = BenchSection.model_validate({"preset": preset})
    return {"latency": bench_models(paths, settings.preset, threads or cores(), progress=progress)}


def find_data(artifact: Artifact, data: Path | None, progress: Progress) -> Dataset:
    """Return the images an artifact was made with, or those of a folder the user names.

    Raises:
        ConfigError: the folder's classes are not the artifact's, or nothing says where the images are.
    """
    if data is not None:
        found = scan(DataSection(path=str(data)), data, progress=progress)
        if artifact.classes and found.classes != artifact.classes:
            raise ConfigError(
                f"{data}: its classes ({', '.join(found.classes[:8])}) are not those of {artifact.path} "
                f"({', '.join(artifact.classes[:8])})"
            )
        return found
    for manifest in (artifact.path / "data.json", artifact.path.parent / "data.json"):
        if manifest.is_file():
            return load_dataset(manifest)
    raise ConfigError(
        f"{artifact.path}: nothing says where its images are", hint="name their folder with --data"
    )


def _recipe(data: Path | None) -> Recipe:
    """A recipe that carries one section to a stage; the others are not looked at."""
    return Recipe(
        schema_version=1, data=DataSection(path=str(data or ".")), model=ModelSection(name="custom")
    )


def _measures(artifact: Artifact) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(artifact.file("measures.json").read_text(encoding="utf-8"))
    return content


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
