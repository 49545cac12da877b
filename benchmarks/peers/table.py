"""Results as a table, for a terminal or in Markdown."""

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from peers.intervals import Lead, Leads, lead

Row = dict[str, Any]
OURS = "edgetune"


def table(found: dict[str, list[Row]], out: Path, markdown: bool) -> str:
    """Lay out means over draws, and leads over the best legal peer.

    Args:
        found: results by tool, one for each draw that was run.
        out: the folder in which the judge's arrays lie.
        markdown: with pipes, instead of columns of one width.
    """
    ran = {name: rows for name, rows in found.items() if rows}
    labelled = all("top1_int8" in row for rows in ran.values() for row in rows)
    columns = {name: tell for name, tell in COLUMNS.items() if labelled or name != "top-1 drop"}
    peers = {name: rows for name, rows in ran.items() if not name.startswith(OURS) and rows[0]["legal"]}
    lines = [["", *columns, "points over best", "dB over best"]]
    beaten: dict[str, set[str]] = {"agreement": set(), "sqnr_db": set()}
    for name, rows in ran.items():
        leads = ["", ""]
        if name.startswith(OURS) and rows[0]["legal"] and peers:
            for index, figure in enumerate(beaten):
                peer, found_leads = _over_best(rows, peers, figure, out)
                leads[index] = _told(found_leads[index])
                beaten[figure].add(peer)
        lines.append([name, *(tell(rows) for tell in columns.values()), *leads])
    lines += [[name, "not run", *[""] * (len(lines[0]) - 2)] for name, rows in found.items() if not rows]
    told = "; ".join(f"{figure}: {', '.join(sorted(names)) or 'none'}" for figure, names in beaten.items())
    return f"{_piped(lines) if markdown else _spaced(lines)}\n\nbest legal peer by {told}"


def _over_best(ours: list[Row], peers: dict[str, list[Row]], figure: str, out: Path) -> tuple[str, Leads]:
    """Return the peer with the highest mean of a figure on the same draws, and the leads over it.

    Where no peer has them all, over the draws that ours and that peer share.
    """
    draws = {row["draw"] for row in ours}
    most = max(len(draws & {row["draw"] for row in rows}) for rows in peers.values())
    shared = {
        name: chosen
        for name, rows in peers.items()
        if len(chosen := [row for row in rows if row["draw"] in draws]) == most
    }
    best = max(shared, key=lambda name: _mean(shared[name], figure))
    theirs = {row["draw"]: out / row["arrays"] for row in shared[best]}
    both = [row for row in ours if row["draw"] in theirs]
    return best, lead([out / row["arrays"] for row in both], [theirs[row["draw"]] for row in both])


def _mean(rows: list[Row], figure: str) -> float:
    return statistics.mean(row[figure] for row in rows)


def _speed(rows: list[Row]) -> str:
    """Tell the middle of the draws' speeds; a question mark where a measurement was too noisy."""
    speeds = [row["speed"] for row in rows if "speed" in row]
    if not speeds:
        return ""
    doubt = "" if all(speed["trusted"] for speed in speeds) else "?"
    return f"{statistics.median(speed['value'] for speed in speeds):.2f}x{doubt}"


COLUMNS: dict[str, Callable[[list[Row]], str]] = {
    "draws": lambda rows: str(len(rows)),
    "TensorRT": lambda rows: (
        ", ".join(sorted({why for row in rows for why in row["refused_for"]})) or "legal"
    ),
    "agreement %": lambda rows: f"{_mean(rows, 'agreement'):.2f}",
    "SQNR dB": lambda rows: f"{_mean(rows, 'sqnr_db'):.2f}",
    "lowest": lambda rows: f"{min(row['sqnr_db'] for row in rows):.2f}",
    "top-1 drop": lambda rows: f"{_mean(rows, 'top1_fp32') - _mean(rows, 'top1_int8'):+.2f}",
    "float %": lambda rows: f"{_mean(rows, 'float_percent'):.1f}" if "float_percent" in rows[0] else "",
    "seconds": lambda rows: f"{_mean(rows, 'seconds'):.1f}",
    "CPU s": lambda rows: f"{_mean(rows, 'cpu_seconds'):.1f}",
    "peak GB": lambda rows: f"{max(row['gb'] for row in rows):.2f}",
    "MB": lambda rows: f"{_mean(rows, 'megabytes'):.1f}",
    "CPU speed": _speed,
}


def _told(found: Lead) -> str:
    return f"{found.value:+.2f} ({found.low:+.2f} to {found.high:+.2f})"


def _spaced(lines: list[list[str]]) -> str:
    widths = [max(len(line[index]) for line in lines) for index in range(len(lines[0]))]
    rows = []
    for first, *rest in lines:
        cells = (cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True))
        rows.append("  ".join([first.ljust(widths[0]), *cells]).rstrip())
    return "\n".join(rows)


def _piped(lines: list[list[str]]) -> str:
    rows = ["| " + " | ".join(line) + " |" for line in lines]
    return "\n".join([rows[0], "|---" * len(lines[0]) + "|", *rows[1:]])
