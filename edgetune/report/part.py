"""What the parts of a report have in common: any value may be missing, and names are safe to show.

A stage that was not run leaves its part out, an older report lacks newer keys, and a report that cannot be
drawn helps nobody: so missing, null and not-a-number are the same here, and unknown keys are passed over.
Names come from the user's folders: characters that steer a terminal, a page or the direction of text are
shown as escapes. It knows no part. Pydantic only.
"""

import math
import unicodedata
from typing import Any

from pydantic import BaseModel, ConfigDict

# The zero-width joiners build letters and emoji; every other invisible character is escaped.
JOINERS = "\u200c\u200d"


class Part(BaseModel):
    """A part of the report."""

    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())


class Ratio(Part):
    """A ratio with its interval."""

    value: float | None = None
    low: float | None = None
    high: float | None = None


def visible(text: str) -> str:
    """Return the text with every control, direction or otherwise invisible character as an escape."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        c
        if c.isprintable() or c in JOINERS or unicodedata.category(c) == "Zs"
        else c.encode("unicode_escape").decode()
        for c in text
    )


def present(value: Any) -> Any:
    """Copy JSON without what is null or not a number, its texts made visible, its keys sorted."""
    if isinstance(value, dict):
        items = ((visible(str(key)), present(value[key])) for key in sorted(value, key=str))
        return {key: item for key, item in items if item is not None}
    if isinstance(value, list | tuple):
        return [item for item in map(present, value) if item is not None]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return visible(value) if isinstance(value, str) else value
