"""One of several processes of torch.distributed that train together: gloo between CPUs, nccl between GPUs.

Rank 0 says through a store what is to be trained, and the others poll it: so nothing times out while rank 0 waits for
runs in other hands, however long that takes. All else are collective operations, with a time limit.
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

POLL = 0.05  # seconds between looks at what rank 0 says
LEAVE = "leave"


class ProcessGroupLostError(KeyboardInterrupt):
    """What the processes did together is broken: this one stops as on notice, since nothing can be trained any more.

    Attributes:
        by_another: whether another one is gone, or else this one failed before.
    """

    def __init__(self, by_another: bool) -> None:
        super().__init__()
        self.by_another = by_another


class DistributedProcessGroup(ProcessGroup):
    """One rank of a process group."""

    def __init__(
        self, rank: int, size: int, backend: str, timeout: float, meeting: str = "env://", here: int = 1
    ) -> None:
        """Nothing is begun yet; ``at_work`` meets the others.

        Args:
            rank: of this process.
            size: how many there are.
            backend: ``gloo``, ``nccl``, or both by device: ``cpu:gloo,cuda:nccl``.
            timeout: seconds that a rank waits for another in the midst of training before it counts as lost.
            meeting: where they meet: the environment that torchrun sets, or ``file:///path``.
            here: how many of them share this machine's cores; rank 0 has them to itself once the others have left.
        """
        self.rank, self.size = rank, size
        self._backend, self._timeout, self._meeting = backend, timedelta(seconds=timeout), meeting
        self._here = here
        self._announcements: dist.Store | None = None  # type: ignore[attr-defined]
        self._given = 0
        self._broken = False

    def all_reduce(self, values: Tensor) -> Tensor:
        """The sum over all ranks; on a GPU the host does not wait for it."""
        total = values.clone()
        dist.all_reduce(total)
        return total

    def all_gather(self, values: Tensor) -> Tensor:
        """The values of all ranks, (size, …)."""
        found = [torch.empty_like(values) for _ in range(self.size)]
        dist.all_gather(found, values)
        return torch.stack(found)

    def broadcast(self, value: Any) -> Any:
        """What rank 0 gives, pickled: ranks share no files."""
        held = [value]
        dist.broadcast_object_list(held, src=0)
        return held[0]

    @contextmanager
    def joined(self) -> Iterator[None]:
        """Join the process group; however rank 0 leaves, the others are told to leave too.

        Raises:
            ProcessGroupLostError: another rank is gone, or this one failed in the midst of what they did together.
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
                with suppress(RuntimeError):  # the store may have gone with the process that held it
                    self._announce(LEAVE)
        dist.destroy_process_group()  # of a broken group it may wait for what never comes
        torch.set_num_threads(torch.get_num_threads() * self._here)

    @contextmanager
    def training(self, name: str) -> Iterator[None]:
        """Train a run with the others; rank 0 tells them which.

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
        """The names of the runs to train, as rank 0 tells them, until it lets the others go.

        Raises:
            KeyboardInterrupt: a notice to stop has come, and nothing is being trained.
        """
        assert self._announcements is not None, "at work"
        for number in map(str, count()):
            while not self._announcements.check([number]):
                if stop_signal.received():
                    raise KeyboardInterrupt
                time.sleep(POLL)
            order = self._announcements.get(number).decode()
            if order == LEAVE:
                return
            yield order

    def _announce(self, what: str) -> None:
        assert self._announcements is not None, "at work"
        self._announcements.set(str(self._given), what)
        self._given += 1


def backend_for(kinds: Iterable[str]) -> str:
    """The backend for devices of these kinds, ``cpu`` and ``cuda``, or of each by kind."""
    names = {"cpu": "gloo", "cuda": "nccl"}
    found = sorted(set(kinds))
    return names[found[0]] if len(found) == 1 else ",".join(f"{kind}:{names[kind]}" for kind in found)
