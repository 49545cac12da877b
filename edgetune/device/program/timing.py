"""Times engines side by side: warm until stable, then in rounds whose order is shuffled.

What changes over time (heat, clocks, other programs) then hits all engines alike. It returns raw samples; what
they say is for the workstation to work out. It knows nothing of engines: a query is a function that runs one
inference and returns how many milliseconds it took, by whatever clock it has. It may import problem.
"""

from __future__ import annotations

import gc
import math
import random
import time
from contextlib import contextmanager
from typing import Any, Callable, Iterator, Mapping

from .problem import Problem

Query = Callable[[], float]
Clock = Callable[[], float]
Told = Callable[[str, int, int], None]

# Medians of this many windows in a row within STABLE of each other: warm.
WINDOWS = 3
WINDOW_S = 0.25
WINDOW_QUERIES = 3
STABLE = 0.05
# An engine that is not stable after this many times the warm-up asked for will not become so.
PATIENCE = 5
# Unrecorded at the head of a block: caches and clocks come back from the other engine.
SETTLE_S = 0.02
FEWEST_ROUNDS = 3


def interleave(
    queries: Mapping[str, Query],
    warmup_s: float = 2.0,
    seconds: float = 30.0,
    queries_least: int = 1000,
    rounds: int = 30,
    limit_s: float = 300.0,
    seed: int = 0,
    clock: Clock = time.monotonic,
    told: Told | None = None,
) -> dict[str, Any]:
    """Time queries in rounds.

    Args:
        queries: the query of each engine.
        warmup_s: per engine, at least; then until stable, at most `PATIENCE` times as long.
        seconds: of recorded queries per engine, at least.
        queries_least: recorded per engine, at least.
        rounds: blocks per engine; fewer where a query is so slow that they would not fit into the limit.
        limit_s: of all blocks together; where it comes before `seconds` or `queries_least`, it holds, but for the
            query under way: each block has at least one.
        seed: of the order.
        clock: in seconds; the sampler's of power, so that both can be laid side by side.
        told: what is going on, how many rounds are done, how many there are.

    Returns:
        `rounds`; `warmup`: per engine the `queries`, `seconds`, whether it became `stable`, and `query_s` in the
        end; `blocks` in the order of time: `name`, `round`, `start_s`, `end_s` by the clock, and `ms` of each
        query; `complete`: per engine whether it has its seconds and its queries.

    Raises:
        Problem: a query failed; it names the engine.
    """
    say = told or _silent
    with _collector_off():
        warmup = {}
        for name, query in queries.items():
            say(f"warming up {name}", 0, rounds)
            warmup[name] = _warm(name, query, warmup_s, clock)
        round_s = sum(state["query_s"] for state in warmup.values())
        fitting = int(limit_s / round_s) if round_s > 0 else rounds
        rounds = min(rounds, max(FEWEST_ROUNDS, fitting))
        most_s = limit_s / rounds / max(1, len(queries))
        blocks = []
        for index, names in enumerate(schedule(list(queries), rounds, seed)):
            say("timing", index, rounds)
            for name in names:
                taken = _block(name, queries[name], seconds / rounds, queries_least / rounds, most_s, clock)
                blocks.append({"name": name, "round": index, **taken})
        say("timing", rounds, rounds)
    return {
        "rounds": rounds,
        "warmup": warmup,
        "blocks": blocks,
        "complete": {name: _complete(name, blocks, seconds, queries_least) for name in queries},
    }


def schedule(names: list[str], rounds: int, seed: int) -> list[list[str]]:
    """Return the order of the engines in each round; the same for the same seed."""
    order = random.Random(seed)
    return [order.sample(names, len(names)) for _ in range(rounds)]


def _silent(_what: str, _done: int, _of: int) -> None:
    pass


def _warm(name: str, query: Query, least_s: float, clock: Clock) -> dict[str, Any]:
    begun, count = clock(), 0
    medians: list[float] = []
    while True:
        window = clock()
        times: list[float] = []
        while len(times) < WINDOW_QUERIES or clock() - window < min(WINDOW_S, least_s / WINDOWS):
            times.append(_ask(name, query))
        now = clock()
        count += len(times)
        medians.append(sorted(times)[len(times) // 2])
        latest, passed = medians[-WINDOWS:], now - begun
        stable = len(latest) == WINDOWS and max(latest) <= min(latest) * (1 + STABLE)
        if passed >= least_s and (stable or passed >= PATIENCE * least_s):
            query_s = (now - window) / len(times)
            return {"queries": count, "seconds": passed, "query_s": query_s, "stable": stable}


def _block(
    name: str, query: Query, least_s: float, least: float, most_s: float, clock: Clock
) -> dict[str, Any]:
    settling = clock()
    while True:
        _ask(name, query)
        if clock() - settling >= min(SETTLE_S, most_s):
            break
    begun, times = clock(), []
    while True:
        times.append(_ask(name, query))
        passed = clock() - begun
        if passed >= most_s or (passed >= least_s and len(times) >= least):
            return {"start_s": begun, "end_s": begun + passed, "ms": times}


def _ask(name: str, query: Query) -> float:
    try:
        took = query()
    except Problem as problem:
        raise Problem(f"{name}: {problem.message}", problem.hint, problem.code) from problem
    except Exception as error:
        raise Problem(f"{name}: timing it failed: {str(error) or type(error).__name__}", _HINT) from error
    if not (isinstance(took, (int, float)) and math.isfinite(took) and took >= 0):
        raise Problem(f"{name}: timing it failed: a query took {took!r} ms", _HINT)
    return took


_HINT = "see the log of the device; free its memory and run again"


def _complete(name: str, blocks: list[dict[str, Any]], seconds: float, least: int) -> bool:
    own = [block for block in blocks if block["name"] == name]
    # A clock's last digit may be lost in the differences of many blocks.
    timed = sum(block["end_s"] - block["start_s"] for block in own) >= seconds * (1 - 1e-9)
    return timed and sum(len(block["ms"]) for block in own) >= least


@contextmanager
def _collector_off() -> Iterator[None]:
    """Keep Python's garbage collector out of the timed queries."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
