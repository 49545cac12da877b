"""Several processes that train together, forked from a test: faster than torchrun, and as real."""

import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable
from typing import Any

import torch
from torch.distributed import TCPStore

from edgetune.training import ranks


def several(processes: int, work: Callable[[], Any], together: bool = True) -> list[Any]:
    """Run `work` in each and return what each returns, the first one's first; an exception is a RuntimeError.

    Args:
        processes: how many.
        work: must return something that can be pickled.
        together: false: each stands where a command does, before anything is trained.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("fork")
    pipes = [context.Pipe(duplex=False) for _ in range(processes)]
    started = []
    for rank, (_, answer) in enumerate(pipes):
        process = context.Process(target=_one, args=(rank, processes, port, work, together, answer))
        process.start()
        started.append(process)
    try:
        found = []
        for reader, _ in pipes:
            assert reader.poll(60), "it hangs"
            found.append(reader.recv())
    finally:
        for process in started:
            process.kill()
            process.join()
    failed = [value for kind, value in found if kind == "failed"]
    if failed:
        raise RuntimeError("\n".join(failed))
    return [value for _, value in found]


def _one(rank: int, size: int, port: int, work: Callable[[], Any], together: bool, answer: Any) -> None:
    torch.set_num_threads(1)
    os.environ |= {"LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(size)}
    try:
        store = TCPStore("127.0.0.1", port, size, is_master=rank == 0)
        ranks._launch = ranks._Launch(rank, size, store)
        if together:
            ranks._join()
            ranks._together = True
        answer.send(("done", work()))
    except BaseException:
        answer.send(("failed", traceback.format_exc()))
    # The first one holds the store.
    multiprocessing.Event().wait(30)
