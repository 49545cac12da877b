"""Verbs that train beyond one network and one recipe: `distill`.

Everything heavy is imported inside the verbs, so that --help answers at once.
"""

from pathlib import Path
from typing import Annotated

import typer

from edgetune.lookup import AsJson, Quiet, progress_for, show_made


def distill(
    recipe: Annotated[
        Path, typer.Argument(help="A recipe; only its data, model, finetune and distill sections count.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", help="The folder; default: runs/NAME/checkpoint. The teacher lies beside it."
        ),
    ] = None,
    accelerator: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Distill a teacher into a smaller network: images, a teacher and a recipe become a checkpoint."""
    from edgetune.steps import distill_alone

    show_made(distill_alone(recipe, out, accelerator, progress_for(quiet)), as_json)
