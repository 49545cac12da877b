"""Compares the INT8 network with the FP32 one that it stands for: input by input, in one pass.

What is kept per input is a few numbers, whatever the size of the outputs. It knows nothing of images, labels
or how a network was made. It may import errors, engines, latency's statistics, quant.collect
and quant.large.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto
from scipy.special import ndtr

from edgetune.engines.onnxruntime import Session
from edgetune.errors import StageError
from edgetune.latency.statistics import mean_at_least, mean_interval, wilson
from edgetune.quant.collect import Batch, Part, parts
from edgetune.quant.large import open_model

# Stands for "no error at all"; float32 itself ends near 150 dB.
SQNR_CEILING_DB = 200.0
# Classes beside the first whose distance from it is looked at.
RUNNERS_UP = 5
_LEAST = 1e-30

Model = Path | bytes | ModelProto
Values = NDArray[Any]


def compare(fp32: Model, int8: Model, batches: Iterable[Batch], *, exact: bool = False) -> dict[str, Any]:
    """Run both networks over the same inputs.

    Args:
        fp32: the network that is right by definition.
        int8: the one made of it, with the same inputs and outputs.
        batches: preprocessed inputs `[N, ...]`, or an array for each input by its name.
        exact: run INT8 without the optimisations that change rounding: where it stands for a TensorRT engine.

    Returns:
        `images`, `exact`, and `outputs`: by name the figures of `Comparison`; for integers and truth values
        the share that is the `same`; `unlike` instead where the two have different shapes. For a
        classifier (one output `[N, K]`) also the figures of `agreement`, on the largest of K, and those of
        `Decisions`.

    Raises:
        StageError: there is no input, or an output is NaN or infinite.
        ConfigError: an input does not fit.
    """
    reference, other = _session(fp32), _session(int8, exact)
    names = [spec.name for spec in reference.outputs]
    sums = {name: Output() for name in names}
    images, decisions, classifier = 0, Decisions(), len(names) == 1
    for part in parts(batches, reference.inputs):
        count = part.rows
        results = zip(names, reference.run(part.feed), other.run(part.feed), strict=True)
        pairs = [(name, _counted(right, part), _counted(found, part)) for name, right, found in results]
        for name, right, found in pairs:
            _refuse_unsound(name, right, "FP32")
            _refuse_unsound(name, found, "INT8")
            sums[name].add(right, found, count)
        classifier = classifier and all(_are_logits(values, count) for values in pairs[0][1:])
        classifier = classifier and pairs[0][1].size == pairs[0][2].size
        if classifier:
            decisions.add(*(values.reshape(count, -1) for values in pairs[0][1:]))
        images += count
    if not images:
        raise StageError("no inputs to compare INT8 with FP32 on")
    figures = {name: found.figures() for name, found in sums.items()}
    decided = decisions.figures() if classifier else {}
    return {"images": images, "exact": exact, "outputs": figures, **decided}


class Decisions:
    """What a classifier's answers hang on.

    A few inputs tell little by counting how many change their class: of 32, one is 3%. By how much the first
    class leads in FP32, and the error of that lead, tell how likely each of them is to change.
    """

    def __init__(self) -> None:
        self._agreed = 0
        self._decibels: list[NDArray[np.float64]] = []
        self._leads: list[NDArray[np.float64]] = []
        self._errors: list[NDArray[np.float64]] = []

    def add(self, reference: Values, other: Values) -> None:
        """Take in logits [N, K] of both networks for the same inputs."""
        right, found = (
            values.astype(np.float64) - values.mean(axis=1, keepdims=True, dtype=np.float64)
            for values in (reference, other)
        )
        self._decibels.append(_row_decibels(right, found))
        order = np.argsort(-right, axis=1, kind="stable")[:, : 1 + RUNNERS_UP]
        self._agreed += int(np.count_nonzero(order[:, 0] == other.argmax(axis=1)))
        best, given = (np.take_along_axis(values, order, axis=1) for values in (right, found))
        self._leads.append(best[:, :1] - best[:, 1:])
        self._errors.append(given[:, :1] - given[:, 1:] - self._leads[-1])

    def figures(self) -> dict[str, Any]:
        """Return the figures of `agreement`, and three that a few inputs suffice for.

        `agreement_expected` is the mean over the inputs of the chance that the leads over the next five classes
        survive errors of the size found; `agreement_at_least` the lower end of its one-sided interval at 90%
        (Student's): other inputs may have smaller leads. `decision_db` is the mean of two
        signal-to-noise ratios: of the first class's leads over the next five, which are what counts and are
        few; and of all logits less their mean, which softmax does not see. The first alone kept on 32 inputs
        what hurt mobilenet_v2 by 2 dB; the second alone dropped on CIFAR-10 what gained 1 dB.
        """
        leads, errors = np.concatenate(self._leads), np.concatenate(self._errors)
        noise = float(np.square(errors).mean())
        chances = _chance_to_stay(leads, noise)
        ratio = 10 * np.log10((float(np.square(leads).mean()) + _LEAST) / (noise + _LEAST))
        all_logits = float(np.concatenate(self._decibels).mean())
        return {
            **share_agreed(self._agreed, len(leads)),
            "agreement_expected": float(chances.mean()),
            "agreement_at_least": max(mean_at_least(chances), 0.0),
            "decision_db": float(np.clip(0.5 * ratio + 0.5 * all_logits, -SQNR_CEILING_DB, SQNR_CEILING_DB)),
        }


def _chance_to_stay(leads: NDArray[np.float64], noise: float) -> NDArray[np.float64]:
    """Return for inputs [N] how likely the first class stays first, by its leads [N, K] over the next.

    Errors of logits are taken as normal, independent and of one size: half of a lead's mean squared error
    each. The first class's own is in all of its leads, and integrated over (Gauss-Hermite).
    """
    size = max((0.5 * noise) ** 0.5, _LEAST)
    points, weights = np.polynomial.hermite_e.hermegauss(15)
    stays = ndtr(leads[:, :, None] / size + points).prod(axis=1)
    chances: NDArray[np.float64] = stays @ (weights / weights.sum())
    return chances


class Output:
    """One output of both networks: floats by their distance, everything else by being the same."""

    def __init__(self) -> None:
        self._floats: Comparison | None = None
        self._same = self._values = 0
        self._unlike = ""

    def add(self, reference: Values, other: Values, count: int) -> None:
        """Take in what both networks gave for `count` inputs; without a row for each, it counts as one."""
        if reference.shape != other.shape:
            self._unlike = f"{list(reference.shape)} in FP32, {list(other.shape)} in INT8"
        elif not np.issubdtype(reference.dtype, np.floating):
            self._same += int(np.count_nonzero(reference == other))
            self._values += reference.size
        elif reference.size:
            self._floats = self._floats or Comparison()
            rows = count if reference.shape[:1] == (count,) else 1
            self._floats.add(reference.reshape(rows, -1), other.reshape(rows, -1))

    def figures(self) -> dict[str, Any]:
        """Return the figures over all that was added."""
        if self._unlike:
            return {"unlike": self._unlike}
        if self._floats is None:
            return {"same": self._same / self._values if self._values else 1.0}
        return self._floats.figures()


class Comparison:
    """Running sums over batches of outputs: a network against the one it stands for."""

    def __init__(self) -> None:
        self._cosines: list[NDArray[np.float64]] = []
        self._decibels: list[NDArray[np.float64]] = []
        self._values = 0
        self._mean = self._spread = self._square = self._error = self._largest = 0.0

    def add(self, reference: Values, other: Values) -> None:
        """Take in outputs [N, K] of both networks for the same inputs."""
        a, b = reference.astype(np.float64), other.astype(np.float64)
        norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
        inner = (a * b).sum(axis=1)
        # A vector of zeros points nowhere: as good as another one, and as bad as can be against any else.
        equal = (a == b).all(axis=1)
        self._cosines.append(
            np.where(norms > 0, inner / np.where(norms > 0, norms, 1), np.where(equal, 1.0, 0.0))
        )
        self._decibels.append(_row_decibels(a, b))
        self._add_spread(a)
        self._square += float((a * a).sum())
        self._error += float(((a - b) ** 2).sum())
        self._largest = max(self._largest, float(np.abs(a - b).max()))

    def figures(self) -> dict[str, Any]:
        """Return the figures over all that was added; differences are in the output's own unit.

        The signal-to-quantization-noise ratio is 10 log10(sum of squared reference / sum of squared error);
        `sqnr_mean_db` is the mean of each input's own, which a few inputs with large errors cannot sway.
        """
        cosines = np.clip(np.concatenate(self._cosines), -1.0, 1.0)
        deviation = (self._spread / self._values) ** 0.5
        ends = mean_interval(cosines)
        return {
            "images": len(cosines),
            "difference": self._largest,
            "difference_over_std": self._largest / max(deviation, float(np.finfo(np.float32).tiny)),
            "cosine_mean": float(cosines.mean()),
            "cosine_low": max(ends.low, -1.0) if ends else None,
            "cosine_high": min(ends.high, 1.0) if ends else None,
            "cosine_min": float(cosines.min()),
            "sqnr_db": self._sqnr_db(),
            "sqnr_mean_db": float(np.concatenate(self._decibels).mean()),
        }

    def _add_spread(self, values: NDArray[np.float64]) -> None:
        """Merge sums of squared deviations (Chan, Golub & LeVeque 1983, The American Statistician 37:242)."""
        count, step = self._values + values.size, float(values.mean()) - self._mean
        self._spread += float(((values - values.mean()) ** 2).sum())
        self._spread += step * step * self._values * values.size / count
        self._mean += step * values.size / count
        self._values = count

    def _sqnr_db(self) -> float:
        if self._error == 0:
            return SQNR_CEILING_DB
        if self._square == 0:
            return -SQNR_CEILING_DB
        return float(np.clip(10 * np.log10(self._square / self._error), -SQNR_CEILING_DB, SQNR_CEILING_DB))


def _row_decibels(reference: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the signal-to-noise ratio of every row of [N, K], in dB."""
    signal, noise = np.square(reference).sum(axis=1), np.square(reference - other).sum(axis=1)
    ratio = 10 * np.log10((signal + _LEAST) / (noise + _LEAST))
    limited: NDArray[np.float64] = np.clip(ratio, -SQNR_CEILING_DB, SQNR_CEILING_DB)
    return limited


def agreement(reference: NDArray[np.int64], other: NDArray[np.int64]) -> dict[str, Any]:
    """Return on which share of the inputs two networks name the same class, with its interval."""
    return share_agreed(int(np.count_nonzero(reference == other)), reference.size)


def share_agreed(agreed: int, count: int) -> dict[str, Any]:
    """Return a share of `count` inputs with its interval (Wilson, at 95%)."""
    ends = wilson(agreed, count)
    return {
        "agreed": agreed,
        "agreement": agreed / count,
        "agreement_low": ends.low,
        "agreement_high": ends.high,
    }


def _session(model: Model, exact: bool = False) -> Session:
    return open_model(model, exact=exact) if isinstance(model, ModelProto) else Session(model, exact=exact)


def _counted(values: Values, part: Part) -> Values:
    """Return the rows of an output that belong to inputs, not to repetitions that fill up a static batch."""
    return values[: part.rows] if values.shape[:1] == (part.slots,) else values


def _are_logits(values: Values, count: int) -> bool:
    """Whether an output is [N, K], or [N, K, 1, 1], with something to choose from."""
    many = values.shape[1] if values.ndim > 1 else 0
    floats = np.issubdtype(values.dtype, np.floating)
    return floats and values.shape[:1] == (count,) and many > 1 and values.size == count * many


def _refuse_unsound(name: str, values: Values, title: str) -> None:
    if np.issubdtype(values.dtype, np.floating) and not np.isfinite(values).all():
        raise StageError(
            f"the {title} network's output {name!r} holds NaN or infinite values",
            hint="run the FP32 network on these inputs and look for overflow"
            if title == "FP32"
            else "a calibration range is too narrow or too wide: choose others with quantize.ranges",
        )
