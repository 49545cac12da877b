"""Which settings of a recipe a search may change, and between which values.

A setting goes by its dotted name, `finetune.learning_rate`, so that a section of the recipe can be searched as
soon as it exists. Every end and choice is tried on the recipe, so that an impossible one is refused before an
hour is spent. It knows no search. It may import errors, yaml, recipe, models' rows and training's defaults.
"""

import os
from pathlib import Path
from typing import Any, NamedTuple

from edgetune.errors import ConfigError
from edgetune.learning import moved
from edgetune.recipe import Axis, Recipe, Span
from edgetune.yaml import Document, load_yaml, validate

# What a search must leave alone, and why.
CLOSED = {
    "schema_version": "it is no setting",
    "name": "it changes nothing",
    "profile": "choose it with --profile",
    "data": "trials are compared on the same inputs",
    "check": "trials are judged on validation inputs",
    "bench": "it changes nothing that is trained",
    "gates": "they are limits, not settings",
    "tune": "it is the search itself",
}
# Relative ones begin at the recipe's folder, so they change where the recipe is written elsewhere.
PATHS = (
    "data.path", "model.weights", "quantize.manifest", "distill.teacher.path", "distill.teacher.weights",
    "distill.unlabelled",
)  # fmt: skip
NO_PATH = ("default", "none", "")


class Space(NamedTuple):
    """What is searched.

    Attributes:
        axes: the values of each setting.
        whole: settings that take whole numbers only.
    """

    axes: dict[str, Axis]
    whole: frozenset[str]


class Draft(NamedTuple):
    """A recipe with the file it was read from."""

    recipe: Recipe
    document: Document

    @classmethod
    def load(cls, path: Path) -> "Draft":
        """Read a recipe.

        Raises:
            ConfigError: names file, line and key.
        """
        document = load_yaml(path, what="recipe", hint="edgetune init --data DIR -o recipe.yaml writes one")
        return cls(_recipe(document), document)

    def changed(self, settings: dict[str, Any]) -> Recipe:
        """Return the recipe with some settings changed.

        Raises:
            ConfigError: an unknown key, or a value that it does not take; names the line of `tune.space`.
        """
        values, lines = self.document.values, dict(self.document.lines)
        for key, value in settings.items():
            location = tuple(key.split("."))
            values = _with(values, location, value)
            line = self.document.line(("tune", "space", key))
            lines[location] = line
            for depth in range(1, len(location)):
                lines.setdefault(location[:depth], line)
        return _recipe(Document(self.document.path, values, lines))


def space_of(draft: Draft) -> Space:
    """Return what a recipe's `tune.space` says, or what is worth searching where it says nothing.

    Raises:
        ConfigError: a setting that cannot be searched, is not known, or does not take an end or a choice.
    """
    axes = dict(draft.recipe.tune.space) or default_axes(draft.recipe)
    whole = set()
    for key, axis in axes.items():
        _refuse_closed(key, draft.document)
        for value in _ends(axis):
            draft.changed({key: value})
        if isinstance(axis, Span) and not _takes_fractions(draft, key, axis):
            whole.add(key)
            _refuse_fractions(key, axis, draft.document)
    return Space(axes, frozenset(whole))


def default_axes(recipe: Recipe) -> dict[str, Axis]:
    """Return what is worth searching: around the optimizer's defaults, and what decides most."""
    adam, texts = recipe.finetune.optimizer == "adamw", recipe.data.noun == "text"
    # Encoders of texts take a tenth of the others' rates (models.text).
    low = (1e-4 if adam else 2e-3) * (0.1 if texts else 1)
    axes: dict[str, Axis] = {
        # A tenth to ten times the default rates (training.strategies).
        "finetune.learning_rate": Span(low=low, high=3e-2 if adam else 0.2, log=True),
        "finetune.strategy": ("feature-extractor", "partial", "full", "gradual"),
        **({} if texts else {"finetune.augment.preset": ("none", "light", "standard")}),
        "finetune.weight_decay": Span(low=1e-4 if adam else 1e-6, high=0.3 if adam else 1e-2, log=True),
    }
    distil = getattr(recipe, "distill", None)
    if distil is not None:
        # Hinton et al. 2015 (arXiv:1503.02531) tried temperatures of 1 to 20; beyond 8 little changes.
        axes |= {
            "distill.temperature": Span(low=1.0, high=8.0, log=True),
            "distill.labels": Span(low=0.0, high=0.9),
        }
        if getattr(distil, "features", None):
            axes["distill.feature_weight"] = Span(low=0.1, high=10.0, log=True)
    return axes


def as_it_is(recipe: Recipe, space: Space) -> dict[str, Any] | None:
    """Return the recipe's own values of what is searched; None where one lies outside."""
    found = own_values(recipe, space)
    return found if all(_inside(found[key], axis) for key, axis in space.axes.items()) else None


def own_values(recipe: Recipe, space: Space) -> dict[str, Any]:
    """Return the recipe's own values of what is searched: what a default stands for, not what stands for it."""
    from edgetune.learned import model_name
    from edgetune.models import model_row
    from edgetune.models.build import skeleton
    from edgetune.training.distil import TEMPERATURES
    from edgetune.training.strategies import decay, peak_rate

    found = {key: value_at(recipe, key) for key in space.axes}
    name = model_name(recipe)
    if not found.get("model.size_px", 1):
        found["model.size_px"] = getattr(model_row(name).preprocess, "size_px", 0)
    if not found.get("finetune.learning_rate", 1.0):
        row = model_row(name)
        found["finetune.learning_rate"] = peak_rate(recipe.finetune, skeleton(row), row.rate)
    if found.get("finetune.weight_decay", 0.0) is None:
        found["finetune.weight_decay"] = decay(recipe.finetune)
    if recipe.distill and not found.get("distill.temperature", 1.0):
        found["distill.temperature"] = TEMPERATURES[recipe.distill.loss]
    return found


def described(space: Space) -> dict[str, Any]:
    """Return a space as JSON."""
    return {
        key: axis.model_dump(mode="json") if isinstance(axis, Span) else list(axis)
        for key, axis in space.axes.items()
    }


def value_at(recipe: Recipe, key: str) -> Any:
    """Return a setting of a recipe by its dotted name; None where its section is not there."""
    here: Any = recipe
    for part in key.split("."):
        here = getattr(here, part, None)
    return here


def write_recipe(draft: Draft, settings: dict[str, Any], head: list[str], path: Path) -> None:
    """Write a recipe with changed settings, the original's comments kept.

    Args:
        draft: what is changed.
        settings: by dotted name.
        head: lines of comment for the top.
        path: where it goes; relative paths inside are written anew.

    Raises:
        StageError: the folder cannot be written.
    """
    import io

    from ruamel.yaml import YAML
    from ruamel.yaml.comments import CommentedMap

    from edgetune.artifact import disk_error, write_atomic

    source = draft.document.path
    editor = YAML(typ="rt")
    editor.width, editor.preserve_quotes = 110, True
    content = editor.load(source.read_text(encoding="utf-8-sig"))
    for key, value in {**_moved(draft.recipe, source.parent, path.parent), **settings}.items():
        here = content
        *sections, last = key.split(".")
        for name in sections:
            if not isinstance(here.get(name), CommentedMap):
                here[name] = CommentedMap()
            here = here[name]
        if last in here:
            here[last] = value
        else:
            # In front: behind the last key stands what belongs to the next section.
            here.insert(0, last, value)
    text = io.StringIO()
    editor.dump(content, text)
    lines = [*(f"# {line}" for line in head), text.getvalue()]
    try:
        write_atomic(path, "\n".join(lines))
    except OSError as error:
        raise disk_error(error, path) from error
    # What was just written is read back, so that a recipe that cannot be run is never left behind.
    Draft.load(path)


def _moved(recipe: Recipe, old: Path, new: Path) -> dict[str, str]:
    """Return the relative paths of a recipe as they are written in another folder."""
    found = {}
    for key in PATHS:
        value = value_at(recipe, key)
        if value not in (None, *NO_PATH) and not Path(value).expanduser().is_absolute():
            found[key] = os.path.relpath((old / value).absolute(), new.absolute())
    for key in ("model.name", "distill.teacher.name"):
        name = value_at(recipe, key) or ""
        if moved(name, old, new) != name:
            found[key] = moved(name, old, new)
    return found


def _recipe(document: Document) -> Recipe:
    return validate(Recipe, document).model_copy(update={"folder": document.path.parent})


def _with(values: dict[str, Any], location: tuple[str, ...], value: Any) -> dict[str, Any]:
    """Return nested values with one of them changed; the others are not copied."""
    first, *rest = location
    if not rest:
        return {**values, first: value}
    inside = values.get(first)
    return {**values, first: _with(inside if isinstance(inside, dict) else {}, tuple(rest), value)}


def _ends(axis: Axis) -> tuple[Any, ...]:
    return _whole_ends(axis) if isinstance(axis, Span) else axis


def _whole_ends(span: Span) -> tuple[Any, ...]:
    """Return the ends as whole numbers where they are: a key of whole numbers takes no 8.0."""
    return tuple(int(end) if end.is_integer() else end for end in (span.low, span.high))


def _takes_fractions(draft: Draft, key: str, span: Span) -> bool:
    try:
        draft.changed({key: float(span.low + span.high) / 2})
    except ConfigError:
        return False
    return True


def _refuse_fractions(key: str, span: Span, document: Document) -> None:
    if not all(end.is_integer() for end in (span.low, span.high, span.step or 1.0)):
        raise ConfigError(f"{_place(key, document)}: {key} takes whole numbers only")


def _refuse_closed(key: str, document: Document) -> None:
    section, last = key.split(".")[0], key.split(".")[-1]
    why = CLOSED.get(section) or ("the luckiest seed is no better one" if last == "seed" else "")
    if key.startswith("distill.teacher"):
        why = "trials learn from the same teacher"
    if why:
        raise ConfigError(
            f"{_place(key, document)}: {key} is not searched: {why}",
            hint="search keys of model, finetune, distill, export and quantize",
        )


def _place(key: str, document: Document) -> str:
    return f"{document.path}:{document.line(('tune', 'space', key))}: tune.space"


def _inside(value: Any, axis: Axis) -> bool:
    if not isinstance(axis, Span):
        # 1 is not True, and no other mixing of kinds either.
        return any(value == choice and type(value) is type(choice) for choice in axis)
    return isinstance(value, int | float) and not isinstance(value, bool) and axis.low <= value <= axis.high
