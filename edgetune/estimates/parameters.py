"""The fitted parameters: read from parameters.json, or from a file that `edgetune estimate --fit` wrote.

It may import errors.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgetune.errors import ArtifactError, ConfigError

SHIPPED = Path(__file__).with_name("parameters.json")
PUBLISHED = Path(__file__).with_name("published.csv")
# How far a user's own rows may move a parameter, as the standard deviation of its logarithm.
PLAIN = 0.15


@dataclass(frozen=True)
class Parameters:
    """What was fitted, and how well it did on rows that it had not seen.

    Attributes:
        values: by name, as `model.seconds` takes them.
        devices: a factor on the time of each profile and mode that was measured.
        rows: how many measurements were fitted.
        networks: the names of those that were measured.
        made: the day.
        intervals: half widths that hold for 90%, as factors, with the device, the network or both unseen.
        errors: what the fit missed by, for the record.
    """

    values: dict[str, float]
    devices: dict[str, float]
    rows: int
    networks: tuple[str, ...]
    made: str
    intervals: dict[str, float]
    errors: dict[str, Any]

    def dump(self) -> dict[str, Any]:
        """Return it as JSON, four digits each."""
        return {
            "schema_version": 1,
            "made": self.made,
            "rows": self.rows,
            "networks": list(self.networks),
            "intervals": {name: round(value, 3) for name, value in self.intervals.items()},
            "values": {name: float(f"{value:.4g}") for name, value in self.values.items()},
            "devices": {name: float(f"{value:.4g}") for name, value in self.devices.items()},
            "errors": self.errors,
        }


def load_parameters(path: Path | None = None) -> Parameters:
    """Read the shipped parameters, or a user's own.

    Raises:
        ConfigError: no such file.
        ArtifactError: it holds something else.
    """
    try:
        found = json.loads((path or SHIPPED).read_text())
        made = Parameters(
            values={str(name): float(value) for name, value in found["values"].items()},
            devices={str(name): float(value) for name, value in found["devices"].items()},
            rows=int(found["rows"]),
            networks=tuple(map(str, found["networks"])),
            made=str(found["made"]),
            intervals={str(name): float(value) for name, value in found["intervals"].items()},
            errors=dict(found["errors"]),
        )
    except OSError as error:
        raise ConfigError(
            f"{path}: {error.strerror or error}", hint="edgetune estimate --fit RUN -o FILE makes one"
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(
            f"{path}: not parameters of an estimate ({type(error).__name__}: {error})",
            hint="edgetune estimate --fit RUN -o FILE makes such a file",
        ) from error
    figures = [*made.values.values(), *made.devices.values(), *made.intervals.values()]
    if path is not None:
        missing = sorted(set(load_parameters().values) - set(made.values))
        if missing:
            raise ArtifactError(
                f"{path}: {missing[0]!r} is missing", hint="fit it again: edgetune estimate --fit RUN"
            )
    if not all(math.isfinite(figure) and figure >= 0 for figure in figures):
        raise ArtifactError(f"{path or SHIPPED}: a parameter is negative or no number", hint="fit it again")
    return made
