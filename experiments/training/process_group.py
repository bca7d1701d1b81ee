"""The processes that train one network together, each on its share of every batch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


class ProcessGroup:
    """Group of one process; ``DistributedProcessGroup`` is one process among several.

    Attributes:
        rank: of this process. Rank 0 leads: it alone reads and writes the run store, and says what is trained.
        size: how many there are.
    """

    rank: int = 0
    size: int = 1

    def share(self, count: int) -> slice:
        """The part of ``count`` images that is this process's; the parts differ by at most one image."""
        return slice(count * self.rank // self.size, count * (self.rank + 1) // self.size)

    def all_reduce(self, values: Tensor) -> Tensor:
        """The sum over all processes, the same to the bit on each."""
        return values

    def all_gather(self, values: Tensor) -> Tensor:
        """The values of all processes, rank by rank along a new first dimension."""
        return torch.stack([values])

    def broadcast(self, value: Any) -> Any:
        """What rank 0 gives, on every process."""
        return value

    @contextmanager
    def joined(self) -> Iterator[None]:
        """Meet the others, who are let go at the end."""
        yield

    @contextmanager
    def training(self, name: str) -> Iterator[None]:
        """Have the others train what rank 0 trains now.

        Args:
            name: of the run, the same on every process.
        """
        yield


SINGLE_PROCESS = ProcessGroup()
