"""Packs what a device needs to build, verify and time engines: one folder, and the same as one archive.

Networks in the rendering that its TensorRT reads, test samples with the outputs that ONNX Runtime gives for
them, a plan of work, digests, and one program in plain Python. Nothing else: no checkpoint, no training
images. It may import artifact, data, device, engines, profile, progress and quant.
"""

import json
import shlex
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray

from edgetune.artifact import TOKENIZER_FILE, Artifact, How, Tokens, disk_error, sha256_of, write_atomic
from edgetune.data.calibration import choose_samples
from edgetune.data.folders import Dataset, Sample
from edgetune.data.images import normalise
from edgetune.data.inputs import BATCH, Batch, Inputs
from edgetune.data.reader import at, buckets, for_file, frames
from edgetune.data.subset import chosen, interleaved, relabelled
from edgetune.device import by_hand
from edgetune.device.packing import PROGRAM, pack, write_program
from edgetune.device.program.plan import PLAIN, SCHEMA, WORK_FILE
from edgetune.device.readme import EXAMPLES, SCALES, tell
from edgetune.engines.onnxruntime import Session
from edgetune.errors import ArtifactError, ConfigError
from edgetune.profile import Target, check_input, own_content
from edgetune.progress import Progress, Silent
from edgetune.quant import dla, implicit
from edgetune.quant.lint_view import reader_of

INPUTS, TABLE = "samples.bin", "table.bin"
# Texts that are filled up or cut to a length that none of the samples has.
LENT = 16
# What expected outputs are of; in the plan of work, for whoever reads it.
MEANT = {"fp16": "the FP32 network", "int8": "the INT8 network with Q/DQ"}
# Training images that show what tensors without Q/DQ hold.
OBSERVED = 128
# Samples that take a process each, where a device has trtexec alone: as few as the gates take.
TRTEXEC_SAMPLES = 100
# Files that not every bundle has: an earlier one's do not stay.
SOMETIMES = (TABLE, TOKENIZER_FILE, SCALES, by_hand.SCRIPT, "int8.onnx", "int8.expected.bin")
TIMING = {"warmup_s": 2.0, "seconds": 30.0, "queries": 1000, "rounds": 30, "limit_s": 300.0}
# By the rules of MLPerf's SingleStream (mlcommons/inference_policies); Offline is not run on a device.
SINGLE_STREAM = TIMING | {"seconds": 600.0, "queries": 64, "limit_s": 6000.0}


def bundle(
    network: Artifact,
    int8: Artifact | None,
    data: Dataset,
    target: Target,
    *,
    name: str,
    samples: int,
    into: Path,
    dla_core: int | None = None,
    preset: str = "quick",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Write a folder for a device, and `INTO.tar.gz` with the same.

    Args:
        network: the exported network.
        int8: made of it for the target; None where the target has no use for it.
        data: whose test split gives the samples.
        target: the device.
        name: of the run.
        samples: how many, at most; 0: all of the test split.
        into: the folder; one with an earlier bundle is brought up to date, its results stay.
        dla_core: that both engines are built for, with the GPU for what it cannot run; None: the GPU alone.
        preset: `mlperf` times as its SingleStream does; any other for 30 s and 1,000 queries.
        progress: counts samples.

    Returns:
        `folder`, `archive`, `bytes`, `samples`, `engines`, `digest` (of the plan of work), `start` (what to type
        on the device, beside the folder), `no_int8` (why there is none; empty where there is).

    Raises:
        ConfigError: the target is no device, has no such DLA, or INT8 is missing or was made for another one;
            the network takes more than one input at a time; the folder holds something else.
        ArtifactError: a file is missing.
        StageError: the disk is full.
    """
    int8 = None if target.no_int8 else int8
    preprocess = _checked(network, int8, target, dla_core)
    if dla_core is not None:
        dla.refuse(target, dla_core)
    shown = progress or Silent()
    archive = into.with_name(f"{into.name}.tar.gz")
    _check_places(into, archive)
    into.parent.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(prefix=f".{into.name}.", dir=into.parent) as scratch:
            made = Path(scratch)
            work = _fill(
                made, network, int8, data, target, preprocess, name, samples, dla_core, preset, shown
            )
            into.mkdir(exist_ok=True)
            for item in SOMETIMES:
                (into / item).unlink(missing_ok=True)
            names = sorted(file.name for file in made.iterdir())
            for item in names:
                # The examples are there to be changed.
                if item in work["files"] or item == WORK_FILE or not (into / item).exists():
                    (made / item).replace(into / item)
            pack(into, names, archive)
            if dla_core is not None:
                _tell_fallbacks(into / "int8.onnx", target, shown)
    except OSError as error:
        raise disk_error(error, into) from error
    return {
        "folder": str(into),
        "archive": str(archive),
        "bytes": sum(file.stat().st_size for file in into.iterdir() if file.is_file()),
        "samples": work["samples"]["number"],
        "engines": [engine["name"] for engine in work["engines"]],
        "digest": sha256_of(into / WORK_FILE),
        "start": f"sh {into.name}/{by_hand.SCRIPT}" if target.no_int8 else f"python3 {into.name}/{PROGRAM}",
        "no_int8": target.no_int8,
    }


def _checked(network: Artifact, int8: Artifact | None, target: Target, dla_core: int | None) -> How:
    """Refuse what no engine could be built of."""
    if target.is_host:
        raise ConfigError(
            f"{target.label}: engines are built by TensorRT for a GPU, and this is no profile of one",
            hint="run it for a device: edgetune run RECIPE --profile jetson-orin-nano-8gb",
        )
    made_for = int8.details.get("rendering") if int8 else None
    if made_for != target.runtime.rendering and not target.no_int8:
        found = f"{int8.path}: quantized with the rendering {made_for!r}" if int8 else "nothing is quantized"
        raise ConfigError(
            f"{found}, and {target.label} needs {target.runtime.rendering!r}",
            hint="run it for that device: edgetune run RECIPE --profile NAME",
        )
    check_input("uint8_nhwc" if network.inputs[0].dtype == "uint8" else "", target.runtime)
    preprocess = network.preprocess
    if preprocess is None:
        raise ArtifactError(
            f"{network.path}: does not say how inputs are preprocessed", hint="export it again"
        )
    lengths = _lengths_of(preprocess)
    if lengths and (target.no_int8 or dla_core is not None):
        raise ConfigError(
            f"{network.path}: takes texts of {', '.join(map(str, lengths))} tokens, and "
            f"{'what is built by hand' if target.no_int8 else 'a DLA'} takes one length",
            hint="export it for one: export.lengths: [64]",
        )
    shapes = [spec.shape for spec in network.inputs]
    one = isinstance(preprocess, Tokens) or len(shapes) == 1
    if not one or any(shape[0] != 1 for shape in shapes):
        raise ConfigError(
            f"{network.path}: takes {', '.join(str(list(shape)) for shape in shapes)}; a bundle verifies one "
            "input at a time",
            hint="export it with export.batch: 1",
        )
    return preprocess


def _check_places(into: Path, archive: Path) -> None:
    """Refuse to write over anything but an earlier bundle."""
    if not PLAIN.fullmatch(into.name):
        raise ConfigError(f"{into}: name the folder with letters, digits, points and dashes alone")
    known = _is_bundle(into)
    if into.exists() and not known and not (into.is_dir() and not any(into.iterdir())):
        raise ConfigError(f"{into}: holds something else than a bundle", hint="choose another folder: -o DIR")
    if archive.exists() and not known:
        raise ConfigError(
            f"{archive}: is in the way of the bundle's archive", hint="choose another folder: -o DIR"
        )


def _is_bundle(folder: Path) -> bool:
    try:
        content = json.loads((folder / WORK_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and {"schema_version", "engines", "samples", "files"} <= set(content)


def _fill(
    folder: Path,
    network: Artifact,
    int8: Artifact | None,
    data: Dataset,
    target: Target,
    preprocess: How,
    name: str,
    most: int,
    dla_core: int | None,
    preset: str,
    progress: Progress,
) -> dict[str, Any]:
    """Write all files; the plan of work, which names the others with their digests, comes last."""
    strong = int8 if target.runtime.rendering == "strong" else None
    shutil.copyfile(strong.file("fp16.onnx") if strong else network.file("model.onnx"), folder / by_hand.ONNX)
    # Up to TensorRT 10.7, a DLA takes the scales beside the graph.
    beside = dla_core is not None and not dla.takes_pairs(target)
    picked = _pick(data, network, preprocess, most)
    # What is right is FP32's answer for an FP16 engine, and the INT8 graph's own for an INT8 one.
    right = {"fp16": Session(network.file("model.onnx"))}
    if int8:
        if beside:
            _write_without_qdq(folder, int8, data, target, network, progress)
        else:
            shutil.copyfile(int8.file("model.onnx"), folder / "int8.onnx")
        right["int8"] = Session(int8.file("model.onnx"), exact=True)
    samples = _write_samples(folder, data.root, picked, network, preprocess, right, progress)
    if isinstance(preprocess, Tokens):
        shutil.copyfile(preprocess.file, folder / TOKENIZER_FILE)
    write_program(folder / PROGRAM)
    tell(folder, target, preprocess, len(picked), min(TRTEXEC_SAMPLES, len(picked)), dla_core, beside)
    work = {
        "schema_version": SCHEMA,
        "name": name,
        "wanted": wanted(target) | {"dla_core": dla_core},
        **_tensors(network, preprocess),
        "classes": list(network.classes),
        "preprocess": preprocess.model_dump(mode="json"),
        "engines": [
            _engine(name, target, dla_core) | ({"scales": SCALES} if beside and name == "int8" else {})
            for name in right
        ],
        "samples": samples,
        "timing": SINGLE_STREAM if preset == "mlperf" else TIMING,
        "trtexec_samples": TRTEXEC_SAMPLES,
        "int8_nodes": [
            node["name"]
            for node in (int8.details.get("layers", ()) if int8 else ())
            if node["precision"] == "INT8"
        ],
        "parents": {"onnx": network.digest} | ({"int8": int8.digest} if int8 else {}),
        "files": {f.name: sha256_of(f) for f in sorted(folder.iterdir()) if f.name not in EXAMPLES},
    }  # fmt: skip
    write_atomic(folder / WORK_FILE, json.dumps(work, indent=1, ensure_ascii=False) + "\n")
    return work


def _write_without_qdq(
    folder: Path, int8: Artifact, data: Dataset, target: Target, network: Artifact, progress: Progress
) -> None:
    """Write the quantized network without Q/DQ and the scales of its tensors."""
    samples = choose_samples(data, OBSERVED, "balanced", 0)
    how = network.preprocess
    assert how is not None

    def batches() -> Iterator[Batch]:
        for part in frames(data.root, samples, how, BATCH):
            yield for_file(part, how, network.inputs)

    model, scales = implicit.render(
        onnx.load_model(int8.file("model.onnx")),
        reader_of(target, dla=True),
        Inputs(batches, len(samples), "scales", progress),
    )
    onnx.save_model(model, folder / "int8.onnx")
    (folder / SCALES).write_text(json.dumps(scales, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def _tell_fallbacks(network: Path, target: Target, progress: Progress) -> None:
    """Say what will run on the GPU beside a DLA, as far as it is known here."""
    said = dla.on_gpu(onnx.load_model(network), target)
    if said:
        how = f"edgetune lint {shlex.quote(str(network))} --profile {shlex.quote(target.label)} --dla"
        progress.line(f"warning: {said}: the GPU runs what the DLA does not. See all: {how}")


def wanted(target: Target) -> dict[str, Any]:
    """What the bundle is made for, to tell on the device what is otherwise there."""
    profile, jetpack = target.profile, target.profile.jetpacks[target.jetpack]
    # A workstation tells of its own memory, which is not its GPU's, and of no JetPack.
    jetson = profile.kind == "jetson"
    return {
        "profile": target.label, "module": profile.title, "jetpack": target.jetpack if jetson else None,
        "tensorrt": jetpack.tensorrt, "no_int8": target.no_int8, "power_mode": target.mode,
        "power_mode_id": profile.modes[target.mode].nvpmodel_id,
        "compute_capability": profile.compute_capability, "memory_gb": profile.memory_gb if jetson else None,
        **own_content(target),
    }  # fmt: skip


def _engine(name: str, target: Target, dla_core: int | None) -> dict[str, Any]:
    profile = target.profile
    return {
        "name": name, "onnx": f"{name}.onnx", "precision": name, "typing": target.runtime.rendering,
        "workspace_mb": profile.workspace, "optimization_level": profile.optimization_level,
        "dla_core": dla_core,
    }  # fmt: skip


class _Picked(NamedTuple):
    """A sample of the bundle.

    Attributes:
        sample: the image or text.
        length: of several lengths of texts the one that it takes; 0: there is one.
        label: None where it was filled up or cut to another length than its own: there again, it is no sample.
    """

    sample: Sample
    length: int
    label: int | None


def _lengths_of(how: How) -> tuple[int, ...]:
    """Return the lengths of texts, where there are several."""
    return how.lengths if isinstance(how, Tokens) and len(how.lengths) > 1 else ()


def _pick(data: Dataset, network: Artifact, how: How, most: int) -> list[_Picked]:
    """Return samples of the test split: at most so many, and some more where a length has none; 0: all."""
    order = interleaved(chosen(data.splits["test"], most))
    own = relabelled(order, data.classes, network.classes)
    if not _lengths_of(how):
        return [_Picked(sample, 0, sample.label) for sample in own]
    shares = buckets(data.root, own, how, LENT)
    turns = zip_longest(
        *(
            [_Picked(one, share.length, one.label if share.own else None) for one in share.samples]
            for share in shares
        )
    )
    return [one for turn in turns for one in turn if one]


def _write_samples(
    folder: Path,
    root: Path,
    picked: list[_Picked],
    network: Artifact,
    how: How,
    right: Mapping[str, Session],
    progress: Progress,
) -> dict[str, Any]:
    """Write inputs, and what each network makes of them as float32 `[N, K]`; return what the plan of work says of it.

    Pixels as uint8: where networks take that, as they take it, `[N, H, W, C]`; else `[N, C, H, W]`, with a table of
    what they become. Of a text, one network's input after the other.
    """
    expected = {name: f"{name}.expected.bin" for name in right}
    opened = {name: (folder / file).open("wb") for name, file in expected.items()}
    progress.begin("bundle", len(picked), "sample")
    with (folder / INPUTS).open("wb") as inputs:
        for one in _read(root, picked, how):
            given = for_file(one, how, network.inputs)
            if isinstance(given, np.ndarray):
                inputs.write((given if given.dtype == np.uint8 else one).tobytes())
            else:
                inputs.write(b"".join(given[spec.name].tobytes() for spec in network.inputs))
            for name, session in right.items():
                outputs = session.run(given)
                opened[name].write(outputs[0].astype("<f4").tobytes())
            progress.advance()
    progress.end()
    for handle in opened.values():
        handle.close()
    table = not isinstance(how, Tokens) and network.inputs[0].dtype != "uint8"
    if table:
        levels = np.tile(np.arange(256, dtype=np.uint8), (network.of_images().channels, 1))
        values = normalise(levels[None, :, :, None], network.of_images())
        (folder / TABLE).write_bytes(values.astype("<f4").tobytes())
    several = {"lengths": [one.length for one in picked]} if _lengths_of(how) else {}
    return {
        "number": len(picked), "inputs": INPUTS, "table": TABLE if table else "", "expected": expected,
        "expected_of": MEANT, "labels": [one.label for one in picked], **several,
    }  # fmt: skip


def _tensors(network: Artifact, how: How) -> dict[str, Any]:
    """Return what the plan of work says of what goes in and comes out."""
    # Open is nothing but the length of texts.
    takes, *more = (
        spec.model_dump()
        | {"shape": [size if isinstance(size, int) else _lengths_of(how)[-1] for size in spec.shape]}
        for spec in network.inputs
    )
    several = _lengths_of(how)
    return {
        "input": takes, **({"more_inputs": more} if more else {}), **({"lengths": several} if several else {}),
        "outputs": [spec.model_dump() for spec in network.outputs],
    }  # fmt: skip


def _read(root: Path, picked: list[_Picked], how: How) -> Iterator[NDArray[Any]]:
    """Give one sample after another."""
    if not _lengths_of(how):
        return frames(root, [one.sample for one in picked], how, 1)
    return chain.from_iterable(frames(root, [one.sample], at(how, one.length), 1) for one in picked)
