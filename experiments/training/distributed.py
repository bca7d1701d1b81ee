"""Several processes of torch.distributed that train together: gloo between CPUs, nccl between GPUs.

Rank 0 announces the next run through a store, and the others poll the store. So no operation times out while
rank 0 waits for runs that other processes hold. All other communication is collective operations with a time limit.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from itertools import count
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from experiments.errors import RunFailedError
from experiments.store import stop_signal
from experiments.training.process_group import ProcessGroup
from experiments.training.ranks import another_failed

POLL_INTERVAL_S = 0.05
LEAVE = "leave"  # announced by rank 0 in place of a run


class ProcessGroupLostError(KeyboardInterrupt):
    """The process group is broken: this process stops as on a signal, since training is impossible.

    Attributes:
        by_another: another process is gone; if false, this one has failed before.
    """

    def __init__(self, by_another: bool) -> None:
        super().__init__()
        self.by_another = by_another


class DistributedProcessGroup(ProcessGroup):
    """Process group of several ranks; this process is one of them."""

    def __init__(
        self, rank: int, size: int, backend: str, timeout: float, meeting: str = "env://", here: int = 1
    ) -> None:
        """Describe the group; ``joined`` joins it.

        Args:
            rank: of this process.
            size: number of ranks.
            backend: ``gloo``, ``nccl``, or both by device: ``cpu:gloo,cuda:nccl``.
            timeout: seconds that a rank waits for another during training before the other counts as lost.
            meeting: address at which the ranks meet: the environment that torchrun sets, or ``file:///path``.
            here: number of ranks that share this machine's cores; rank 0 has all cores once the others have left.
        """
        self.rank, self.size = rank, size
        self._backend, self._timeout, self._meeting = backend, timedelta(seconds=timeout), meeting
        self._here = here
        self._announcements: dist.Store | None = None  # type: ignore[attr-defined]
        self._given = 0
        self._broken = False

    def all_reduce(self, values: Tensor) -> Tensor:
        """Return the sum over all ranks; on a GPU the host does not wait for it."""
        total = values.clone()
        dist.all_reduce(total)
        return total

    def all_gather(self, values: Tensor) -> Tensor:
        """Return the values of all ranks, (size, …)."""
        gathered = [torch.empty_like(values) for _ in range(self.size)]
        dist.all_gather(gathered, values)
        return torch.stack(gathered)

    def broadcast(self, value: Any) -> Any:
        """Return the value of rank 0, which is pickled: ranks share no files."""
        held = [value]
        dist.broadcast_object_list(held, src=0)
        return held[0]

    @contextmanager
    def joined(self) -> Iterator[None]:
        """Join the process group; when rank 0 leaves, for any reason, the others leave too.

        Raises:
            ProcessGroupLostError: another rank is gone, or this one failed during a collective operation.
        """
        store, _, _ = next(iter(rendezvous(self._meeting, self.rank, self.size, timeout=self._timeout)))
        dist.init_process_group(
            self._backend,
            store=dist.PrefixStore("group", store),  # type: ignore[attr-defined]
            rank=self.rank,
            world_size=self.size,
            timeout=self._timeout,
        )
        self._announcements = dist.PrefixStore("orders", store)  # type: ignore[attr-defined]
        try:
            yield
            if self._broken:
                raise ProcessGroupLostError(by_another=False)
        finally:
            if self.rank == 0:
                with suppress(RuntimeError):  # the process that held the store may be gone
                    self._announce(LEAVE)
        dist.destroy_process_group()  # in a broken group it may wait forever
        torch.set_num_threads(torch.get_num_threads() * self._here)

    @contextmanager
    def training(self, name: str) -> Iterator[None]:
        """Train a run together; rank 0 announces it.

        Raises:
            ProcessGroupLostError: another rank is gone, or this one failed before during a collective operation.
        """
        if self._broken:
            raise ProcessGroupLostError(by_another=False)
        if self.rank == 0:
            self._announce(name)
        try:
            yield
        except Exception as error:
            if isinstance(error, RunFailedError) and error.lasting:  # all ranks see it at the same step
                raise
            self._broken = True
            if another_failed(error):
                raise ProcessGroupLostError(by_another=True) from error
            raise

    def announced_runs(self) -> Iterator[str]:
        """Yield the names of the runs to train, as rank 0 announces them, until it dismisses the others.

        Raises:
            KeyboardInterrupt: a stop signal has come between two runs.
        """
        assert self._announcements is not None, "joined"
        for number in map(str, count()):
            while not self._announcements.check([number]):
                if stop_signal.received():
                    raise KeyboardInterrupt
                time.sleep(POLL_INTERVAL_S)
            order = self._announcements.get(number).decode()
            if order == LEAVE:
                return
            yield order

    def _announce(self, what: str) -> None:
        assert self._announcements is not None, "joined"
        self._announcements.set(str(self._given), what)
        self._given += 1


def backend_for(kinds: Iterable[str]) -> str:
    """Return the backend for devices of these kinds, ``cpu`` and ``cuda``; for both, one for each kind."""
    names = {"cpu": "gloo", "cuda": "nccl"}
    distinct = sorted(set(kinds))
    return names[distinct[0]] if len(distinct) == 1 else ",".join(f"{kind}:{names[kind]}" for kind in distinct)
