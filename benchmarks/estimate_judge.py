"""Judges `edgetune estimate` on published rows that its fit has not seen, beside a plain roofline.

    python benchmarks/estimate_judge.py FOLDER

Two rooflines have three parameters each, fitted the same way on the same rows: a launch, a share of the peak and a
share of the bandwidth. The plain one takes a network as a whole: its launch, and the larger of the times that all its
operations and all its bytes need (Williams et al. 2009, doi:10.1145/1498765.1498785). The other does that kernel by
kernel, after our fusion, and so knows more than a spreadsheet would. Both count operations and bytes as they are.
Intervals are judged by the widths that the
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


def roofline(train: Rows, test: Rows, by_kernel: bool) -> np.ndarray:
    """Fit three parameters to some rows and predict others, in ms."""

    def predict(logs: np.ndarray, given: Rows) -> np.ndarray:
        launch, share, reached = np.exp(logs)
        c = given.columns
        work = c.operations / (c.peak * share)
        moved = (c.activations + c.weights) / (c.bandwidth * reached)
        if by_kernel:
            return np.bincount(given.index, launch + np.maximum(work, moved), len(given.rows)) * 1e3
        whole = [np.bincount(given.index, each, len(given.rows)) for each in (work, moved)]
        return (launch + np.maximum(*whole)) * 1e3

    begin = np.log([5e-6 if by_kernel else 5e-4, 0.4, 0.6])
    found = least_squares(
        lambda logs: np.log(predict(logs, train) / train.ms), begin, loss="soft_l1", f_scale=0.1
    )
    return predict(found.x, test)


def roofline_held_out(data: list[Row], by: str, by_kernel: bool) -> np.ndarray:
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
        found[held] = roofline(Rows(seen), Rows([data[place] for place in held]), by_kernel)
    return found


def line(name: str, wrong: np.ndarray, *others: np.ndarray) -> str:
    """Return a row of a table: errors, and how they compare with others'."""
    share = np.abs(np.expm1(wrong))
    p90 = np.quantile(share, 0.9)
    cells = [f"{np.median(share):.1%}", f"{p90:.1%}", f"{np.mean(share <= 0.3):.1%}", f"{share.max():.1%}"]
    for other in others:
        theirs = np.abs(np.expm1(other))
        high = np.quantile(theirs, 0.9)
        cells += [
            f"{np.median(theirs):.1%}, {high:.1%}",
            f"{np.median(share) / np.median(theirs):.2f}, {p90 / high:.2f}",
        ]
    return f"| {name} | {len(share)} | {' | '.join(cells)} |"


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
        "| held out | rows | median | 90% | within 30% | largest | plain roofline: median, 90% | our share of these "
        "| roofline by kernel | our share |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    known = np.log(Rows(data).predict(*full) / measured)
    own = [np.log(roofline(Rows(bare), Rows(bare), by_kernel) / measured) for by_kernel in (False, True)]
    print(line("nothing", known, *own))
    said = []
    for by in ("device", "network", "both"):
        wrong = np.log(held_out(data, by, full) / measured)
        theirs = [np.log(roofline_held_out(bare, by, by_kernel) / measured) for by_kernel in (False, True)]
        print(line(by, wrong, *theirs))
        for name in ("int8", "fp16"):
            of = np.array([row == name for row in precision])
            print(line(f"{by}, {name}", wrong[of], *(other[of] for other in theirs)))
        share, widest = coverage(wrong, [group_of(row, by) for row in data])
        right, pairs = order(data, precision, np.exp(wrong) * measured)
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
