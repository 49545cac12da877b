"""The command line: one thin function per verb. The only place that prints results and exits.

Results go to stdout (as JSON with --json), progress and complaints to stderr. Everything heavy is imported
inside the verbs, so that --help answers at once.
"""

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from edgetune import __version__
from edgetune.devices import On, build, bundle, device_app, judged_on_device, verify
from edgetune.errors import EdgetuneError
from edgetune.lookup import AsJson, Quiet, lint, models_app, print_json, profiles_app, progress_for
from edgetune.searches import compare, tune

app = typer.Typer(
    name="edgetune",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Fine-tune a compact network, export it to ONNX, quantize it to INT8, and prove what it kept.",
    epilog="Start with: edgetune quickstart",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(profiles_app, name="profiles", rich_help_panel="Look things up")
app.add_typer(models_app, name="models", rich_help_panel="Look things up")

Accelerator = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Strict = Annotated[bool, typer.Option("--strict", help="What could not be judged counts as failed (exit 7).")]
ProfileName = Annotated[
    str, typer.Option("--profile", help=r"NAME\[:MODE]\[@JETPACK]; see edgetune profiles list.")
]
DataFolder = Annotated[
    Path | None, typer.Option("--data", help="Class folders; default: where the artifact's images lay.")
]
OutFolder = Annotated[
    Path | None, typer.Option("--out", "-o", help="The folder to write; default: beside the input.")
]
ArtifactFolder = Annotated[Path, typer.Argument(help="A folder that a stage made.")]
FILES = "How images become inputs of a file"
STAGES, ONE_GO, LOOK = "One stage at a time", "In one go", "Look things up"
AWAY = "On a device"


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        typer.echo(f"edgetune {__version__}")
        raise typer.Exit


@app.command(rich_help_panel=ONE_GO)
def quickstart(
    out: Annotated[Path, typer.Option("--out", "-o", help="The run's folder.")] = Path("runs/quickstart"),
    accelerator: Accelerator = "auto",
    strict: Strict = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Teach a small network to read handwritten digits, end to end, in under a minute."""
    from edgetune.pipeline import quickstart as quickstart_run

    made = quickstart_run(
        out, accelerator=accelerator, strict=strict, command=_typed(), progress=progress_for(quiet)
    )
    _show_run(made.report, made.out, made.made, as_json)


@app.command(rich_help_panel=ONE_GO)
def run(
    recipe: Annotated[Path, typer.Argument(help="A recipe; edgetune init writes one.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The run's folder; default: runs/NAME.")
    ] = None,
    profile: Annotated[
        str, typer.Option("--profile", help=r"Instead of the recipe's: NAME\[:MODE]\[@JETPACK].")
    ] = "",
    on: On = "",
    accelerator: Accelerator = "auto",
    strict: Strict = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Fine-tune, export, quantize, check, time and report, as a recipe says; with --on, engines on a device too.

    A second call makes only what has changed; an interrupted one goes on where it was.
    """
    from edgetune.pipeline import run as run_recipe
    from edgetune.profile import load_target
    from edgetune.recipe import load_recipe

    loaded, progress = load_recipe(recipe), progress_for(quiet)
    target = load_target(profile or loaded.profile)
    if on:
        from edgetune.away import look_at_device, run_on_device

        look_at_device(target, on, progress)
    made = run_recipe(
        loaded, target, out or Path("runs") / loaded.name,
        accelerator=accelerator, strict=strict, command=_typed(), progress=progress,
    )  # fmt: skip
    report = run_on_device(made.out, on, strict, progress)[0] if on else made.report
    _show_run(report, made.out, None if on else made.made, as_json)


@app.command(rich_help_panel=ONE_GO)
def init(
    data: Annotated[
        Path, typer.Option("--data", help="Class folders, or train/ and val/ with class folders.")
    ],
    model: Annotated[str, typer.Option("--model", help="See edgetune models list.")] = "mobilenet_v2",
    profile: ProfileName = "host-cpu",
    weights: Annotated[str, typer.Option("--weights", help="default, none, or a file.")] = "default",
    out: Annotated[Path, typer.Option("--out", "-o", help="The recipe to write.")] = Path("recipe.yaml"),
    force: Annotated[bool, typer.Option("--force", help="Replace a recipe that is there.")] = False,
    as_json: AsJson = False,
) -> None:
    """Look at a folder of images and write a commented recipe for it."""
    from edgetune.stages.init import init as write_recipe

    found = write_recipe(
        data,
        model=model,
        profile=profile,
        weights=weights,
        out=out,
        force=force,
        progress=progress_for(as_json),
    )
    counts = {split: len(samples) for split, samples in found.splits.items()}
    if as_json:
        print_json({"recipe": str(out), "classes": list(found.classes), "images": counts})
        return
    for warning in found.warnings:
        typer.echo(f"warning: {warning}", err=True)
    images = ", ".join(f"{count} {split}" for split, count in counts.items())
    typer.echo(f"{out}: {len(found.classes)} classes, images: {images}")
    typer.echo(f"next: edgetune run {shlex.quote(str(out))}")


@app.command(rich_help_panel=STAGES)
def finetune(
    recipe: Annotated[
        Path, typer.Argument(help="A recipe; only its data, model and finetune sections count.")
    ],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The folder; default: runs/NAME/checkpoint.")
    ] = None,
    accelerator: Accelerator = "auto",
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Fine-tune a network: images and a recipe become a checkpoint."""
    from edgetune.steps import finetune_alone

    _show_artifact(finetune_alone(recipe, out, accelerator, progress_for(quiet)), as_json)


@app.command(rich_help_panel=STAGES)
def export(
    checkpoint: ArtifactFolder,
    profile: ProfileName = "host-cpu",
    data: DataFolder = None,
    batch: Annotated[int, typer.Option(min=1, help="Batch size of the graph.")] = 1,
    dynamic: Annotated[bool, typer.Option("--dynamic", help="Leave the batch size open.")] = False,
    opset: Annotated[int, typer.Option(min=0, help="0: the profile's.")] = 0,
    takes: Annotated[
        str, typer.Option("--input", help="float32_nchw, or uint8_nhwc: pixels, normalised in the graph.")
    ] = "float32_nchw",
    out: OutFolder = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Export a checkpoint to ONNX and compare the two on real images."""
    from edgetune.recipe import section_from
    from edgetune.steps import export_alone

    settings = section_from("export", {"input": takes, "batch": batch, "dynamic": dynamic, "opset": opset})
    _show_artifact(export_alone(checkpoint, profile, settings, data, out, progress_for(quiet)), as_json)


@app.command(rich_help_panel=STAGES)
def quantize(
    network: Annotated[Path, typer.Argument(help="Any .onnx file, or the folder of an exported network.")],
    profile: ProfileName = "host-cpu",
    data: Annotated[
        Path | None,
        typer.Option("--data", help="A folder of images, in classes or not; an artifact has one."),
    ] = None,
    preset: Annotated[str, typer.Option(help="quick, standard or thorough.")] = "standard",
    ranges: Annotated[
        str, typer.Option(help="minmax, mean, percentile, entropy, mse or auto; default: the preset's.")
    ] = "",
    method: Annotated[
        str, typer.Option(help="plain, auto (corrections until it is good) or best; default: the preset's.")
    ] = "",
    images: Annotated[int, typer.Option(min=0, help="Calibration images; 0: the preset's.")] = 0,
    manifest: Annotated[Path | None, typer.Option(help="A pinned calibration set.")] = None,
    exclude: Annotated[
        list[str] | None, typer.Option(help="A node that stays in float; may be repeated.")
    ] = None,
    preprocess: Annotated[str, typer.Option(help=f"{FILES}, as a preset: imagenet, zero-one, ...")] = "",
    resize: Annotated[int, typer.Option(min=0, help=f"{FILES}: shorter side in pixels.")] = 0,
    crop: Annotated[int, typer.Option(min=0, help=f"{FILES}: side of the middle square in pixels.")] = 0,
    mean: Annotated[str, typer.Option(help=f"{FILES}: per channel, of 0 to 1: 0.485,0.456,0.406.")] = "",
    std: Annotated[str, typer.Option(help=f"{FILES}: per channel: 0.229,0.224,0.225.")] = "",
    interpolation: Annotated[str, typer.Option(help=f"{FILES}: nearest, bilinear or bicubic.")] = "",
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The .onnx file, or an artifact's folder, to write.")
    ] = None,
    accelerator: Accelerator = "auto",
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Quantize any ONNX network, or an exported artifact, to INT8 for a profile."""
    from edgetune.data.preprocess import given_as
    from edgetune.recipe import section_from
    from edgetune.steps import quantize_alone

    values = {
        "preset": preset,
        "ranges": ranges or None,
        "method": method or None,
        "images": images or None,
        "exclude": tuple(exclude or ()),
    }
    settings = section_from("quantize", values | {"manifest": str(manifest.absolute()) if manifest else ""})
    given = given_as(preprocess, resize, crop, mean, std, interpolation)
    made = quantize_alone(network, profile, settings, data, out, progress_for(quiet), given, accelerator)
    _show_artifact(made, as_json)


@app.command(rich_help_panel=STAGES)
def check(
    folders: Annotated[
        list[Path],
        typer.Argument(help="A run; or a checkpoint, its ONNX and its INT8 artifact.", metavar="RUN"),
    ],
    on: On = "",
    data: DataFolder = None,
    images: Annotated[int, typer.Option(min=0, help="Test images; 0: all.")] = 0,
    out: OutFolder = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Compare checkpoint, ONNX and INT8 on the test split; with --on, a run's engines with ONNX Runtime."""
    from edgetune.recipe import CheckSection
    from edgetune.steps import check_alone, three_of

    if on:
        judged_on_device(folders, on, "compare", as_json, quiet)
        return
    made = check_alone(*three_of(folders), data, CheckSection(images=images), out, progress_for(quiet))
    _show_measures(made, as_json)


@app.command(rich_help_panel=STAGES)
def bench(
    models: Annotated[
        list[Path], typer.Argument(help="ONNX or INT8 artifacts, or .onnx files, timed in turns; or a run.")
    ],
    on: On = "",
    preset: Annotated[str, typer.Option(help="quick or standard.")] = "quick",
    threads: Annotated[int, typer.Option(min=0, help="0: as many as there are cores.")] = 0,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Time networks on this machine, interleaved, with intervals; with --on, a run's engines on a device."""
    from edgetune.steps import bench_alone

    if on:
        judged_on_device(models, on, "time", as_json, quiet)
        return
    _show_measures(bench_alone(models, preset, threads, progress_for(quiet)), as_json)


@app.command(rich_help_panel=ONE_GO)
def predict(
    artifact: ArtifactFolder,
    inputs: Annotated[list[Path], typer.Argument(help="Image files or folders.", metavar="IMAGE...")],
    top: Annotated[int, typer.Option(min=1, help="Classes to name.")] = 3,
    as_json: AsJson = False,
) -> None:
    """Classify images with a checkpoint, an ONNX network or its INT8 version."""
    from edgetune.artifact import Artifact
    from edgetune.stages.predict import predict as classify

    found = classify(Artifact.load(artifact), inputs, top=top)
    if as_json:
        print_json(found)
    else:
        for entry in found:
            said = "  ".join(f"{c['name']} {100 * c['probability']:.1f}%" for c in entry.get("classes", []))
            typer.echo(f"{entry['path']}: {said or entry['error']}")
    if any("error" in entry for entry in found):
        raise typer.Exit(6)


@app.command(rich_help_panel=LOOK)
def report(
    run_folder: Annotated[Path, typer.Argument(help="A run's folder.")],
    as_json: AsJson = False,
) -> None:
    """Show a finished run's report again, and write its HTML anew."""
    from edgetune.report.render import write_report
    from edgetune.steps import current_report

    loaded = current_report(run_folder)
    write_report(loaded, run_folder)
    _show_run(loaded, run_folder, None, as_json)


app.command(rich_help_panel=AWAY)(bundle)
app.command(rich_help_panel=AWAY)(build)
app.command(rich_help_panel=AWAY)(verify)
app.add_typer(device_app, name="device", rich_help_panel=AWAY)
app.command(rich_help_panel=LOOK)(lint)
app.command(rich_help_panel=ONE_GO)(tune)
app.command(rich_help_panel=LOOK)(compare)


@app.command(rich_help_panel=LOOK)
def doctor(as_json: AsJson = False) -> None:
    """Say what this machine has, what it lacks, and how to get it (exit 4: something needed is missing)."""
    from edgetune.stages.doctor import doctor as examine

    findings = examine()
    if as_json:
        print_json(findings)
    else:
        from edgetune.show import show_findings

        show_findings(findings)
    if any(finding["status"] == "missing" for finding in findings):
        raise typer.Exit(4)


def _typed() -> str:
    return shlex.join(["edgetune", *sys.argv[1:]])


def _show_run(report: dict[str, Any], out: Path, made: tuple[str, ...] | None, as_json: bool) -> None:
    if as_json:
        print_json(report)
    else:
        from rich.console import Console

        from edgetune.report.table import print_summary

        print_summary(report, Console(highlight=False), out / "report.html")
        if made == ():
            typer.echo("nothing had changed: every artifact was reused")
    if report["exit_code"]:
        raise typer.Exit(report["exit_code"])


def _show_artifact(artifact: Any, as_json: bool) -> None:
    if as_json:
        where = artifact.path / artifact.details.get("file", "")
        print_json(artifact.model_dump(mode="json") | {"path": str(where), "digest": artifact.digest})
    else:
        from edgetune.show import show_artifact

        show_artifact(artifact)


def _show_measures(measures: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(measures)
    else:
        from edgetune.show import show_measures

        show_measures(measures)


def main() -> None:
    """Run the command line; every error of edgetune's own becomes a message and an exit code."""
    try:
        app()
    except EdgetuneError as error:
        typer.echo(f"error: {error.message}", err=True)
        for line in error.hint.splitlines():
            typer.echo(f"  {line}", err=True)
        sys.exit(error.exit_code)
    except SystemExit as stop:
        if stop.code == 130:
            typer.echo("stopped; the same command goes on from here", err=True)
        raise


if __name__ == "__main__":
    main()
