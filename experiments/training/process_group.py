"""The processes that train one network together, each on its share of every batch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


class ProcessGroup:
    """Group of one process. ``DistributedProcessGroup`` has several.

    Attributes:
        rank: of this process. Rank 0 alone reads and writes the run store, and decides what is trained.
        size: number of processes.
    """

    rank: int = 0
    size: int = 1

    def share(self, count: int) -> slice:
        """Return this process's part of ``count`` images; parts differ by at most one image."""
        return slice(count * self.rank // self.size, count * (self.rank + 1) // self.size)

    def all_reduce(self, values: Tensor) -> Tensor:
        """Return the sum over all processes, the same to the bit on each."""
        return values

    def all_gather(self, values: Tensor) -> Tensor:
        """Return the values of all processes, rank by rank along a new first dimension."""
        return torch.stack([values])

    def broadcast(self, value: Any) -> Any:
        """Return the value of rank 0 on every process."""
        return value

    @contextmanager
    def joined(self) -> Iterator[None]:
        """Join the other processes; rank 0 dismisses them at the end."""
        yield

    @contextmanager
    def training(self, name: str) -> Iterator[None]:
        """Have the other processes train the run that rank 0 trains now.

        Args:
            name: of the run's folder, the same on every process.
        """
        yield


SINGLE_PROCESS = ProcessGroup()
