"""Several processes that train one network: who this one is, what they do together, sums over all of them.

torchrun starts the processes. The first one leads: it does all that a single process does. The others wait,
take part in what it trains, write nothing, and end when it ends. Outside of such a training, and without
torchrun, there is one process: every function here is then free, and torch.distributed is not imported.

It knows no network and no stage. It may import errors only.
"""

import functools
import importlib
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, ParamSpec, TypeVar

from edgetune.errors import ConfigError, EdgetuneError, StageError

if TYPE_CHECKING:
    from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")

# What torchrun sets, and every other launcher that torch.distributed's `env://` understands.
TOLD = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
# The leader may scan, decode or quantize for hours. Who dies is noticed at once, by a closed connection.
PATIENCE = timedelta(days=7)
# What only the leader's caller can take.
WATCHING = ("progress", "watch")
# So long a process that failed waits for the leader to say it better.
GRACE_S = 5.0
# So long the leader waits for the others to notice that it ends.
LEAVE_S = 2.0


class _Left(Exception):
    """The leader has ended what all did together, and knows why."""


class _Launch(NamedTuple):
    rank: int
    size: int
    store: Any


_launch: _Launch | None = None
_together = False
_calls = 0


def launched() -> bool:
    """Whether a launcher has started several processes, this one among them."""
    return all(name in os.environ for name in TOLD) and os.environ["WORLD_SIZE"] not in ("", "1")


def size() -> int:
    """Processes that train together at this moment; 1 outside of a training."""
    return _launch.size if _launch and _together else 1


def rank() -> int:
    """The number of this one among them; 0 leads and is the only one that writes and speaks."""
    return _launch.rank if _launch and _together else 0


def place() -> tuple[int, int]:
    """The number of this process on its machine, and how many there are on it."""
    if size() == 1:
        return 0, 1
    return int(os.environ.get("LOCAL_RANK", 0)), int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def parts(images: int, most: int) -> list[slice]:
    """Cut a step's images into parts of at most `most`, evenly, and each into equal shares for all processes.

    Returns:
        This process' share of each part; where there are fewer images than processes, some are empty.
    """
    cuts = max(1, math.ceil(images / most))
    found = []
    for part in range(cuts):
        low, high = (images * (part + after) // cuts for after in (0, 1))
        own = [low + (high - low) * (rank() + after) // size() for after in (0, 1)]
        found.append(slice(*own))
    return found


def total(values: "Tensor") -> "Tensor":
    """Add a tensor up over all processes, in place."""
    if size() > 1:
        import torch.distributed as dist

        dist.all_reduce(values)
    return values


def same(tensors: Iterable["Tensor"]) -> None:
    """Overwrite tensors by the leader's."""
    if size() > 1:
        import torch.distributed as dist

        for tensor in tensors:
            # A copy: not every backend sends every layout.
            sent = tensor.detach().contiguous()
            dist.broadcast(sent, 0)
            tensor.detach().copy_(sent)


def leaders(value: Any) -> Any:
    """Return the leader's value."""
    if size() == 1:
        return value
    import torch
    import torch.distributed as dist

    sent = [value if rank() == 0 else None]
    dist.broadcast_object_list(sent, 0, device=torch.device("cpu"))
    return sent[0]


def by_leader(work: Callable[[], None]) -> None:
    """Let the leader do something; what keeps it from that ends what all do together, in all of them."""
    failure: Exception | None = None
    if rank() == 0:
        try:
            work()
        except Exception as error:
            if size() == 1:
                raise
            failure = error
    if leaders(failure is not None):
        raise failure or _Left


@contextmanager
def alone(really: bool = True) -> Iterator[None]:
    """Let a block run as though this were the only process."""
    global _together
    before, _together = _together, _together and not really
    try:
        yield
    finally:
        _together = before


def together(stage: Callable[P, R]) -> Callable[P, R]:
    """Let all processes run a stage where there are several; they are given the leader's arguments.

    The others are told nothing of `progress` and `watch`. A stage asks `rank()` before it writes.
    """

    @functools.wraps(stage)
    def called(*args: P.args, **options: P.kwargs) -> R:
        global _together, _calls
        if _launch is None or _together:
            return stage(*args, **options)
        number, _calls = _calls, _calls + 1
        if _launch.rank == 0:
            _launch.store.set(f"call/{number}", "")
        try:
            _join(number)
            _together = True
            told = {name: value for name, value in options.items() if name not in WATCHING}
            leaders((stage.__module__, stage.__qualname__, args, told))
            return stage(*args, **options)
        except RuntimeError as error:
            if not _is_broken_off(error):
                raise
            _others_failed(error)
        finally:
            _together = False
            # Whoever waits in a sum for a process that has left learns of it.
            _part()
            if _launch.rank == 0:
                _launch.store.set(f"left/{number}", "")

    return called


def check_enough(images: int, batch: int) -> None:
    """Refuse more processes than images, in all or in a batch.

    Raises:
        ConfigError: there would be nothing to do for some.
    """
    if size() > images:
        raise ConfigError(
            f"{size()} processes for {images} training inputs: some would have nothing to do",
            hint=f"torchrun --nproc-per-node {images} or less",
        )
    if size() > batch:
        raise ConfigError(
            f"finetune.batch: {batch}, which {size()} processes share: some would have nothing to do",
            hint=f"finetune.batch: {size()} or more, or torchrun --nproc-per-node {batch} or less",
        )


def lead_or_follow(work: Callable[[], None]) -> None:
    """Run the command in the first process; in the others, take part in what it trains.

    Ends as the leader ends, with its exit code, or with that of the process that failed.
    """
    global _launch
    import torch.distributed as dist
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    try:
        store, number, count = next(rendezvous("env://", timeout=timedelta(minutes=5)))
    except (dist.DistError, RuntimeError, ValueError) as error:
        raise SystemExit(f"error: the processes that were started do not find each other: {error}") from error
    # torchrun's store outlives the processes that it starts again: what the last ones left must not count.
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    _launch = _Launch(number, count, PrefixStore(f"edgetune/{attempt}", store))
    if number:
        _end(_follow())
    try:
        work()
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        _launch.store.set("end", str(code))
        _end(code)
    except BaseException:
        _launch.store.set("end", "1")
        raise
    _launch.store.set("end", "0")
    _end(0)


def _follow() -> int:
    """Wait for what the leader trains, and train with it."""
    global _together, _calls
    assert _launch
    store = _launch.store
    try:
        while _wait_for(store, f"call/{_calls}", "end") != "end":
            number, _calls = _calls, _calls + 1
            try:
                _join(number)
                _together = True
                module, name, args, options = leaders(None)
                getattr(importlib.import_module(module), name)(*args, **options)
            except Exception as error:
                # The leader may have met the same, or ended it: then it says so, and may go on with something else.
                if not _wait_for(store, f"left/{number}", "end", seconds=GRACE_S):
                    return _complain(error)
            finally:
                _together = False
                _part()
        return int(store.get("end"))
    except KeyboardInterrupt:
        return 130
    except RuntimeError:  # The store is gone with the launcher, who has told.
        return 1


def _wait_for(store: Any, *keys: str, seconds: float = math.inf) -> str:
    """Wait until one of some keys is there and return it, or an empty text once the time is over.

    By looking: the store's own wait complains on stderr each time that it runs out.
    """
    last = time.monotonic() + seconds
    while True:
        for key in keys:
            if store.check([key]):
                return key
        if time.monotonic() > last:
            return ""
        time.sleep(0.1)


def _complain(error: Exception) -> int:
    """Say why this process failed, where another has not, and return the exit code."""
    assert _launch
    store = _launch.store
    if isinstance(error, RuntimeError) and _is_broken_off(error):
        return 1
    if store.add("failed", 1) > 1:
        return 1
    code = error.exit_code if isinstance(error, EdgetuneError) else 1
    store.set("failed with", str(code))
    if not isinstance(error, EdgetuneError):
        import traceback

        traceback.print_exception(error)
    print(f"error: process {_launch.rank + 1} of {_launch.size}: {error}", file=sys.stderr)
    if isinstance(error, EdgetuneError) and error.hint:
        print(f"  {error.hint}", file=sys.stderr)
    return code


def _others_failed(error: Exception) -> NoReturn:
    """Tell of another process that is gone, once: where it has said why itself, end without a word."""
    assert _launch
    if _launch.rank:
        raise error
    if _launch.store.check(["failed with"]):
        raise SystemExit(int(_launch.store.get("failed with"))) from error
    raise StageError(
        "another process of this training has ended, without a word",
        hint="the same command goes on after the last complete epoch (torchrun --max-restarts does it by itself)",
    ) from error


def _is_broken_off(error: RuntimeError) -> bool:
    """Whether it says that another process has closed its connection."""
    import torch.distributed as dist

    # Gloo raises a plain RuntimeError.
    return isinstance(error, dist.DistError) or "gloo" in str(error).lower() or "by peer" in str(error)


def _join(number: int) -> None:
    """Connect all processes, for one call."""
    import torch
    import torch.distributed as dist
    from torch.distributed.distributed_c10d import PrefixStore

    assert _launch
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo",
        store=PrefixStore(f"group/{number}", _launch.store),
        rank=_launch.rank,
        world_size=_launch.size,
        timeout=PATIENCE,
    )


def _part() -> None:
    """Take the connections down again."""
    import torch.distributed as dist

    if dist.is_initialized():
        with suppress(RuntimeError):
            dist.destroy_process_group()


def _end(code: int) -> NoReturn:
    """Leave without waiting for those that are gone.

    The leader, which may hold the store, gives the others a moment to read what it left there.
    """
    assert _launch
    with suppress(RuntimeError):
        _launch.store.add("left", 1)
        last = time.monotonic() + LEAVE_S
        while _launch.rank == 0 and _launch.store.add("left", 0) < _launch.size and time.monotonic() < last:
            time.sleep(0.05)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
