"""The processes that train one network together, each on its share of every batch."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Crew:
    """One process among those that train together.

    Attributes:
        rank: of this process.
        size: how many there are.
    """

    rank: int = 0
    size: int = 1

    def share(self, count: int) -> slice:
        """The part of ``count`` images that is this process's; the parts differ by at most one image."""
        return slice(count * self.rank // self.size, count * (self.rank + 1) // self.size)

    def add(self, values: Tensor) -> Tensor:
        """The sum over all processes."""
        return values


ALONE = Crew()
