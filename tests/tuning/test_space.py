"""What may be searched, said by dotted names; what cannot be is refused with its line."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from colours import RECIPE, SPACE
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgetune.errors import ConfigError
from edgetune.recipe import load_recipe
from edgetune.training.strategies import LEARNING_RATES, STRATEGIES
from edgetune.tuning.space import Draft, as_it_is, default_axes, own_values, space_of, value_at, write_recipe

Write = Callable[..., Path]
LINE = RECIPE.count("\n") + 2


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("finetune.learning_rat: [0.1]", "finetune.learning_rat: unknown key; did you mean 'learning_rate'"),
        ("finetun.epochs: [2]", "finetun: unknown key; did you mean 'finetune'"),
        ("finetune.label_smoothing: {low: 0.0, high: 1.5}", "finetune.label_smoothing: input should be less"),
        ("finetune.strategy: [full, half]", "finetune.strategy: input should be 'feature-extractor', "),
        ("finetune.batch: {low: 1.5, high: 8}", "finetune.batch: "),
        ("finetune.batch: {low: 2, high: 8, step: 1.5}", "finetune.batch takes whole numbers only"),
        ("finetune.batch: {low: 8, high: 2}", r"low \(8\) must be below high \(2\)"),
        ("finetune.learning_rate: {low: 0.0, high: 1.0, log: true}", "log needs a low above 0"),
        ("finetune.learning_rate: {low: 0.1, high: 1.0, log: true, step: 0.1}", "do not go together"),
        ("finetune.learning_rate: {low: 0.1}", "high: missing"),
        ("finetune.learning_rate: []", "at least 1 item"),
        ("finetune.seed: [0, 1, 2]", "finetune.seed is not searched: the luckiest seed"),
        ("data.val_share: [0.1, 0.2]", "data.val_share is not searched: trials are compared on the same"),
        ("distill.teacher.name: [resnet50]", "not searched: trials learn from the same teacher"),
        ("gates.size_mb: [1]", "gates.size_mb is not searched"),
    ],
)
def test_an_impossible_space_is_refused_with_its_line(written: Write, entry: str, message: str) -> None:
    path = written(f"  space:\n    {entry}\n")
    with pytest.raises(ConfigError, match=message) as caught:
        space_of(Draft.load(path))
    assert f"{path}:{LINE}" in caught.value.message


def test_latency_is_a_limit_of_int8(written: Write) -> None:
    with pytest.raises(ConfigError, match="latency_ms goes with objective: int8"):
        Draft.load(written("  latency_ms: 3\n"))


def test_whole_numbers_are_found_by_asking_the_recipe(written: Write) -> None:
    entries = "    finetune.label_smoothing: {low: 0, high: 0.5}\n    finetune.epochs: {low: 1, high: 4}\n"
    space = space_of(Draft.load(written(SPACE + entries)))
    assert space.whole == {"finetune.batch", "finetune.epochs"}
    # A whole low does not make a key one of whole numbers.
    clip = space_of(Draft.load(written("  space:\n    finetune.clip: {low: 1, high: 4}\n")))
    assert not clip.whole


def test_the_default_space_is_possible_and_holds_the_defaults(written: Write) -> None:
    for optimizer in ("adamw", "sgd"):
        for strategy in STRATEGIES:
            recipe = RECIPE.replace("strategy: full", f"strategy: {strategy}\n  optimizer: {optimizer}")
            recipe = recipe.replace("  learning_rate: 0.003\n", "").replace("\ntune:\n", "\n")
            draft = Draft.load(written("", recipe))
            found = default_axes(draft.recipe)
            assert space_of(draft).axes == found
            assert len(found) == 4
            mine = as_it_is(draft.recipe, space_of(draft))
            assert mine is not None
            assert mine["finetune.learning_rate"] == LEARNING_RATES[optimizer, strategy]
            assert mine["finetune.weight_decay"] > 0


def test_a_recipe_outside_of_its_space_is_no_trial(written: Write) -> None:
    draft = Draft.load(written("  space:\n    finetune.strategy: [gradual, partial]\n"))
    assert as_it_is(draft.recipe, space_of(draft)) is None
    draft = Draft.load(written("  space:\n    finetune.strategy: [gradual, full]\n"))
    assert as_it_is(draft.recipe, space_of(draft)) == {"finetune.strategy": "full"}


def test_a_default_is_told_as_what_it_stands_for(written: Write) -> None:
    draft = Draft.load(written("  space: {model.size_px: [48, 64], finetune.learning_rate: [0.1, 0.2]}\n"))
    own = {"model.size_px": 32, "finetune.learning_rate": 0.003}
    assert own_values(draft.recipe, space_of(draft)) == own
    assert as_it_is(draft.recipe, space_of(draft)) is None


@given(
    rate=st.floats(1e-6, 1.0),
    preset=st.sampled_from(["none", "light", "strong"]),
    epochs=st.integers(1, 999),
    smoothing=st.floats(0, 0.99),
    weights=st.sampled_from([None, 0.0, 0.01]),
)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_written_recipe_is_the_searched_one(
    written: Write, tmp_path: Path, rate: float, preset: str, epochs: int, smoothing: float, weights: Any
) -> None:
    draft = Draft.load(written())
    changes = {
        "finetune.learning_rate": rate, "finetune.augment.preset": preset, "finetune.epochs": epochs,
        "finetune.label_smoothing": smoothing, "finetune.weight_decay": weights,
    }  # fmt: skip
    path = tmp_path / "elsewhere" / "best.yaml"
    path.parent.mkdir(exist_ok=True)
    write_recipe(draft, changes, ["the best"], path)
    best, wanted = load_recipe(path), draft.changed(changes)
    for key in changes:
        assert value_at(best, key) == changes[key]
    assert best.finetune == wanted.finetune
    assert best.tune == wanted.tune
    assert best.resolve(best.data.path).resolve() == wanted.resolve(wanted.data.path).resolve()
    text = path.read_text()
    assert text.startswith("# the best\n# Photographs of three colours.\n")
    assert "# every weight" in text
    assert "# beside this file" in text


def test_new_keys_stand_in_their_section(written: Write, tmp_path: Path) -> None:
    draft = Draft.load(written())
    write_recipe(draft, {"finetune.label_smoothing": 0.1, "quantize.images": 8}, [], tmp_path / "best.yaml")
    text = (tmp_path / "best.yaml").read_text()
    section = text[text.index("finetune:") : text.index("\ntune:")]
    assert section.startswith("finetune:\n  label_smoothing: 0.1\n  strategy: full")
    assert load_recipe(tmp_path / "best.yaml").quantize.images == 8
