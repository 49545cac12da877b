"""What the terminal, Markdown and HTML show of a distillation: who reached what, and what each point cost.

It knows nothing of how things look. It may import the report's schema_distill and wording.
"""

from collections.abc import Sequence

from edgetune.report import wording
from edgetune.report.schema_distill import Difference, Distillation, Step, Taught

TITLES = {"teacher": "teacher", "alone": "student alone", "distilled": "student distilled"}


def rows(found: Distillation) -> list[tuple[str, ...]]:
    """Return each network: name, accuracy with interval, parameters, multiply-adds, input, training."""
    shown: list[tuple[str, ...]] = []
    for name, title in TITLES.items():
        if one := found.models.get(name):
            shown.append((
                f"{title}, {one.network}" if one.network else title,
                wording.percent(one.top1),
                wording.interval(_hundred(one.low), _hundred(one.high), "percent"),
                wording.amount(one.parameters),
                wording.amount(one.operations),
                f"{one.size_px} px" if one.size_px else wording.NONE,
                wording.seconds(one.seconds),
            ))  # fmt: skip
    return shown


def gain_sentence(found: Distillation) -> str:
    """Say what distilling bought, and how sure that is; nothing where it was not measured."""
    distilled, alone = found.models.get("distilled", Taught()), found.models.get("alone")
    if distilled.top1 is None:
        return ""
    images = f" on {wording.count(found.images, 'test input')}" if found.images else ""
    reached = f"Distilled, the student reaches {wording.percent(distilled.top1)}{images}"
    if alone is None or found.gain is None or found.gain.points is None:
        return f"{reached}. What it reaches alone was not looked at (distill.baseline: false)."
    points = found.gain.points
    change = f"{wording.points(abs(points))} points"
    said = f"Distilling {'cost' if points < 0 else 'gained'} {change}{_span(found.gain, points < 0)}"
    return (
        f"{reached}; alone, with the same budget, {wording.percent(alone.top1)}. {said}: {_sure(found.gain)} "
        "This is one seed of each: how far another seed would move them, one run cannot tell."
    )


def _span(gain: Difference, turned: bool) -> str:
    if gain.low is None or gain.high is None:
        return ""
    low, high = (-gain.high, -gain.low) if turned else (gain.low, gain.high)
    return f" (95%: {wording.interval(low, high, 'points').removesuffix(' points')})"


def _sure(gain: Difference) -> str:
    """Say whether the images can tell a gain from none."""
    if gain.low is None or gain.high is None:
        return "how sure that is was not computed."
    p = f" (McNemar's exact test: p = {wording.number(gain.p_value, 2)})" if gain.p_value is not None else ""
    if gain.low > 0:
        return f"more than the choice of test inputs explains{p}."
    if gain.high < 0:
        return f"more than the choice of test inputs explains, and it is a loss{p}."
    return f"these inputs cannot tell that from nothing{p}."


def cost_sentence(found: Distillation) -> str:
    """Say what the points cost: of training, and of what the teacher would cost instead."""
    parts = []
    distilled, alone = found.models.get("distilled", Taught()), found.models.get("alone", Taught())
    teacher = found.models.get("teacher", Taught())
    if distilled.seconds is not None and alone.seconds is not None:
        more = distilled.seconds - alone.seconds
        word = "more" if more >= 0 else "less"
        each = ""
        gain = found.gain
        # A gain that may be none has no price.
        if gain and gain.points and gain.low is not None and gain.low > 0 and more > 0:
            each = f", {wording.seconds(more / gain.points)} for each point"
        parts.append(f"It took {wording.seconds(abs(more))} {word} of training{each}{_asking(found)}")
        parts[-1] += ", and it costs nothing at inference: it is the same network."
        if teacher.seconds is not None:
            parts.append(f"The teacher's own training took {wording.seconds(teacher.seconds)}.")
    ratio = _ratio(teacher.operations, distilled.operations) or _ratio(
        teacher.parameters, distilled.parameters
    )
    if found.gap.points is not None and ratio:
        what = "multiply-adds" if teacher.operations else "parameters"
        if found.gap.points > 0:
            further = f"{wording.points(found.gap.points)} points"
            parts.append(f"The teacher's further {further} would cost {wording.times(ratio)} the {what}.")
        else:
            parts.append(f"The teacher is no better, at {wording.times(ratio)} the {what}.")
    return " ".join(parts)


def _asking(found: Distillation) -> str:
    if found.views == 0:
        return " (the teacher answered in every step)"
    if found.asked_earlier:
        return " (the teacher had answered earlier)"
    if found.asking_seconds is None:
        return ""
    return f" (the teacher's answers took {wording.seconds(found.asking_seconds)})"


def way_sentence(found: Distillation) -> str:
    """Say how it was distilled."""
    if not found.loss:
        return ""
    what = {"soft": "soft targets", "standardised": "standardised logits"}.get(found.loss, found.loss)
    parts = [f"{what} at temperature {found.temperature:g}" if found.temperature else what]
    if found.features:
        parts.append(wording.count(len(found.features), "matched layer"))
    if found.labels is not None:
        share = wording.percent(found.labels, 0)
        parts.append(f"labels weighing {share}" if found.labels else "without labels")
    if found.views is not None:
        views = wording.count(found.views, "view") + " of each input, answered once"
        parts.append(views if found.views else "new views in every epoch")
    if found.unlabelled:
        parts.append(wording.count(found.unlabelled, "input") + " without labels beside them")
    sentence = ", ".join(parts)
    return f"{sentence[0].upper()}{sentence[1:]}: the training loss is made of these."


def curves(found: Distillation) -> list[tuple[str, Sequence[tuple[int, float | None]]]]:
    """Return validation accuracy by epoch, distilled and alone."""

    def points(steps: Sequence[Step]) -> list[tuple[int, float | None]]:
        return [(step.epoch, step.val_top1) for step in steps]

    return [("distilled", points(found.epochs_distilled)), ("alone", points(found.epochs_alone))]


def _ratio(one: int | None, other: int | None) -> float | None:
    return one / other if one and other else None


def _hundred(share: float | None) -> float | None:
    return None if share is None else 100 * share
