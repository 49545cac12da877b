"""What a profile may say is said in its classes, key by key."""

import re

import pytest

from edgetune.hardware import JetPack, Mode, Profile, Runtime
from edgetune.profile import load_profile
from edgetune.recipe import Gates, RecipeGates, Section


@pytest.mark.parametrize("section", [Profile, Mode, JetPack, Runtime, Gates, RecipeGates])
def test_each_key_has_a_sentence(section: type[Section]) -> None:
    inherited = set(Gates.model_fields) if section is RecipeGates else set()
    keys = set(section.model_fields) - inherited
    assert keys
    said = set(re.findall(r"^        (\w+): ", section.__doc__ or "", re.MULTILINE))
    assert keys == said


def test_the_workspace_is_a_quarter_of_the_memory_unless_the_profile_says() -> None:
    profile = load_profile("jetson-orin-nano-4gb")
    assert profile.workspace == 1024
    assert profile.model_copy(update={"workspace_mb": 300}).workspace == 300


def test_the_best_mode_has_the_highest_peak() -> None:
    assert load_profile("jetson-agx-xavier").best.gpu_mhz == 1377
    assert load_profile("jetson-nano-4gb").best.fp16_dense_tflops == 0.472
