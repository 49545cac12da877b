"""The command line: one thin function per verb. The only place that prints results and exits.

Results go to stdout (as JSON with --json), progress and complaints to stderr. Everything heavy is imported
inside the verbs, so that --help answers at once.
"""

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from edgetune import __version__
from edgetune.devices import On, build, bundle, device_app, verify
from edgetune.errors import EdgetuneError
from edgetune.estimating import estimate
from edgetune.lookup import (
    Accelerator,
    ArtifactFolder,
    AsJson,
    Junit,
    ProfileName,
    Quiet,
    lint,
    models_app,
    print_json,
    profiles_app,
    progress_for,
    show_judged,
    typed,
)
from edgetune.searches import compare, tune
from edgetune.single import bench, check, distill, export, finetune, quantize

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

Strict = Annotated[bool, typer.Option("--strict", help="What could not be judged counts as failed (exit 7).")]
STAGES, ONE_GO, LOOK = "One stage at a time", "In one go", "Look things up"
AWAY = "On a device"
PAGE = "report.html"


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
    junit: Junit = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Teach a small network to read handwritten digits, end to end, in under a minute."""
    from edgetune.pipeline import quickstart as quickstart_run

    made = quickstart_run(
        out, accelerator=accelerator, strict=strict, command=typed(), progress=progress_for(quiet)
    )
    show_judged(made.report, made.out / PAGE, as_json, junit, note=_reused(made.made))


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
    junit: Junit = None,
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
        accelerator=accelerator, strict=strict, command=typed(), progress=progress,
    )  # fmt: skip
    report = run_on_device(made.out, on, strict, progress)[0] if on else made.report
    show_judged(report, made.out / PAGE, as_json, junit, note="" if on else _reused(made.made))


@app.command(rich_help_panel=ONE_GO)
def init(
    data: Annotated[
        Path, typer.Option("--data", help="Class folders, or train/ and val/ with them; or a table of texts.")
    ],
    model: Annotated[str, typer.Option("--model", help="See edgetune models list.")] = "mobilenet_v2",
    profile: ProfileName = "host-cpu",
    weights: Annotated[str, typer.Option("--weights", help="default, none, or a file.")] = "default",
    text: Annotated[str, typer.Option(help="A table's column of texts; default: found by its name.")] = "",
    label: Annotated[str, typer.Option(help="A table's column of classes; default: found by its name.")] = "",
    out: Annotated[Path, typer.Option("--out", "-o", help="The recipe to write.")] = Path("recipe.yaml"),
    force: Annotated[bool, typer.Option("--force", help="Replace a recipe that is there.")] = False,
    as_json: AsJson = False,
) -> None:
    """Look at a folder of images, or at texts, and write a commented recipe for them."""
    from edgetune.stages.init import init as write_recipe

    found = write_recipe(
        data,
        model=model,
        profile=profile,
        weights=weights,
        columns=(text, label),
        out=out,
        force=force,
        progress=progress_for(as_json),
    )
    counts = {split: len(samples) for split, samples in found.splits.items()}
    if as_json:
        print_json({"recipe": str(out), "classes": list(found.classes), f"{found.noun}s": counts})
        return
    for warning in found.warnings:
        typer.echo(f"warning: {warning}", err=True)
    shown = ", ".join(f"{count} {split}" for split, count in counts.items())
    typer.echo(f"{out}: {len(found.classes)} classes, {found.noun}s: {shown}")
    typer.echo(f"next: edgetune run {shlex.quote(str(out))}")


for verb in (finetune, distill, export, quantize, check, bench):
    app.command(rich_help_panel=STAGES)(verb)


@app.command(rich_help_panel=ONE_GO)
def predict(
    artifact: ArtifactFolder,
    inputs: Annotated[
        list[Path] | None,
        typer.Argument(help="Files, folders, tables of texts; - reads a text per line.", metavar="INPUT..."),
    ] = None,
    text: Annotated[list[str] | None, typer.Option(help="A text as it is; may be repeated.")] = None,
    top: Annotated[int, typer.Option(min=1, help="Classes to name.")] = 3,
    as_json: AsJson = False,
) -> None:
    """Classify images or texts with a checkpoint, an ONNX network or its INT8 version."""
    from edgetune.artifact import Artifact
    from edgetune.data.texts import decoded
    from edgetune.stages.predict import predict as classify

    files, texts = [path for path in inputs or () if str(path) != "-"], list(text or ())
    if len(files) < len(inputs or ()):
        lines = decoded(sys.stdin.buffer.read(), Path("stdin")).split("\n")
        texts += [line.strip() for line in lines if line.strip()]
    found = classify(Artifact.load(artifact), files, texts=texts, top=top)
    if as_json:
        print_json(found)
    else:
        for entry in found:
            said = "  ".join(f"{c['name']} {100 * c['probability']:.1f}%" for c in entry.get("classes", []))
            short = "  (cut: longer than the network takes)" if entry.get("cut") else ""
            typer.echo(f"{entry.get('path') or entry['text']}: {said or entry['error']}{short}")
    if any("error" in entry for entry in found):
        raise typer.Exit(6)


@app.command(rich_help_panel=LOOK)
def report(
    run_folder: Annotated[Path, typer.Argument(help="A run's folder.")],
    junit: Junit = None,
    as_json: AsJson = False,
) -> None:
    """Show a finished run's report again, and write its HTML anew."""
    from edgetune.report.render import write_report
    from edgetune.steps import current_report

    loaded = current_report(run_folder)
    write_report(loaded, run_folder)
    show_judged(loaded, run_folder / PAGE, as_json, junit)


app.command(rich_help_panel=AWAY)(bundle)
app.command(rich_help_panel=AWAY)(build)
app.command(rich_help_panel=AWAY)(verify)
app.add_typer(device_app, name="device", rich_help_panel=AWAY)
app.command(rich_help_panel=LOOK)(lint)
app.command(rich_help_panel=LOOK)(estimate)
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


def _reused(made: tuple[str, ...] | None) -> str:
    return "nothing had changed: every artifact was reused" if made == () else ""


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
