"""Fits the parameters of `edgetune estimate` to the published rows, and writes edgetune/estimates/parameters.json.

    python benchmarks/estimate_fit.py FOLDER

FOLDER holds the exported networks; what is missing is exported. Half widths of intervals are the 90% quantile of
the errors on rows whose device, network, or both were held out.
"""

import datetime
import json
import sys
from pathlib import Path

import numpy as np
from estimate_rows import published, rows

from edgetune.estimates.fitting import fit, held_out
from edgetune.estimates.parameters import SHIPPED, Parameters

# An interval that is wider helps nobody to choose. It binds where both device and network are new, whose own 90% would
# be a factor 1.48; estimate_judge.py says how many rows are inside all the same.
WIDEST = 1.4


def figures(wrong: np.ndarray) -> dict[str, float]:
    """Return what there is to say of errors, given as logarithms."""
    share = np.abs(np.expm1(wrong))
    return {
        "rows": len(share),
        "median": round(float(np.median(share)), 3),
        "p90": round(float(np.quantile(share, 0.9)), 3),
        "within_30_percent": round(float(np.mean(share <= 0.3)), 3),
        "largest": round(float(share.max()), 3),
    }


def main() -> None:
    """Fit, hold out, write."""
    data = rows(Path(sys.argv[1]))
    full = fit(data)
    errors, intervals = {}, {}
    measured = np.array([row.ms for row in data])
    precision = np.array([row["precision"] for row in published()])
    for by in ("device", "network", "both"):
        wrong = np.log(held_out(data, by, full) / measured)
        intervals[by] = min(float(np.exp(np.quantile(np.abs(wrong), 0.9))), WIDEST)
        errors[by] = figures(wrong) | {name: figures(wrong[precision == name]) for name in ("int8", "fp16")}
    networks = tuple(sorted({row.network for row in data}))
    today = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    made = Parameters(full.values, full.devices, len(data), networks, today, intervals, errors)
    SHIPPED.write_text(json.dumps(made.dump(), indent=2) + "\n")
    print(json.dumps(errors | {"intervals": intervals}, indent=2))


if __name__ == "__main__":
    main()
