"""The verb `edgetune estimate`. Everything heavy is imported inside, so that --help answers at once."""

from pathlib import Path
from typing import Annotated

import typer

from edgetune.errors import ConfigError
from edgetune.lookup import AsJson, print_json


def estimate(
    models: Annotated[
        list[Path],
        typer.Argument(
            help="An .onnx file or an artifact's folder; with --fit, runs.", metavar="MODEL|RUN..."
        ),
    ],
    profile: Annotated[
        str, typer.Option("--profile", help=r"NAME\[:MODE]\[@JETPACK], several with commas, or all.")
    ] = "all",
    precision: Annotated[str, typer.Option(help="int8, fp16, or both with a comma.")] = "int8,fp16",
    limit_ms: Annotated[
        float, typer.Option("--limit-ms", help="Name the cheapest module and mode that meet it.")
    ] = 0.0,
    shape: Annotated[
        list[str] | None,
        typer.Option(help="NAME=1x3x224x224, or without NAME: an input whose size the file leaves open."),
    ] = None,
    fit: Annotated[
        bool, typer.Option("--fit", help="Better parameters from runs that were timed on a device; needs -o.")
    ] = False,
    parameters: Annotated[
        Path | None, typer.Option(help="What --fit wrote, instead of the shipped ones.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="With --fit: the file to write.")] = None,
    as_json: AsJson = False,
) -> None:
    """Latency, memory and fit of a network on modules and modes, without a device."""
    from edgetune.show_estimate import show_estimate, show_fit
    from edgetune.stages.estimate import estimate as look_ahead
    from edgetune.stages.estimate import fit as fit_to

    if fit != (out is not None):
        raise ConfigError("--fit and -o belong together", hint="edgetune estimate --fit RUN... -o mine.json")
    if fit and out:
        made = fit_to(models, out, parameters)
        print_json(made.dump() | {"file": str(out)}) if as_json else show_fit(made, out)
        return
    if len(models) != 1:
        raise ConfigError(f"{len(models)} networks; one at a time", hint="name one .onnx file")
    found = look_ahead(
        models[0],
        profile,
        precision=precision,
        limit_ms=limit_ms,
        shapes=_shapes(shape or []),
        parameters=parameters,
    )
    print_json(found) if as_json else show_estimate(found)


def _shapes(given: list[str]) -> dict[str, tuple[int, ...]]:
    """Read NAME=1x3x224x224; without NAME, the only input's."""
    found = {}
    for text in given:
        name, _, sizes = text.rpartition("=")
        parts = sizes.lower().split("x")
        if not all(part.isdigit() and int(part) > 0 for part in parts):
            raise ConfigError(f"--shape {text}: not a shape", hint="--shape NAME=1x3x224x224")
        found[name] = tuple(map(int, parts))
    return found
