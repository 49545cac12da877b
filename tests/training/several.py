"""Several processes that train together, forked from a test: faster than torchrun, and as real.

What autograd's threads have run in, be it for a GPU or for torch.compile, cannot be forked: such tests bear the
mark `forks`, which brings them to the front, and are skipped where it is too late.
"""

import multiprocessing
import os
import socket
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed import TCPStore

from edgetune.errors import EdgetuneError
from edgetune.training import ranks

FORK = multiprocessing.get_context("fork")
LIMIT_S = 120


def several(processes: int, work: Callable[[], Any]) -> list[Any]:
    """Run `work` in processes that train together.

    Returns:
        What each returned, the first one's first.

    Raises:
        RuntimeError: one failed; with its traceback.
    """
    _check_fork()
    port, pipes = _port(), [FORK.Pipe(duplex=False) for _ in range(processes)]
    started = [
        FORK.Process(target=_joined, args=(rank, processes, port, work, answer))
        for rank, (_, answer) in enumerate(pipes)
    ]
    for process in started:
        process.start()
    try:
        for reader, _ in pipes:
            assert reader.poll(LIMIT_S), "it hangs"
        found = [reader.recv() for reader, _ in pipes]
    finally:
        for process in started:
            process.kill()
            process.join()
    failed = [value for kind, value in found if kind == "failed"]
    if failed:
        raise RuntimeError("\n".join(failed))
    return [value for _, value in found]


def commanded(processes: int, command: Callable[[], None], errors: Path) -> list[int | None]:
    """Run a command as torchrun would, one process for each, and say how they end.

    Args:
        processes: how many.
        command: what the leader runs, as the command line does.
        errors: gets what all of them write to stderr.

    Returns:
        Exit codes, the leader's first.
    """
    _check_fork()
    port = _port()
    started = [
        FORK.Process(target=_told, args=(rank, processes, port, command, errors)) for rank in range(processes)
    ]
    for process in started:
        process.start()
    for process in started:
        process.join(LIMIT_S)
    hanging = [process for process in started if process.is_alive()]
    for process in hanging:
        process.kill()
    assert not hanging, errors.read_text()
    return [process.exitcode for process in started]


def _check_fork() -> None:
    probe = FORK.Process(target=_differentiate)
    probe.start()
    probe.join(LIMIT_S)
    if probe.exitcode:
        pytest.skip("autograd has started threads in this process, so its forks cannot train")


def _differentiate() -> None:
    try:
        torch.ones(1, requires_grad=True).sum().backward()
    except RuntimeError:
        os._exit(1)


def _port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _joined(rank: int, size: int, port: int, work: Callable[[], Any], answer: Any) -> None:
    torch.set_num_threads(1)
    os.environ |= {"LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(size)}
    try:
        store = TCPStore("127.0.0.1", port, size, is_master=rank == 0)
        ranks._launch = ranks._Launch(rank, size, store)
        ranks._join(0)
        ranks._together = True
        answer.send(("done", work()))
    except BaseException:
        answer.send(("failed", traceback.format_exc()))
    # The first one holds the store: all stay until they are killed.
    multiprocessing.Event().wait(LIMIT_S)


def _told(rank: int, size: int, port: int, command: Callable[[], None], errors: Path) -> None:
    torch.set_num_threads(1)
    told = {
        "RANK": rank,
        "WORLD_SIZE": size,
        "LOCAL_RANK": rank,
        "LOCAL_WORLD_SIZE": size,
        "MASTER_PORT": port,
    }
    os.environ |= {name: str(value) for name, value in told.items()} | {"MASTER_ADDR": "127.0.0.1"}
    with errors.open("a") as written:
        os.dup2(written.fileno(), 2)
        sys.stderr = os.fdopen(2, "w", buffering=1)

    def answered() -> None:
        try:
            command()
        except EdgetuneError as error:
            print(f"error: {error.message}", file=sys.stderr)
            sys.exit(error.exit_code)

    ranks.lead_or_follow(answered)
