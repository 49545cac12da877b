"""Judges `edgetune estimate` on published rows that its fit has not seen, beside a plain roofline.

    python benchmarks/estimate_judge.py FOLDER

The roofline has three parameters, fitted the same way on the same rows: a launch per kernel, a share of the peak
and a share of the bandwidth, the larger of the two terms per kernel; it counts all operations and bytes as they
are. Intervals are judged by the widths that the
other groups' errors give, so that no row helps to choose its own. `module` holds out all modes of a module at
once.
"""

import sys
from pathlib import Path

import numpy as np
from estimate_fit import WIDEST
from estimate_rows import published, rows
from scipy.optimize import least_squares

from edgetune.estimates.fitting import Row, Rows, fit, group_of, held_out

APART = 1.25


def roofline(train: Rows, test: Rows) -> np.ndarray:
    """Fit three parameters to some rows and predict others, in ms."""

    def predict(logs: np.ndarray, given: Rows) -> np.ndarray:
        launch, share, reached = np.exp(logs)
        c = given.columns
        work = c.operations / (c.peak * share)
        moved = (c.activations + c.weights) / (c.bandwidth * reached)
        return np.bincount(given.index, launch + np.maximum(work, moved), len(given.rows)) * 1e3

    begin = np.log([5e-6, 0.4, 0.6])
    found = least_squares(
        lambda logs: np.log(predict(logs, train) / train.ms), begin, loss="soft_l1", f_scale=0.1
    )
    return predict(found.x, test)


def roofline_held_out(data: list[Row], by: str) -> np.ndarray:
    """Predict each row by a roofline that saw nothing of its group."""
    found = np.zeros(len(data))
    groups = [group_of(row, by) for row in data]
    for group in sorted(set(groups)):
        held = [place for place, own in enumerate(groups) if own == group]
        seen = [
            r
            for r, own in zip(data, groups, strict=True)
            if all(a != b for a, b in zip(own, group, strict=True))
        ]
        found[held] = roofline(Rows(seen), Rows([data[place] for place in held]))
    return found


def line(name: str, wrong: np.ndarray, other: np.ndarray | None = None) -> str:
    """Return a row of a table: errors, and how they compare with another's."""
    share = np.abs(np.expm1(wrong))
    p90 = float(np.quantile(share, 0.9))
    within = np.mean(share <= 0.3)
    text = (
        f"| {name} | {len(share)} | {np.median(share):.1%} | {p90:.1%} | {within:.1%} | {share.max():.1%} |"
    )
    if other is not None:
        theirs = np.abs(np.expm1(other))
        text += f" {np.median(theirs):.1%} | {np.quantile(theirs, 0.9):.1%} |"
        text += f" {np.median(share) / np.median(theirs):.2f} | {p90 / np.quantile(theirs, 0.9):.2f} |"
    return text


def coverage(wrong: np.ndarray, groups: list[tuple[str, ...]]) -> tuple[float, float]:
    """Return the share of rows inside their interval, and the widest half width as a factor."""
    inside, widest = 0, 1.0
    for place, error in enumerate(wrong):
        others = [abs(w) for w, group in zip(wrong, groups, strict=True) if group != groups[place]]
        half = min(float(np.exp(np.quantile(others, 0.9))), WIDEST)
        inside += abs(error) <= np.log(half)
        widest = max(widest, half)
    return inside / len(wrong), widest


def order(data: list[Row], precision: list[str], found: np.ndarray) -> tuple[int, int]:
    """Return how many pairs of networks that differ come out in the measured order, and how many there are."""
    right = pairs = 0
    for a in range(len(data)):
        for b in range(a):
            alike = (data[a].target, data[a].measured, precision[a]) == (
                data[b].target,
                data[b].measured,
                precision[b],
            )
            ratio = data[a].ms / data[b].ms
            if alike and data[a].network != data[b].network and max(ratio, 1 / ratio) > APART:
                pairs += 1
                right += (found[a] > found[b]) == (ratio > 1)
    return right, pairs


def main() -> None:
    """Print the tables."""
    data, bare = (rows(Path(sys.argv[1]), plain=plain) for plain in (False, True))
    precision = [row["precision"] for row in published()]
    measured = np.array([row.ms for row in data])
    full = fit(data)
    print(
        "| held out | rows | median | 90% | within 30% | largest | roofline median | 90% | ratio | ratio of 90% |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    known = np.log(Rows(data).predict(*full) / measured)
    print(line("nothing", known, np.log(roofline(Rows(bare), Rows(bare)) / measured)))
    said = []
    for by in ("device", "network", "both"):
        found, other = held_out(data, by, full), roofline_held_out(bare, by)
        wrong, theirs = np.log(found / measured), np.log(other / measured)
        print(line(by, wrong, theirs))
        for name in ("int8", "fp16"):
            of = np.array([own == name for own in precision])
            print(line(f"{by}, {name}", wrong[of], theirs[of]))
        share, widest = coverage(wrong, [group_of(row, by) for row in data])
        right, pairs = order(data, precision, found)
        said.append(
            f"{by} held out: {share:.1%} of rows inside the 90% interval, at most a factor {widest:.2f} either way; "
            f"{right} of {pairs} pairs ({right / pairs:.1%}) in the measured order"
        )
    print(line("module", np.log(held_out(data, "module", full) / measured)))
    print("\n".join(said))
    print("\n| device | rows | median error, held out | factor on it where known |\n|---|---|---|---|")
    wrong = np.abs(held_out(data, "device", full) / measured - 1)
    for target in sorted(full.devices):
        of = np.array([row.target == target for row in data])
        print(f"| {target} | {of.sum()} | {np.median(wrong[of]):.1%} | {full.devices[target]:.2f} |")


if __name__ == "__main__":
    main()
