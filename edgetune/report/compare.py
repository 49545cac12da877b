"""The page that sets trainings side by side: compare.html, and compare.json beside it.

It may import the report's other files.
"""

import datetime
from pathlib import Path
from typing import Any

import edgetune
from edgetune.report import wording
from edgetune.report.render import write_page
from edgetune.report.schema_compare import Against, Compared, Group, Tested, read_comparison

SCHEMA_VERSION = 1


def publish(compared: dict[str, Any], folder: Path) -> None:
    """Write compare.html and compare.json.

    Raises:
        StageError: the disk is full, or the folder cannot be written.
    """
    from edgetune.report import charts_compare

    made_at = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    content = {
        "schema_version": SCHEMA_VERSION,
        "edgetune": edgetune.__version__,
        "made_at": made_at,
        **compared,
    }
    found = read_comparison(content)
    write_page(
        "compare.html.j2", content, folder / "compare",
        title="Does it pay?", eyebrow="edgetune compare", version=found.edgetune, beside="compare.json",
        meta=[f"{found.classes} classes", networks(found), wording.when(found.made_at)],
        report=found, sentences=sentences(found), rows=rows(found), columns=columns(found),
        charts=charts_compare.charts(found),
    )  # fmt: skip


def networks(found: Compared) -> str:
    """Name the networks."""
    return ", ".join(dict.fromkeys(group.network for group in found.groups))


def sentences(found: Compared) -> list[str]:
    """Say what each kind of training gains over the reference, and how early."""
    reference = next((group for group in found.groups if group.label == found.reference), None)
    return [
        _sentence(group, reference, found) for group in found.groups if reference and group is not reference
    ]


def _sentence(group: Group, reference: Group, found: Compared) -> str:
    text = f"“{group.label}” "
    if group.against and group.against.points is not None:
        points = group.against.points
        side = "above" if points >= 0 else "below"
        text += (
            f"ends {wording.points(abs(points), 1)} points {side} “{reference.label}” on "
            f"{wording.count(group.against.images, 'test input')} ({_interval(group.against)}). It "
        )
    best = f"the best validation accuracy of “{reference.label}” ({wording.percent(found.reference_top1)})"
    if group.reached is None:
        return text + f"never comes to {best}."
    took = f"{wording.count(reference.epochs, 'epoch')} and {wording.seconds(reference.seconds)}"
    return text + (
        f"comes to {best} in {wording.count(group.reached.epoch, 'epoch')} and "
        f"{wording.seconds(group.reached.seconds)}; all of “{reference.label}” took {took}."
    )


def columns(found: Compared) -> list[str]:
    """Return the titles of the table of all groups."""
    against = f"Against {found.reference}"
    return ["Training", "Seeds", "Epochs", "Time", "Val top-1", "Test top-1", against, "As good after"]


def rows(found: Compared) -> list[list[str]]:
    """Return the table's rows."""
    return [
        [
            group.label, str(len(group.seeds)), str(group.epochs), wording.seconds(group.seconds),
            wording.percent(group.val_top1), tested(group.test), gain(group.against) if group.against else wording.NONE,
            _after(group) if group.label != found.reference else wording.NONE,
        ]
        for group in found.groups
    ]  # fmt: skip


def tested(test: Tested | None) -> str:
    """Return accuracy with its interval."""
    if test is None:
        return wording.NONE
    span = f"{wording.percent(test.low).removesuffix('%')} to {wording.percent(test.high)}"
    return f"{wording.percent(test.top1)} ({span}, over {test.over})"


def gain(against: Against) -> str:
    """Return points above the reference with the interval that there is."""
    return f"{_signed(against.points)} points ({_interval(against)})"


def _interval(against: Against) -> str:
    """Return the interval over seeds, where there is none the one over inputs."""
    low, high, over = against.low, against.high, "inputs"
    if against.seeds_low is not None:
        low, high, over = against.seeds_low, against.seeds_high, "seeds"
    text = f"{wording.points(low, 1)} to {wording.points(high, 1)} over {over}"
    return text if against.p_value is None else f"{text}, p {wording.number(against.p_value, 2)}"


def _after(group: Group) -> str:
    if group.reached is None:
        return "never"
    return f"{wording.count(group.reached.epoch, 'epoch')}, {wording.seconds(group.reached.seconds)}"


def _signed(value: float | None) -> str:
    return f"+{wording.points(value, 1)}" if value is not None and value > 0 else wording.points(value, 1)
