"""Verbs that take networks to a device and judge what comes back: `bundle`, `build`, `device` (by SSH), `verify`.

Everything heavy is imported inside the verbs, so that --help answers at once.
"""

from pathlib import Path
from typing import Annotated, Any

import typer

from edgetune.lookup import AsJson, Junit, Quiet, print_json, progress_for, show_judged

device_app = typer.Typer(no_args_is_help=True, help="A device by SSH, with your own keys and configuration.")

Bundle = Annotated[Path, typer.Argument(help="The folder that edgetune bundle wrote.", metavar="BUNDLE")]
Url = Annotated[
    str,
    typer.Argument(
        help="ssh://USER@HOST:PORT/FOLDER; the folder is the bundle's there, by default ~/edgetune/BUNDLE, "
        "of a run ~/edgetune/RUN-bundle.",
        metavar="URL",
    ),
]

On = Annotated[str, typer.Option("--on", help="A device: ssh://USER@HOST:PORT/FOLDER.", metavar="URL")]


def bundle(
    run_folder: Annotated[Path, typer.Argument(help="The folder of a run for a Jetson.", metavar="RUN")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The folder to write; default: RUN/bundle.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option("--data", help="Class folders; default: where the run's images lay.")
    ] = None,
    samples: Annotated[int, typer.Option(min=0, help="Test images to verify on, at most; 0: all.")] = 500,
    dla: Annotated[
        int | None,
        typer.Option(
            "--dla", min=0, help="Build for this DLA core; the GPU runs what it cannot.", metavar="CORE"
        ),
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Pack what a device needs to build, verify and time engines: a folder, and the same as .tar.gz."""
    from edgetune.away import bundle_run

    made = bundle_run(run_folder, out, data, samples, progress_for(quiet), dla)
    if as_json:
        print_json(made)
        return
    engines = " and ".join(made["engines"]) + ("" if dla is None else f" on DLA {dla}")
    typer.echo(f"{made['folder']}: {engines}, {made['samples']} samples, {made['bytes'] / 1e6:.1f} MB")
    typer.echo(f"{made['archive']}: the same in one file")
    if made["no_int8"]:
        typer.echo(f"FP16 alone: {made['no_int8']}")
    typer.echo(f"next, on the device: {made['start']}")


def build(
    run_folder: Annotated[Path, typer.Argument(help="The folder of a run for a Jetson.", metavar="RUN")],
    on: On = "",
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The bundle's folder; default: RUN/bundle.")
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Build a run's FP16 and INT8 engines: on a device, or with the TensorRT of this machine."""
    from edgetune.away import build_engines
    from edgetune.show import show_engines

    made = build_engines(run_folder, out, on, progress_for(quiet))
    print_json(made) if as_json else show_engines(made)
    if not made["finished"]:
        raise typer.Exit(6)


def judged_on_device(
    folders: list[Path],
    url: str,
    only: str,
    as_json: bool,
    quiet: bool,
    here: dict[str, Any],
    junit: Path | None = None,
) -> None:
    """Do one step with a run's engines on a device, and show what is known of them there.

    Args:
        folders: one, of a run.
        url: the device.
        only: the step.
        as_json: print JSON.
        quiet: say nothing meanwhile.
        here: options that say how it is done on this machine; those that are set would not count.
        junit: the file for CI.

    Raises:
        typer.Exit: with 7, a gate failed.
        typer.BadParameter: an option that does not count on a device.
    """
    for option in (name for name, value in here.items() if value):
        raise typer.BadParameter(
            "is for this machine; on a device the run's recipe and bundle say how",
            param_hint=f"--{option} with --on",
        )
    from edgetune.away import one_run, run_on_device

    judged, page = run_on_device(one_run(folders), url, strict=False, progress=progress_for(quiet), only=only)
    show_judged(judged, page, as_json, junit)


def verify(
    folder: Annotated[Path, typer.Argument(help="The bundle's folder, results inside.", metavar="BUNDLE")],
    run: Annotated[
        Path | None,
        typer.Option("--run", help="The run it was made of; default: where it lies.", metavar="RUN"),
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="What could not be judged counts as failed (exit 7).")
    ] = False,
    junit: Junit = None,
    as_json: AsJson = False,
) -> None:
    """Judge what a device measured: agreement, accuracy, latency, energy (exit 7: a gate failed)."""
    from edgetune.away import verify_bundle

    show_judged(*verify_bundle(folder, run, strict=strict), as_json, junit)


@device_app.command("probe")
def device_probe(url: Url, as_json: AsJson = False) -> None:
    """Say what a device is, and what would spoil a build or a measurement there; nothing stays there."""
    from edgetune.away import probe_device
    from edgetune.device.program.main import shown

    found = probe_device(url)
    print_json(found) if as_json else typer.echo("\n".join(shown(**found)))


@device_app.command("push")
def device_push(bundle: Bundle, url: Url, as_json: AsJson = False, quiet: Quiet = False) -> None:
    """Send a bundle to a device; what is there already is not sent again, what was cut goes on."""
    from edgetune.device.remote import push

    made = push(bundle, url, progress_for(quiet))
    said = f"{made['folder']}: {len(made['sent'])} files sent, {made['bytes'] / 1e6:.1f} MB"
    print_json(made) if as_json else typer.echo(said)


@device_app.command("run")
def device_run(
    bundle: Bundle,
    url: Url,
    lock_clocks: Annotated[
        bool, typer.Option("--lock-clocks", help="Lock clocks meanwhile, with sudo there; put back after.")
    ] = False,
    trtexec: Annotated[
        bool, typer.Option("--trtexec", help="Use trtexec even where the Python bindings are.")
    ] = False,
    seconds: Annotated[
        float, typer.Option(min=0, help="Of recorded inferences per engine; 0: the bundle's.")
    ] = 0,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Send a bundle, have it worked off on the device, and bring the results back into it.

    A lost connection does not stop the work there: the same command picks it up again.
    """
    from edgetune.device.remote import run

    arguments = ["--lock-clocks"] * lock_clocks + ["--trtexec"] * trtexec
    arguments += ["--seconds", str(seconds)] if seconds else []
    _show_results(run(bundle, url, arguments, progress_for(quiet)), as_json)


@device_app.command("stop")
def device_stop(
    url: Url,
    bundle: Annotated[
        Path | None,
        typer.Argument(help="The bundle at work; default: whichever is there.", metavar="BUNDLE"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Stop a run on a device, which puts clocks back first; running it again goes on from there."""
    from edgetune.device.remote import stop

    found = stop(url, bundle)
    if as_json:
        print_json(found)
        return
    for folder in found["stopped"]:
        typer.echo(f"{folder}: stopped; edgetune device run goes on from there")
    if not found["stopped"]:
        typer.echo(f"{found['folder']}: nothing is at work there")


@device_app.command("pull")
def device_pull(
    bundle: Bundle,
    source: Annotated[
        str, typer.Argument(help="Where it was run: URL as above, or a folder copied from there.")
    ],
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Bring a bundle's results back into it."""
    from edgetune.device.remote import pull

    _show_results(pull(bundle, source, progress_for(quiet)), as_json)


def _show_results(results: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(results)
    else:
        came = f"{len(results['files'])} files came, {results['bytes'] / 1e6:.1f} MB"
        typer.echo(f"{results['folder']}: {came}; {'finished' if results['finished'] else 'not finished'}")
        for step, problem in results["errors"].items():
            typer.echo(f"  {step}: {problem['message']}")
            if problem.get("hint"):
                typer.echo(f"    {problem['hint']}")
    if not results["finished"]:
        raise typer.Exit(6)
