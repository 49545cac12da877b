"""Verbs that look at several trainings at once: `tune` searches settings, `compare` sets runs side by side.

Everything heavy is imported inside the verbs, so that --help answers at once.
"""

from pathlib import Path
from typing import Annotated

import typer

from edgetune.lookup import AsJson, Quiet, print_json, progress_for, typed


def tune(
    recipe: Annotated[Path, typer.Argument(help="A recipe; its tune section says what is searched.")],
    trials: Annotated[int, typer.Option("--trials", "-n", min=1, help="Of the whole search.")] = 30,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The search's folder; default: runs/NAME/tune.")
    ] = None,
    profile: Annotated[
        str, typer.Option("--profile", help=r"Instead of the recipe's: NAME\[:MODE]\[@JETPACK].")
    ] = "",
    accelerator: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Search a recipe's settings for those that do best on the validation images; needs Optuna.

    The same command goes on where it was; in several terminals (or with CUDA_VISIBLE_DEVICES on several GPUs)
    it shares the trials.
    """
    from edgetune.tuning.tune import tune as search

    found = search(
        recipe, trials, out, profile=profile, accelerator=accelerator,
        command=typed(), progress=progress_for(quiet),
    )  # fmt: skip
    if as_json:
        print_json(found)
    else:
        from edgetune.show import show_search

        show_search(found, out or Path("runs") / found["name"] / "tune")


def compare(
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs, or of checkpoints.", metavar="RUN...")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder for compare.html.")] = Path(
        "runs/compare"
    ),
    data: Annotated[
        Path | None, typer.Option("--data", help="Class folders; default: where the runs' images lay.")
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Does it pay? Learning curves of runs side by side, and what each gains, with intervals over seeds."""
    from edgetune.steps import compare_runs

    found = compare_runs(runs, out, data, typed(), progress_for(quiet))
    if as_json:
        print_json(found)
    else:
        from edgetune.show import show_comparison

        show_comparison(found, out)
