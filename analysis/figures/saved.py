"""The saved tables and arrays that the figures of measured networks are drawn from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

import pandas as pd
from numpy.typing import NDArray

Part = Literal["measures", "arrays", "curves", "fronts", "runs"]


@dataclass(frozen=True, eq=False)
class Saved:
    """The results of a study, or of one network, as they were saved.

    Attributes:
        measures: the long table: study, variant, seed, layer, measure, null, groups, value, unit.
        arrays: arrays of the first seed of each variant, by name.
        curves: one row per variant, seed and epoch; None for a network trained elsewhere.
        fronts: ``analysis.tradeoff.front_table``; None for a network trained elsewhere.
        runs: one row per run; ``family`` is the same where only groups and widths differ. None for a network trained
            elsewhere.
    """

    measures: pd.DataFrame = field(default_factory=pd.DataFrame)
    arrays: Mapping[str, Mapping[str, NDArray]] = field(default_factory=dict)
    curves: pd.DataFrame | None = None
    fronts: pd.DataFrame | None = None
    runs: pd.DataFrame | None = None


class Figure(NamedTuple):
    """A figure, and the parts of the saved results that it needs.

    Attributes:
        name: of its file; its second page is NAME-2.
        draw: draws from saved results into a folder. Returns the files written, none if nothing was measured.
        needs: parts without which it is not drawn.
    """

    name: str
    draw: Callable[[Saved, Path], list[Path]]
    needs: tuple[Part, ...]
