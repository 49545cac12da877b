"""Verbs that take networks to a device and judge what comes back: `edgetune bundle`, `edgetune verify`.

Everything heavy is imported inside the verbs, so that --help answers at once.
"""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from edgetune.lookup import AsJson, print_json

SAMPLES = 500


def bundle(
    run_folder: Annotated[Path, typer.Argument(help="The folder of a run for a Jetson.", metavar="RUN")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The folder to write; default: RUN/bundle.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option("--data", help="Class folders; default: where the run's images lay.")
    ] = None,
    samples: Annotated[int, typer.Option(min=0, help="Test images to verify on, at most; 0: all.")] = SAMPLES,
    as_json: AsJson = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress, only the result.")] = False,
) -> None:
    """Pack what a device needs to build, verify and time engines: a folder, and the same as .tar.gz."""
    from edgetune.progress import Silent, Terminal
    from edgetune.steps import bundle_run

    made = bundle_run(run_folder, out, data, samples, Silent() if quiet else Terminal())
    if as_json:
        print_json(made)
        return
    engines = " and ".join(made["engines"])
    typer.echo(f"{made['folder']}: {engines}, {made['samples']} samples, {made['bytes'] / 1e6:.1f} MB")
    typer.echo(f"{made['archive']}: the same in one file")
    typer.echo(f"next, on the device: python3 {shlex.quote(Path(made['folder']).name + '/edgetune.pyz')}")


def verify(
    folder: Annotated[Path, typer.Argument(help="The bundle's folder, results inside.", metavar="BUNDLE")],
    run: Annotated[
        Path | None,
        typer.Option("--run", help="The run it was made of; default: where it lies.", metavar="RUN"),
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="What could not be judged counts as failed (exit 7).")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Judge what a device measured: agreement, accuracy, latency, energy (exit 7: a gate failed)."""
    from edgetune.steps import verify_bundle

    judged, page = verify_bundle(folder, run, strict=strict)
    if as_json:
        print_json(judged)
    else:
        from rich.console import Console

        from edgetune.report.table import print_summary

        print_summary(judged, Console(highlight=False), page)
    if judged["exit_code"]:
        raise typer.Exit(judged["exit_code"])
