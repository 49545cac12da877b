"""Verbs that look things up: `edgetune profiles`, `edgetune models`, and `edgetune lint`, which looks at a file.

Everything heavy is imported inside the verbs, so that --help answers at once.
"""

import json
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, only the result.")]
Accelerator = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
ProfileName = Annotated[
    str, typer.Option("--profile", help=r"NAME\[:MODE]\[@JETPACK]; see edgetune profiles list.")
]
Junit = Annotated[
    Path | None,
    typer.Option("--junit", help="Write the gates to this file as JUnit XML, for CI.", metavar="FILE"),
]
ArtifactFolder = Annotated[Path, typer.Argument(help="A folder that a stage made.")]

profiles_app = typer.Typer(no_args_is_help=True, help="Hardware profiles: where a network must run.")
models_app = typer.Typer(no_args_is_help=True, help="Networks to start from.")


def print_json(value: Any) -> None:
    """Print a result to stdout."""
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False, default=str))


def typed() -> str:
    """Return what the user typed, as a shell takes it."""
    return shlex.join(["edgetune", *sys.argv[1:]])


def show_judged(
    report: dict[str, Any], page: Path, as_json: bool, junit: Path | None, *, note: str = ""
) -> None:
    """Print a judged report, write its gates for CI where that is asked for, and end with its exit code.

    Args:
        report: of a run or of a bundle.
        page: that shows it.
        as_json: print JSON.
        junit: the file for CI.
        note: a line for people.

    Raises:
        typer.Exit: with 7, a gate failed.
    """
    # First: who reads the rest may stop early (| head).
    if junit is not None:
        from edgetune.report.junit import write_junit

        write_junit(report, junit)
    if as_json:
        print_json(report)
    else:
        from rich.console import Console

        from edgetune.report.table import print_summary

        print_summary(report, Console(highlight=False), page)
        if note:
            typer.echo(note)
    if report["exit_code"]:
        raise typer.Exit(report["exit_code"])


def progress_for(quiet: bool) -> Any:
    """Return what shows progress in the terminal, or nothing."""
    from edgetune.progress import Silent, Terminal

    return Silent() if quiet else Terminal()


def show_made(artifact: Any, as_json: bool) -> None:
    """Print what a stage made."""
    if as_json:
        where = artifact.path / artifact.details.get("file", "")
        print_json(artifact.model_dump(mode="json") | {"path": str(where), "digest": artifact.digest})
    else:
        from edgetune.show import show_artifact

        show_artifact(artifact)


@profiles_app.command("list")
def profiles_list(as_json: AsJson = False) -> None:
    """List the shipped profiles."""
    from edgetune.profile import load_profile, names
    from edgetune.show_profiles import show_profiles

    loaded = [load_profile(name) for name in names()]
    print_json([p.model_dump(mode="json") for p in loaded]) if as_json else show_profiles(loaded)


@profiles_app.command("show")
def profiles_show(
    name: Annotated[str, typer.Argument(help=r"NAME\[:MODE]\[@JETPACK], or a YAML file.")],
    as_json: AsJson = False,
) -> None:
    """Show one profile: modes, JetPacks, sources."""
    from edgetune.profile import load_target
    from edgetune.show_profiles import show_target

    target = load_target(name)
    print_json(target.model_dump(mode="json")) if as_json else show_target(target)


@profiles_app.command("compare")
def profiles_compare(
    targets: Annotated[
        list[str],
        typer.Argument(help=r"Two or more: NAME\[:MODE]\[@JETPACK], or YAML files.", metavar="TARGET..."),
    ],
    as_json: AsJson = False,
) -> None:
    """Set profiles or their modes side by side: what differs, and all modes by their peak."""
    from edgetune.profile import compare_targets
    from edgetune.show_profiles import show_comparison

    found = compare_targets(targets)
    print_json(found) if as_json else show_comparison(found)


@profiles_app.command("validate")
def profiles_validate(
    files: Annotated[
        list[str], typer.Argument(help="YAML files, or names of shipped profiles.", metavar="FILE...")
    ],
    as_json: AsJson = False,
) -> None:
    """Say all that is wrong with profiles: keys, values, figures that contradict each other (exit 3)."""
    from edgetune.profile import validate_profile
    from edgetune.show_profiles import show_complaints

    found = [validate_profile(file) for file in files]
    print_json(found) if as_json else show_complaints(found)
    if not all(file["valid"] for file in found):
        raise typer.Exit(3)


@models_app.command("list")
def models_list(as_json: AsJson = False) -> None:
    """List the networks to start from."""
    from edgetune.models import list_models
    from edgetune.show import show_models

    found = list_models()
    print_json(found) if as_json else show_models(found)


@models_app.command("show")
def models_show(
    name: Annotated[str, typer.Argument(help="A row of the list, timm:NAME or hf:NAME.")],
    as_json: AsJson = False,
) -> None:
    """Show one network: size, input, weights, groups, how well it takes INT8."""
    from edgetune.models import describe_model
    from edgetune.show import show_model

    found = describe_model(name)
    print_json(found) if as_json else show_model(found)


def lint(
    model: Annotated[Path, typer.Argument(help="Any .onnx file, or the folder of an artifact.")],
    profile: Annotated[
        str, typer.Option("--profile", help=r"NAME\[:MODE]\[@JETPACK]; see edgetune profiles list.")
    ],
    dla: Annotated[bool, typer.Option("--dla", help="It is to run on a DLA.")] = False,
    fix: Annotated[bool, typer.Option("--fix", help="Repair what is safe to; needs -o.")] = False,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="The repaired file.")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Warnings end with exit 7 as well.")] = False,
    as_json: AsJson = False,
) -> None:
    """Say why TensorRT or a DLA would refuse a network (exit 7), or run it slower than it could."""
    from edgetune.profile import load_target
    from edgetune.show import show_verdict
    from edgetune.stages.lint import lint as examine

    verdict = examine(model, load_target(profile), dla=dla, fix=fix, into=out)
    print_json(verdict.dump()) if as_json else show_verdict(verdict.dump())
    if verdict.count("error") or (strict and verdict.count("warning")):
        raise typer.Exit(7)
