"""Who is faster, said only where the intervals allow it.

It knows names and samples. It may import summary.
"""

from collections.abc import Mapping
from typing import TypedDict

import numpy as np

from edgetune.latency.statistics import Rounds
from edgetune.latency.summary import Ratio, ratio

LEVEL = 0.05
# Where in memory a program happens to lie makes it so much faster or slower, which no repeat within one process
# shows (Mytkowicz, Diwan, Hauswirth & Sweeney 2009, Producing wrong data without doing anything obviously wrong,
# ASPLOS XIV:265-276, found more than this): a smaller difference is none.
LEAST = 0.02


class Place(TypedDict):
    """One model's place; those that cannot be told apart share one.

    `slower`: how many times as long it takes as the first in the table; None for that one.
    """

    name: str
    place: int
    slower: Ratio | None


class Ranking(TypedDict):
    """Models from the fastest on. `winner` is None where the fastest cannot be told from another."""

    winner: str | None
    places: list[Place]
    sentence: str


def rank(rounds: Mapping[str, Rounds], *, trusted: bool = True, seed: int = 0) -> Ranking | None:
    """Order models by their speed; None for a single one.

    Ratios are taken round by round, so that what slows all models at once decides nothing. Their confidence is
    1 - 2 LEVEL / models: of equal models one is then called the winner with a probability of `LEVEL` at most
    (one of them must beat a given other one, and any of them could). Less than `LEAST` is no difference.

    Args:
        rounds: samples by model and round, above 0.
        trusted: whether the times are times at all; else there is no winner.
        seed: of the bootstrap.
    """
    if len(rounds) < 2:
        return None
    confidence = 1 - 2 * LEVEL / len(rounds)
    medians = {name: float(np.median(np.concatenate(list(own)))) for name, own in rounds.items()}
    fastest = min(rounds, key=lambda name: medians[name])
    # The ratio of medians may say otherwise than the ratios of rounds; these are what decides.
    times = {name: ratio(rounds, name, fastest, seed=seed)["value"] for name in rounds if name != fastest}
    names = sorted(rounds, key=lambda name: times.get(name, 1.0))
    first, leader = names[0], names[0]
    places: list[Place] = [{"name": first, "place": 1, "slower": None}]
    for position, name in enumerate(names[1:], 2):
        slower = ratio(rounds, name, first, confidence=confidence, seed=seed)
        behind = slower if leader == first else ratio(rounds, name, leader, confidence=confidence, seed=seed)
        apart = behind["low"] > 1 + LEAST
        leader = name if apart else leader
        places.append({"name": name, "place": position if apart else places[-1]["place"], "slower": slower})
    alone = trusted and places[1]["place"] > 1
    return {
        "winner": first if alone else None,
        "places": places,
        "sentence": _sentence(places, alone, trusted),
    }


def _sentence(places: list[Place], alone: bool, trusted: bool) -> str:
    first, second = places[0], places[1]
    found = second["slower"]
    assert found is not None
    span = f"{found['low']:.3g} to {found['high']:.3g}"
    if alone:
        return f"{first['name']} is the fastest: {second['name']} takes {found['value']:.3g} times as long ({span})"
    if not trusted:
        return "no winner: the clock cannot be trusted"
    equal = [place["name"] for place in places if place["place"] == 1]
    named = f"{', '.join(equal[:-1])} and {equal[-1]}"
    times = f"{second['name']} takes {found['value']:.3g} times as long, {span}; less than {LEAST:.0%} counts as none"
    return f"no winner: {named} cannot be told apart ({times})"
