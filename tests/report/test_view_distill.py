"""What is said of a distillation: no more than one run can tell."""

import pytest

from edgetune.report import view_distill as view
from edgetune.report.schema_distill import Difference, Distillation, Step, Taught

STUDENT = Taught(network="small", parameters=400_000, operations=10_000_000, size_px=32)


def distilled(points: float, low: float, high: float, **more: object) -> Distillation:
    models = {
        "teacher": Taught(
            network="large", top1=0.9, parameters=2_000_000, operations=40_000_000, seconds=90.0
        ),
        "alone": STUDENT.model_copy(update={"top1": 0.8, "seconds": 40.0}),
        "distilled": STUDENT.model_copy(update={"top1": 0.8 + points / 100, "seconds": 50.0}),
    }
    gain = Difference(points=points, low=low, high=high, p_value=0.03)
    gap = Difference(points=10 - points)
    return Distillation(images=1000, models=models, gain=gain, gap=gap, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("points", "low", "high", "words"),
    [
        (2.0, 0.5, 3.5, "gained 2.00 points (95%: 0.50 to 3.50): more than the choice of test inputs explains"),
        (2.0, -0.5, 4.5, "gained 2.00 points (95%: −0.50 to 4.50): these inputs cannot tell that from nothing"),
        (0.0, -1.0, 1.0, "gained 0.00 points (95%: −1.00 to 1.00): these inputs cannot tell that from nothing"),
        (-2.0, -3.5, -0.5, "cost 2.00 points (95%: 0.50 to 3.50): more than the choice of test inputs explains, and "
         "it is a loss"),
    ],
)  # fmt: skip
def test_a_gain_is_said_with_its_doubt(points: float, low: float, high: float, words: str) -> None:
    said = view.gain_sentence(distilled(points, low, high))
    assert words in said
    assert "p = 0.030" in said
    assert "one run cannot tell" in said, "one seed is one seed, whatever the interval"
    assert "alone, with the same budget, 80.0%" in said


def test_without_the_student_alone_nothing_is_claimed() -> None:
    found = distilled(2, 1, 3)
    bare = found.model_copy(update={"gain": None, "models": {"distilled": found.models["distilled"]}})
    assert "was not looked at" in view.gain_sentence(bare)
    assert "gained" not in view.gain_sentence(bare)
    assert view.gain_sentence(Distillation()) == view.cost_sentence(Distillation()) == ""
    assert view.way_sentence(Distillation()) == ""


def test_each_point_has_its_price() -> None:
    said = view.cost_sentence(distilled(2, 1, 3, asking_seconds=4.0, views=4))
    assert "10 s more of training, 5.0 s for each point (the teacher's answers took 4.0 s)" in said
    assert "it costs nothing at inference" in said
    assert "own training took 1 min 30 s" in said
    assert "further 8.00 points would cost 4.00× the multiply-adds" in said
    assert "for each point" not in view.cost_sentence(distilled(-1, -2, 0))
    assert "for each point" not in view.cost_sentence(distilled(1, -1, 3)), (
        "a gain that may be none has no price"
    )
    assert "answered in every step" in view.cost_sentence(distilled(2, 1, 3, views=0))
    assert "had answered earlier" in view.cost_sentence(distilled(2, 1, 3, views=4, asked_earlier=True))
    assert "The teacher is no better" in view.cost_sentence(distilled(11, 10, 12))


def test_a_teacher_without_multiply_adds_is_told_by_its_parameters() -> None:
    found = distilled(2, 1, 3)
    file = found.models["teacher"].model_copy(update={"operations": None, "network": "ONNX file"})
    found = found.model_copy(update={"models": found.models | {"teacher": file}})
    assert "would cost 5.00× the parameters" in view.cost_sentence(found)
    first = view.rows(found)[0]
    assert first[0] == "teacher, ONNX file"
    assert (first[3], first[4]) == ("2.00 M", "–")


def test_how_it_was_distilled() -> None:
    found = Distillation(
        loss="standardised", temperature=2, labels=0, views=0, unlabelled=12, features={"a": "b"}
    )
    assert view.way_sentence(found) == (
        "Standardised logits at temperature 2, 1 matched layer, without labels, new views in every epoch, 12 inputs "
        "without labels beside them: the training loss is made of these."
    )


def test_curves_are_distilled_and_alone() -> None:
    found = Distillation(epochs_distilled=(Step(epoch=1, val_top1=0.5),))
    assert view.curves(found) == [("distilled", [(1, 0.5)]), ("alone", [])]
