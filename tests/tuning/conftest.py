"""Searches of three colours."""

from collections.abc import Callable
from pathlib import Path

import pytest
from colours import RECIPE, SPACE

from edgetune.data.folders import scan
from edgetune.profile import load_target
from edgetune.progress import Silent
from edgetune.recipe import DataSection
from edgetune.tuning.space import Draft, space_of
from edgetune.tuning.trial import Search


@pytest.fixture
def written(class_folders: Path) -> Callable[..., Path]:
    """Writes a recipe beside images of three colours, with a `tune` section."""

    def write(tune: str = SPACE, recipe: str = RECIPE) -> Path:
        path = class_folders.parent / "recipe.yaml"
        path.write_text(recipe + tune)
        return path

    return write


@pytest.fixture
def searching(written: Callable[..., Path], class_folders: Path, tmp_path: Path) -> Callable[..., Search]:
    """Makes a search of the recipe with a `tune` section, in `study`."""

    def make(tune: str = SPACE) -> Search:
        draft = Draft.load(written(tune))
        data = scan(DataSection(path="images", min_images=2), class_folders)
        return Search(
            draft, space_of(draft), load_target("host-cpu"), tmp_path / "study", data, "cpu", Silent()
        )

    return make
