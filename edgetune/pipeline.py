"""The straight line from a recipe to a report: preflight, then one call per stage.

It knows the order of the stages and nothing of how they work. It may import everything but the cli.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgetune.artifact import Artifact, Tokens, sha256_of
from edgetune.data.calibration import load_manifest, load_preset
from edgetune.data.folders import Dataset, save_dataset, scan
from edgetune.errors import ConfigError, EdgetuneError, MissingTool
from edgetune.learned import (
    TRAINING,
    check_teacher,
    look_at_unlabelled,
    make_alone,
    make_checkpoint,
    make_distillation,
    make_distilled,
    make_scratch,
    make_teacher,
    make_transfer,
    model_name,
    weights_path,
)
from edgetune.machine import cores, cpu_name, has_vnni
from edgetune.profile import (
    LEAST_OPSET,
    STRONG_OPSET,
    Runtime,
    Target,
    check_input,
    check_int8,
    load_target,
    merged_gates,
)
from edgetune.progress import Progress, Silent
from edgetune.recipe import AugmentSection, Recipe
from edgetune.store import Store

EXPORTING = (*TRAINING, "onnx", "onnxruntime")
RUNNING = ("numpy", "onnx", "onnxruntime", "pillow")


@dataclass(frozen=True)
class Run:
    """What a run left behind.

    Attributes:
        out: the run's folder, one artifact per subfolder.
        report: the content of report.json.
        made: names of the artifacts that this call made; empty: nothing had changed.
        exit_code: 0, or 7 where a gate failed.
    """

    out: Path
    report: dict[str, Any]
    made: tuple[str, ...]
    exit_code: int


def preflight(recipe: Recipe, target: Target, accelerator: str = "auto") -> None:
    """Check every name, file and tool before an hour is spent.

    Raises:
        ConfigError: an unknown model or preset, a missing file, an opset that the target does not take.
        MissingTool: a GPU is asked for where none is, or an extra is not installed.
    """
    # Imported here, so that a mistake in a recipe is answered before torch is loaded.
    from edgetune.models import model_row, preprocess_for
    from edgetune.models.text import check_weights

    name = model_name(recipe)
    row = model_row(name)
    preprocess_for(name, recipe.model.channels or 3, recipe.model.size_px, recipe.model.length)
    texts = isinstance(row.preprocess, Tokens)
    if texts != (recipe.data.noun == "text"):
        kind = "text" if texts else "image"
        raise ConfigError(
            f"model.name: {recipe.model.name} takes {kind}s, and data.task is {recipe.data.task}",
            hint=f"data.task: {kind}-classification, or another network (texts take hf:NAME)",
        )
    if texts and recipe.model.weights == "default":
        check_weights(name)
    learning = [recipe.finetune, recipe.distill and recipe.distill.teacher.finetune]
    if texts and any(section and section.augment != AugmentSection() for section in learning):
        raise ConfigError("finetune.augment: images are augmented, texts are not", hint="leave it out")
    if recipe.finetune.strategy == "partial" and recipe.finetune.stages > len(row.groups):
        raise ConfigError(
            f"finetune.stages: {recipe.finetune.stages}, where {recipe.model.name} has {len(row.groups)} groups",
            hint=f"edgetune models show {recipe.model.name}",
        )
    load_preset(recipe.quantize.preset)
    weights, manifest = weights_path(recipe), manifest_path(recipe)
    try:
        if weights is not None and not weights.exists():
            raise ConfigError(
                f"model.weights: no file {weights}", hint="default, none, or the path of a file"
            )
        if manifest is not None and not manifest.is_file():
            raise ConfigError(f"quantize.manifest: no file {manifest}")
        path = recipe.resolve(recipe.data.path)
        if not (path.is_dir() or (recipe.data.noun == "text" and path.is_file())):
            raise ConfigError(f"data.path: no folder{' and no table' * texts} {path}")
        check_teacher(recipe)
    except OSError as error:
        raise ConfigError(f"{error.filename}: {error.strerror}", hint="check its permissions") from error
    _check_opset(recipe.export.opset, target)
    check_input(recipe.export.input, target.runtime)
    check_accelerator(accelerator)


def _check_opset(opset: int, target: Target) -> None:
    runtime = target.runtime
    least = STRONG_OPSET if runtime.rendering == "strong" else LEAST_OPSET
    if opset and not least <= opset <= runtime.opset:
        raise ConfigError(
            f"export.opset: {opset}, where {target.label} takes {least} to {runtime.opset}",
            hint=f"0 is the profile's own ({runtime.opset})",
        )


def check_accelerator(accelerator: str) -> None:
    """Refuse a GPU where there is none.

    Raises:
        ConfigError: neither auto, cpu nor cuda.
        MissingTool: cuda is asked for and torch sees no GPU.
    """
    if accelerator not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"--accelerator {accelerator}: write auto, cpu or cuda")
    if accelerator == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise MissingTool(
                "--accelerator cuda: torch sees no CUDA GPU here",
                hint="use --accelerator auto, or see what edgetune doctor says about the driver",
            )


def manifest_path(recipe: Recipe) -> Path | None:
    """Return the file that `quantize.manifest` names, None where there is none."""
    return recipe.resolve(recipe.quantize.manifest) if recipe.quantize.manifest else None


def run(
    recipe: Recipe,
    target: Target,
    out: Path,
    *,
    accelerator: str = "auto",
    strict: bool = False,
    command: str = "",
    progress: Progress | None = None,
) -> Run:
    """Fine-tune, export, quantize, check, time and report; what is unchanged is not made again.

    For a target without INT8 nothing is quantized, and FP32 is what is judged.

    Args:
        recipe: what to make.
        target: where it must run.
        out: the run's folder; made where it is not there.
        accelerator: `auto`, `cpu` or `cuda`, for fine-tuning.
        strict: a gate that could not be judged counts as failed.
        command: what the user typed, for the report.
        progress: who is told how far it is.

    Raises:
        EdgetuneError: whatever kept it from finishing.
    """
    from edgetune.report.assemble import assemble, limits_of, measured_on_device, publish, with_device

    progress = progress or Silent()
    preflight(recipe, target, accelerator)
    with Store(out, progress.line).locked() as keep:
        data = look(recipe, out, progress)
        manifest = manifest_path(recipe)
        if manifest is not None:
            load_manifest(manifest, data)
        unlabelled = look_at_unlabelled(recipe, out, progress)
        teacher = make_teacher(keep, recipe, data, accelerator, progress)
        if teacher is None:
            checkpoint = make_checkpoint(keep, recipe, data, accelerator, progress)
        else:
            checkpoint = make_distilled(keep, recipe, teacher, data, unlabelled, accelerator, progress)
        # What transfer buys is counted without a teacher.
        alone = make_alone(keep, recipe, data, accelerator, progress) if teacher else checkpoint
        scratch = make_scratch(keep, recipe, data, accelerator, progress)
        network = make_onnx(keep, recipe, checkpoint, target.runtime, data, progress)
        int8 = None
        if target.no_int8:
            progress.line(f"nothing is quantized: {target.no_int8}; FP16 is what runs there")
        else:
            int8 = make_int8(keep, recipe, network, target, data, accelerator, progress)
        measures = make_check(keep, recipe, checkpoint, network, int8, data, progress)
        transfer = make_transfer(keep, alone, scratch, data) if scratch and alone else None
        distilled = make_distillation(keep, teacher, alone, checkpoint, data, accelerator, progress)
        latency = (
            make_bench(keep, recipe, target, network, int8, progress) if target.is_host and int8 else None
        )
        report = assemble(
            recipe,
            target,
            data,
            checkpoint,
            network,
            int8,
            measures,
            latency,
            transfer,
            distilled,
            estimate=_estimated(recipe, target, int8),
            strict=strict,
            command=command,
            beside={"teacher": teacher, "alone": alone if teacher else None, "scratch": scratch},
        )
        device = None if target.is_host else measured_on_device(report, out)
        if device:
            report = with_device(report, device, limits_of(report), strict=strict)
        publish(report, out)
    return Run(out, report, tuple(keep.made), report["exit_code"])


def _estimated(recipe: Recipe, target: Target, int8: Artifact | None) -> dict[str, Any] | None:
    """Estimate the INT8 engine where the recipe lets that stand in for a measurement; or say why it cannot be."""
    if not recipe.gates.estimates or target.is_host or int8 is None:
        return None
    from edgetune.estimates.parameters import load_parameters
    from edgetune.estimates.predict import predict, read, why_not

    why = why_not(target, "int8")
    if why:
        return {"why_not": why}
    try:
        return predict(read(int8.file("model.onnx")), target, "int8", load_parameters(None)).dump()
    except EdgetuneError as error:
        return {"why_not": error.message}


def quickstart(
    out: Path,
    *,
    accelerator: str = "auto",
    strict: bool = False,
    command: str = "edgetune quickstart",
    progress: Progress | None = None,
) -> Run:
    """Run the main job on handwritten digits, offline; arguments as for `run`."""
    from edgetune.stages.quickstart import quickstart_recipe

    recipe = quickstart_recipe(out)
    return run(
        recipe, load_target(recipe.profile), out,
        accelerator=accelerator, strict=strict, command=command, progress=progress,
    )  # fmt: skip


def look(recipe: Recipe, out: Path, progress: Progress) -> Dataset:
    """Read the data folder, cut it, and write down the cut."""
    manifest = out / "data.json"
    data = scan(
        recipe.data, recipe.resolve(recipe.data.path), manifest if manifest.is_file() else None, progress
    )
    save_dataset(data, manifest)
    for warning in data.warnings:
        progress.line(f"warning: {warning}")
    return data


def make_onnx(
    keep: Store, recipe: Recipe, checkpoint: Artifact, runtime: Runtime, data: Dataset, progress: Progress,
    name: str = "onnx",
) -> Artifact:  # fmt: skip
    """Export, or find the ONNX file of an earlier call."""
    from edgetune.stages.export import export

    return keep(name, export, checkpoint, recipe.export, runtime, data, uses=EXPORTING, progress=progress)


def make_int8(
    keep: Store, recipe: Recipe, network: Artifact, target: Target, data: Dataset, accelerator: str,
    progress: Progress, name: str = "int8",
) -> Artifact:  # fmt: skip
    """Quantize, or find the INT8 file of an earlier call."""
    check_int8(target)
    from edgetune.quant.ladder import Limits
    from edgetune.stages.quantize import quantize

    settings, runtime = recipe.quantize, target.runtime
    manifest = manifest_path(recipe)
    preset = load_preset(settings.preset)
    method = settings.method or preset.method
    limits = Limits.of(merged_gates(target.profile.gates, recipe.gates))
    also = {
        "preset": preset.model_dump(mode="json"),
        # Only the ladder's end depends on the gates.
        "limits": asdict(limits) if method == "auto" else None,
        "manifest": sha256_of(manifest) if manifest else "",
        # Without VNNI the file for the CPU has weights of 7 bits.
        "vnni": has_vnni() if runtime.rendering == "cpu" else None,
    }
    return keep(
        name, quantize, network, data, settings, runtime,
        uses=RUNNING if method == "plain" else (*RUNNING, "torch"), also=also,
        limits=limits, accelerator=accelerator, manifest=manifest, progress=progress,
    )  # fmt: skip


def make_check(
    keep: Store, recipe: Recipe, checkpoint: Artifact, network: Artifact, int8: Artifact | None, data: Dataset,
    progress: Progress, name: str = "check",
) -> Artifact:  # fmt: skip
    """Compare the networks on the test split, or find the earlier comparison."""
    from edgetune.stages.check import check

    return keep(
        name, check, checkpoint, network, int8, data, recipe.check,
        uses=EXPORTING, also={"vnni": has_vnni()}, progress=progress,
    )  # fmt: skip


def make_bench(
    keep: Store, recipe: Recipe, target: Target, network: Artifact, int8: Artifact, progress: Progress
) -> Artifact:
    """Time FP32 and INT8 on this machine, or find the earlier measurement on it."""
    from edgetune.stages.bench import bench

    models = {"fp32": network, "int8": int8}
    threads = cores()
    gates = merged_gates(target.profile.gates, recipe.gates)
    wanted = any(
        limit is not None for limit in (gates.latency_p50_ms, gates.latency_p99_ms, gates.speedup_min)
    )
    return keep(
        "bench", bench, models, recipe.bench, threads,
        uses=RUNNING, also={"cpu": cpu_name()}, progress=progress,
        # A noisy measurement that leaves a gate unjudged is worth another try.
        reusable=lambda made: not wanted or made.details.get("trusted", True),
    )  # fmt: skip
