"""Functions run by several ranks of one process group, on one machine.

The ranks find each other through a file, never at a fixed port. torch is imported once, by a server that forks the
ranks. If a rank dies, the others are stopped and one line names it; no rank waits for ever.
"""

from __future__ import annotations

import multiprocessing
import signal
import tempfile
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

import torch
import torch.distributed as dist
from tqdm import tqdm

from experiments.errors import RunFailedError, UsageError

GRACE_PERIOD_S = 2.0  # for the other ranks to report, after the first has failed
# Words of gloo and nccl if another rank has failed.
MESSAGES_OF_A_LOST_RANK = (
    "connection closed",
    "connection reset",
    "timed out",
    "timeout",
    "peer",
    "broken pipe",
    "remote process",
)


def device_for(name: str, ranks: int) -> str:
    """Return ``cpu`` or ``cuda``; with CUDA, each rank has a device of its own.

    Raises:
        UsageError: the name is unknown, or this machine has too few devices.
    """
    available = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name not in ("auto", "cpu", "cuda"):
        raise UsageError(f"device={name}: must be auto, cpu or cuda")
    if name == "cuda" and available < ranks:
        raise UsageError(
            f"device=cuda: {ranks} ranks need a CUDA device each, and there are {available}; try device=cpu"
        )
    return "cuda" if name != "cpu" and available >= ranks else "cpu"


def run_on_ranks(function: Callable[..., Any], ranks: int, *arguments: Any, device: str, timeout: float) -> list[Any]:
    """Run a function on every rank of a new process group.

    Args:
        function: of a module; called as ``function(rank, *arguments)`` inside the group.
        ranks: their number.
        arguments: that can be pickled.
        device: ``cpu`` (gloo) or ``cuda`` (nccl, one device a rank).
        timeout: seconds that a rank waits for another before it counts as lost.

    Returns:
        The values that the function returned, rank by rank.

    Raises:
        RunFailedError: a rank died, or did not answer in time: names the first, and how it ended.
    """
    context = multiprocessing.get_context("forkserver")
    # Every optimizer imports torch._dynamo, which takes seconds.
    context.set_forkserver_preload(["torch._dynamo", function.__module__])
    processes: list[BaseProcess] = []
    ends: list[Connection] = []
    with tempfile.TemporaryDirectory() as folder:
        try:
            for rank in range(ranks):
                end, theirs = context.Pipe(duplex=False)
                given = (theirs, function, rank, ranks, f"{folder}/meeting", device, timeout, arguments)
                process = context.Process(target=_rank, args=given, name=f"rank {rank}", daemon=True)
                process.start()
                theirs.close()
                processes.append(process)
                ends.append(end)
            values = _gathered(processes, ends, timeout)
            for process in processes:
                process.join(GRACE_PERIOD_S)
            return values
        finally:
            for process in processes:
                process.kill()
            for process in processes:
                process.join()


def _rank(
    end: Connection,
    function: Callable[..., Any],
    rank: int,
    ranks: int,
    meeting: str,
    device: str,
    timeout: float,
    arguments: tuple,
) -> None:
    """Join the group in a new process, call the function, report its value or its error."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that started the ranks ends them
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    tqdm.set_lock(threading.RLock())  # its own, which torch.fx calls for, outlives a process that is killed
    torch.set_num_threads(max(1, torch.get_num_threads() // ranks))
    try:
        if device == "cuda":
            torch.cuda.set_device(rank)
        backend = "nccl" if device == "cuda" else "gloo"
        wait_for = timedelta(seconds=timeout)
        dist.init_process_group(backend, f"file://{meeting}", timeout=wait_for, world_size=ranks, rank=rank)
        reports = ("done", function(rank, *arguments))
        dist.barrier()
        dist.destroy_process_group()
    except Exception as error:
        text = " ".join(str(error).split())
        reports = ("lost" if another_failed(error) else "failed", f"failed with {type(error).__name__}: {text}")
    end.send(reports)


def another_failed(error: Exception) -> bool:
    """Tell if an error says that another rank has failed."""
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in MESSAGES_OF_A_LOST_RANK)


def _gathered(processes: list[BaseProcess], ends: list[Connection], timeout: float) -> list[Any]:
    """Return the reported values, or raise the error of the first rank that failed."""
    reports: dict[int, tuple[str, Any]] = {}
    deadline = None
    while len(reports) < len(ends):
        waiting = {end: rank for rank, end in enumerate(ends) if rank not in reports}
        ready = wait(list(waiting), None if deadline is None else max(0.0, deadline - time.monotonic()))
        if not ready:
            break
        for end in ready:
            rank = waiting[end]  # type: ignore[index]
            try:
                reports[rank] = end.recv()  # type: ignore[union-attr]
            except EOFError:
                processes[rank].join()
                reports[rank] = ("died", exit_reason(processes[rank].exitcode))
            if reports[rank][0] != "done" and deadline is None:
                deadline = time.monotonic() + GRACE_PERIOD_S
    for kind in ("died", "failed"):
        for rank, (what, how) in reports.items():
            if what == kind:
                raise RunFailedError(f"rank {rank} of {len(ends)} {how}; the others were stopped", lasting=False)
    silent = [rank for rank in range(len(ends)) if rank not in reports]
    if lost := next((how for what, how in reports.values() if what == "lost"), None):
        who = f"rank {silent[0]} of {len(ends)} did not answer for {timeout:g} s" if silent else lost
        raise RunFailedError(f"{who}; the others were stopped", lasting=False)
    return [reports[rank][1] for rank in range(len(ends))]


def exit_reason(code: int | None) -> str:
    """Return how a process ended, in words, by its exit code."""
    if code is not None and code < 0:
        return f"was killed by signal {-code} ({signal.Signals(-code).name})"
    return f"ended with exit code {code}"
