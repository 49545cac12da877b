"""Verbs for one stage at a time: `finetune`, `distill`, `export`, `quantize`, `check`, `bench`.

Everything heavy is imported inside the verbs, so that --help answers at once.
"""

from pathlib import Path
from typing import Annotated, Any

import typer

from edgetune.devices import On, judged_on_device
from edgetune.lookup import (
    Accelerator,
    ArtifactFolder,
    AsJson,
    Junit,
    ProfileName,
    Quiet,
    print_json,
    progress_for,
    show_made,
    typed,
)

DataFolder = Annotated[
    Path | None,
    typer.Option("--data", help="Class folders, or texts; default: where the artifact's data lay."),
]
OutFolder = Annotated[
    Path | None, typer.Option("--out", "-o", help="The folder to write; default: beside the input.")
]
FILES = "How images become inputs of a file"
PreprocessPreset = Annotated[str, typer.Option(help=f"{FILES}, as a preset: imagenet, zero-one, ...")]
Resize = Annotated[int, typer.Option(min=0, help=f"{FILES}: shorter side in pixels.")]
Crop = Annotated[int, typer.Option(min=0, help=f"{FILES}: side of the middle square in pixels.")]
Mean = Annotated[str, typer.Option(help=f"{FILES}: per channel, of 0 to 1: 0.485,0.456,0.406.")]
Std = Annotated[str, typer.Option(help=f"{FILES}: per channel: 0.229,0.224,0.225.")]
Interpolation = Annotated[str, typer.Option(help=f"{FILES}: nearest, bilinear or bicubic.")]


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
    """Fine-tune a network: data and a recipe become a checkpoint."""
    from edgetune.steps import finetune_alone

    show_made(finetune_alone(recipe, out, accelerator, progress_for(quiet)), as_json)


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
    accelerator: Accelerator = "auto",
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Distill a teacher into a smaller network: data, a teacher and a recipe become a checkpoint."""
    from edgetune.steps import distill_alone

    show_made(distill_alone(recipe, out, accelerator, progress_for(quiet)), as_json)


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
    length: Annotated[
        list[int] | None,
        typer.Option(help="Tokens that texts are filled up to; may be repeated. Default: the checkpoint's."),
    ] = None,
    out: OutFolder = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Export a checkpoint to ONNX and compare the two on real inputs."""
    from edgetune.recipe import section_from
    from edgetune.steps import export_alone

    settings = section_from(
        "export",
        {"input": takes, "batch": batch, "dynamic": dynamic, "opset": opset, "lengths": tuple(length or ())},
    )
    show_made(export_alone(checkpoint, profile, settings, data, out, progress_for(quiet)), as_json)


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
    preprocess: PreprocessPreset = "",
    resize: Resize = 0,
    crop: Crop = 0,
    mean: Mean = "",
    std: Std = "",
    interpolation: Interpolation = "",
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
    show_made(made, as_json)


def check(
    folders: Annotated[
        list[Path],
        typer.Argument(help="A run; or a checkpoint, its ONNX and its INT8 artifact.", metavar="RUN"),
    ],
    on: On = "",
    data: DataFolder = None,
    images: Annotated[int, typer.Option(min=0, help="Test images; 0: all.")] = 0,
    out: OutFolder = None,
    junit: Junit = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Compare checkpoint, ONNX and INT8 on the test split; with --on, a run's engines with ONNX Runtime."""
    from edgetune.recipe import CheckSection
    from edgetune.steps import check_alone, three_of

    if on:
        here = {"data": data, "images": images, "out": out}
        judged_on_device(folders, on, "compare", as_json, quiet, here, junit)
        return
    _judges_nothing(junit)
    made = check_alone(*three_of(folders), data, CheckSection(images=images), out, progress_for(quiet))
    _show_measures(made, as_json)


def bench(
    models: Annotated[
        list[Path],
        typer.Argument(
            help="Any .onnx files, engines (.plan), ONNX or INT8 artifacts, timed in turns; or a run."
        ),
    ],
    on: On = "",
    profile: ProfileName = "host-cpu",
    preset: Annotated[
        str, typer.Option(help="quick, standard, or mlperf (by its rules: 20 min each).")
    ] = "quick",
    threads: Annotated[int, typer.Option(min=0, help="0: as many as there are cores.")] = 0,
    provider: Annotated[
        str, typer.Option(help="cpu, cuda or tensorrt, of ONNX Runtime; a GPU needs onnxruntime-gpu.")
    ] = "cpu",
    batch: Annotated[int, typer.Option(min=0, help="Where the batch size is open; 0: 1.")] = 0,
    shape: Annotated[
        list[str] | None,
        typer.Option(help="Where sizes are open: NAME=1x3x224x224; may be repeated.", metavar="NAME=SIZES"),
    ] = None,
    layers: Annotated[
        bool, typer.Option("--layers", help="Time every layer as well: on the CPU, or of engines.")
    ] = False,
    data: Annotated[
        Path | None, typer.Option("--data", help="A folder of images: also from the file to the answer.")
    ] = None,
    preprocess: PreprocessPreset = "",
    resize: Resize = 0,
    crop: Crop = 0,
    mean: Mean = "",
    std: Std = "",
    interpolation: Interpolation = "",
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder for bench.html.")] = Path("runs/bench"),
    junit: Junit = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Time networks on this machine, interleaved, with intervals; with --on, a run's engines on a device.

    Without --data the inputs are random, which hardly matters for latency. Exit 7: above a limit of the profile.
    """
    if on:
        here = {
            "profile": profile != "host-cpu", "preset": preset != "quick", "threads": threads,
            "provider": provider != "cpu", "batch": batch, "shape": shape, "data": data,
            "preprocess": preprocess or resize or crop or mean or std or interpolation, "layers": layers,
        }  # fmt: skip
        judged_on_device(models, on, "time", as_json, quiet, here, junit)
        return
    from edgetune.benching import as_report, bench_alone, is_judged
    from edgetune.data.preprocess import Given, given_as
    from edgetune.engines.feeds import shapes_from
    from edgetune.latency.subjects import Asked

    if junit is not None and not is_judged(profile):
        raise typer.BadParameter(
            f"{profile} limits neither latency nor memory, so no gate is judged", param_hint="--junit"
        )
    given = given_as(preprocess, resize, crop, mean, std, interpolation)
    asked = Asked(batch, shapes_from(shape or ()), data, None if given == Given() else given, layers)
    found = bench_alone(
        models, preset, threads, provider, progress_for(quiet),
        profile=profile, asked=asked, out=out, command=typed(),
    )  # fmt: skip
    if junit is not None:
        from edgetune.report.junit import write_junit

        write_junit(as_report(found), junit)
    if as_json:
        print_json(found)
    else:
        from edgetune.show import show_bench

        show_bench(found, out)
    if found["exit_code"]:
        raise typer.Exit(found["exit_code"])


def _judges_nothing(junit: Path | None) -> None:
    """Refuse to write gates where none is judged: a file without any would read as if all had passed."""
    if junit is not None:
        raise typer.BadParameter(
            "no gate is judged here: edgetune run judges them, --on and edgetune verify those of a device",
            param_hint="--junit without --on",
        )


def _show_measures(measures: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(measures)
    else:
        from edgetune.show import show_measures

        show_measures(measures)
