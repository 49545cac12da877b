"""Look at a folder of images, or at texts, and write a commented recipe for it.

It knows what is sensible for few or many images. It may import errors, artifact, recipe, profile, data
and models.
"""

import json
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

from edgetune.artifact import Preprocess, Tokens, disk_error, write_atomic
from edgetune.data.files import SPLIT_NAMES
from edgetune.data.folders import Dataset, scan
from edgetune.data.texts import TABLES
from edgetune.errors import ConfigError
from edgetune.learning import HF, moved
from edgetune.models import model_row
from edgetune.profile import load_target
from edgetune.progress import Progress, Silent
from edgetune.recipe import DataSection, load_recipe

FEW_PER_CLASS = 200
MANY_PER_CLASS = 2000

TEMPLATE = """\
# edgetune run {file}
#
# {summary}
# Keys that are left out have defaults; a mistyped key is refused with its line.
schema_version: 1
name: {name}
profile: {profile}    # NAME[:MODE][@JETPACK]; edgetune profiles list

data:
  path: {path}    # relative paths begin at this file's folder
{task}{cut}
model:
  name: {model}    # {known}
  weights: {weights}    # default: the pretrained ones (downloaded once); a .safetensors or .pth file; none
{size}
finetune:
  strategy: {strategy}    # feature-extractor, partial, full, gradual
  # {why}
  epochs: {epochs}
  batch: {batch}
{balance}  patience: {patience}    # stop after so many epochs without a better one on val; 0: never
{extra}  seed: 0

{export}quantize:
  preset: standard    # calibration images and ranges: quick, standard, thorough

gates:    # a failed gate ends the run with exit code 7
  top1_drop_points: 1.0    # INT8 may lose so many points of accuracy
  int8_agreement_percent_min: 95
  # latency_p50_ms: 10    # judged where a latency was measured
  # size_mb: 8
"""


AUGMENT = """\
  augment:
    preset: {augment}    # none, light, standard, strong; knobs override it: flip: 0.5, rotation_deg: 10
"""
EXPORT = """\
export:
  input: float32_nchw    # uint8_nhwc: the graph takes a camera's pixels and normalises them itself

"""
EXPORT_TEXTS = """\
# export:
#   lengths: [32, 128]    # tokens that texts are filled up to; several: each text to the least that holds it

"""


def init(
    data: Path, *, model: str, profile: str, out: Path, weights: str = "default",
    columns: tuple[str, str] = ("", ""), force: bool = False, progress: Progress | None = None,
) -> Dataset:  # fmt: skip
    """Write a recipe for a folder of images, or for texts.

    Args:
        data: class folders, or train/ and val/ or test/ with class folders; a table of texts, or a folder of such.
        model: a row of `edgetune models list`, `timm:NAME`, or for texts `hf:NAME`.
        profile: `NAME[:MODE][@JETPACK]`.
        out: the recipe to write.
        weights: `default`, `none`, or the path of a file.
        columns: of a table, those of texts and labels; empty: found by their names.
        force: replace a recipe that is there.
        progress: who is told how far the look at the images is.

    Returns:
        What was found in the folder.

    Raises:
        ConfigError: the folder cannot be learned from, an unknown name, or a recipe is there already.
    """
    if out.exists() and not force:
        raise ConfigError(f"{out}: is there already", hint="another name with -o, or --force to replace it")
    if data.suffix.lower() in TABLES and not model.startswith(HF):
        raise ConfigError(
            f"{data}: a table of texts, and {model} takes images",
            hint="--model hf:NAME of the Hugging Face hub (sentence-transformers/all-MiniLM-L6-v2, "
            "google-bert/bert-base-chinese), or hf:./FOLDER",
        )
    row = model_row(model)
    if weights not in ("default", "none") and not Path(weights).expanduser().is_file():
        raise ConfigError(f"--weights {weights}: no such file", hint="default, none, or the path of a file")
    target = load_target(profile)
    here = out.absolute().parent
    section = DataSection(
        path=str(data), task="text-classification" if isinstance(row.preprocess, Tokens) else "image-classification",
        text=columns[0], label=columns[1],
    )  # fmt: skip
    found = scan(section, data, progress=progress or Silent())
    advice = _advice(found.noun, len(found.splits["train"]) / max(1, len(found.classes)))
    counts = [sum(s.label == label for s in found.splits["train"]) for label in range(len(found.classes))]
    lopsided = max(counts) > 3 * max(1, min(counts))
    beside = data.iterdir() if data.is_dir() else ()
    cut_by_hand = any(SPLIT_NAMES.get(path.stem.lower()) in ("val", "test") for path in beside)
    text = TEMPLATE.format(
        file=out.name,
        summary=_summary(found),
        name=_quoted(_safe_name(data)),
        profile=_quoted(profile),
        path=_quoted(_relative(data, here)),
        cut=""
        if cut_by_hand
        else "  val_share: 0.15    # chooses the best epoch\n  test_share: 0.2    # decides the gates\n",
        model=_quoted(moved(model, Path(), here)),
        weights=_quoted(weights if weights in ("default", "none") else _relative(Path(weights), here)),
        balance="  class_weights: balanced    # the classes differ much in size\n" if lopsided else "",
        patience=5 if advice.epochs > 10 else 0,
        **advice._asdict(),
        **_of_texts(row.preprocess, section)
        if isinstance(row.preprocess, Tokens)
        else _of_images(row.preprocess, found.gray, advice),
    )
    try:
        here.mkdir(parents=True, exist_ok=True)
        write_atomic(out, text)
    except OSError as error:
        raise disk_error(error, out) from error
    # What was just written is read back, so that a recipe that cannot be run is never left behind.
    load_target(load_recipe(out).profile or target.label)
    return found


class Advice(NamedTuple):
    """How to train, by the number of training samples per class; `augment` is of images."""

    strategy: str
    why: str
    epochs: int
    augment: str


def _advice(noun: str, per_class: float) -> Advice:
    few = f"few {noun}s: only the head learns, on features computed once"
    if per_class < FEW_PER_CLASS:
        return Advice("feature-extractor", few, 30, "none")
    if noun == "text":
        # A pretrained encoder takes minutes for an epoch, and learns a task in a few.
        return Advice("partial", "enough texts for the head and the last layers", 3, "none")
    if per_class < MANY_PER_CLASS:
        return Advice("partial", "enough images for the head and the last groups of layers", 15, "light")
    return Advice("full", "many images: every weight learns", 20, "standard")


def _of_images(how: Preprocess, gray: bool, advice: Advice) -> dict[str, Any]:
    """Return what a recipe says of images alone."""
    return {
        "task": "",
        "known": "edgetune models list",
        "size": "  adapter: sum    # gray images into a network made for colour; or: conv\n" if gray else "",
        "batch": 32 if how.size_px >= 128 else 64,
        "extra": AUGMENT.format(augment=advice.augment),
        "export": EXPORT,
    }


def _of_texts(how: Tokens, section: DataSection) -> dict[str, Any]:
    """Return what a recipe says of texts alone."""
    named = {"text": section.text, "label": section.label}
    columns = "".join(f"  {key}: {_quoted(value)}\n" for key, value in named.items() if value)
    return {
        "task": f"  task: {section.task}\n{columns}",
        "known": "hf:NAME of the Hugging Face hub, or hf:./FOLDER",
        "size": f"  length: {how.length}    # tokens of the longest input; longer texts are cut\n",
        "batch": 32,
        "extra": "",
        "export": EXPORT_TEXTS,
    }


def _summary(found: Dataset) -> str:
    parts = ", ".join(f"{len(samples)} {split}" for split, samples in found.splits.items())
    faults = f"; {len(found.broken)} unreadable" if found.broken else ""
    return f"{len(found.classes)} classes; {found.noun}s: {parts}{faults}"


def _safe_name(data: Path) -> str:
    name = data.stem if data.suffix.lower() in TABLES else data.absolute().name
    kept = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "-" for c in name)
    return kept.strip("-._")[:64] or "run"


def _relative(path: Path, folder: Path) -> str:
    try:
        return os.path.relpath(path.absolute(), folder)
    except ValueError:
        return str(path.absolute())


def _quoted(text: str) -> str:
    """Write a string so that YAML reads it back as the same string; JSON's quoting is YAML's too."""
    plain = re.fullmatch(r"[A-Za-z./][A-Za-z0-9_./-]*", text) and text.lower() not in (
        "true",
        "false",
        "null",
    )
    return text if plain else json.dumps(text, ensure_ascii=False)
