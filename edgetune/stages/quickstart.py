"""Lay out the first run: real handwritten digits as class folders, and the recipe that learns them.

The digits come with scikit-learn, so nothing is downloaded. It may import errors, artifact and recipe.
"""

from importlib.resources import files
from pathlib import Path

import numpy as np
from PIL import Image

from edgetune.artifact import disk_error, write_atomic
from edgetune.recipe import Recipe, load_recipe

DIGITS = 1797


def quickstart_recipe(out: Path) -> Recipe:
    """Write the digits and the recipe into a folder and read the recipe back.

    Args:
        out: the run's folder. A recipe that is there already is kept, with the user's changes.

    Raises:
        StageError: the folder cannot be written.
    """
    recipe = out / "recipe.yaml"
    try:
        write_digits(out / "digits")
        if not recipe.is_file():
            write_atomic(
                recipe, files("edgetune").joinpath("recipes/quickstart.yaml").read_text(encoding="utf-8")
            )
    except OSError as error:
        raise disk_error(error, out) from error
    return load_recipe(recipe)


def write_digits(folder: Path) -> int:
    """Write scikit-learn's digits (Alpaydin and Kaynak 1998) as 8x8 gray PNG files in class folders.

    Files that are there already are left alone.

    Returns:
        The number of images: 1,797.
    """
    if sum(1 for _ in folder.glob("*/*.png")) == DIGITS:
        return DIGITS
    from sklearn.datasets import load_digits

    digits = load_digits()
    for label in range(10):
        (folder / str(label)).mkdir(parents=True, exist_ok=True)
    for index, (pixels, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        path = folder / str(label) / f"{index:04d}.png"
        if not path.is_file():
            # The values run from 0 to 16.
            scratch = path.with_name(f".{path.name}")
            Image.fromarray(np.round(pixels * 255 / 16).astype(np.uint8)).save(scratch, format="PNG")
            scratch.replace(path)
    return DIGITS
