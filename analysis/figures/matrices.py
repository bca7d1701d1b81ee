"""Matrices in block order: a row for each variant, a column for each layer, lines between the groups.

Lengths are inches. Where the panels would become too small the variants go on on another page.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from numpy.typing import NDArray

from analysis.figures import page

BORDER = "deepskyblue"
TITLE = 5.5  # size of the text over a matrix
LINE = 0.09  # of such text
NAMES, BAR, GAP = 0.72, 0.6, 0.05  # left and right of the panels, between them
LEAST, LARGEST = 0.8, 1.5  # side of a panel, where the columns leave room for it
TOP = 0.28  # title
UPRIGHT = 0.6  # narrower panels have upright headings
NAME_LENGTH = 12  # characters in a line of a variant's name


@dataclass(frozen=True)
class Matrix:
    """The content of one panel.

    Attributes:
        values: (C, D); NaN where there is nothing, as of dead filters.
        rows: (C,) group of each row; None without groups.
        columns: (D,) group of each column.
        title: parts of its title, in as few lines as fit.
    """

    values: NDArray
    rows: NDArray | None = None
    columns: NDArray | None = None
    title: tuple[str, ...] = ()


def in_blocks(matrix: Matrix) -> tuple[NDArray, NDArray, NDArray]:
    """Sort a matrix by group, filters of a group in their order.

    Returns:
        The matrix; places of the lines between groups, down and across, in rows and columns.
    """
    rows, columns = (
        np.zeros(size, dtype=np.int64) if labels is None else np.asarray(labels)
        for size, labels in zip(matrix.values.shape, (matrix.rows, matrix.columns), strict=True)
    )
    down, across = np.argsort(rows, kind="stable"), np.argsort(columns, kind="stable")
    borders = [np.flatnonzero(np.diff(labels)) + 0.5 for labels in (rows[down], columns[across])]
    return matrix.values[np.ix_(down, across)], borders[0], borders[1]


@dataclass(frozen=True)
class Layout:
    """The places of the panels of a page.

    Attributes:
        broad: side of a panel that the columns leave room for.
        side: of a panel, the rows considered too.
        lines: of text over each panel.
        rows: of panels on a page, at most.
        heading: height of the layers' names.
    """

    broad: float
    side: float
    lines: int
    rows: int
    heading: float

    @property
    def pitch(self) -> float:
        """Inches from one row to the next."""
        return self.side + LINE * self.lines + GAP


def lay_out(variants: int, columns: Sequence[str], titles: Sequence[tuple[str, ...]]) -> Layout:
    """Return the layout with the largest panels: all columns side by side, variants on one page or on equal pages."""
    broad = min(LARGEST, (page.WIDTH - NAMES - BAR) / len(columns) - GAP)
    heading = max(_heading(column, broad)[1] for column in columns) + 0.04
    room = page.HEIGHT - TOP - heading
    best = None
    for lines in range(1 + max(map(len, titles), default=0)):
        rows = max(1, int(room / (min(broad, LEAST) + LINE * lines + GAP)))
        pages = ceil(variants / rows)
        rows = ceil(variants / pages)
        side = min(broad, room / rows - LINE * lines - GAP)
        best = Layout(broad, side, lines, rows, heading)
        if all(len(_joined(title, side)) <= lines for title in titles):
            break
    assert best is not None
    return best


def draw(
    variants: Sequence[str],
    columns: Sequence[str],
    matrices: Mapping[tuple[str, str], Matrix],
    scale: tuple[float, str],
    texts: tuple[str, str],
    folder: Path,
    name: str,
) -> list[Path]:
    """Draw all matrices on one scale.

    Args:
        variants: rows.
        columns: headings of the columns.
        matrices: by variant and column, values not negative.
        scale: the value at which the colour scale ends, and the name of the values.
        texts: title and caption.
        folder: folder for the figure.
        name: name of the files, without suffix; a second page is ``<name>-2``.
    """
    layout = lay_out(len(variants), columns, [matrix.title for matrix in matrices.values()])
    names = page.short_names(variants, 3 * NAME_LENGTH)
    paths: list[Path] = []
    for number, start in enumerate(range(0, len(variants), layout.rows), 1):
        page_variants = variants[start : start + layout.rows]
        height = TOP + layout.heading + layout.pitch * len(page_variants)
        figure = plt.figure(figsize=(page.WIDTH, height))
        title = texts[0] if len(variants) <= layout.rows else f"{texts[0]} ({number})"
        if page.BARE:
            page.keep_text(figure, f"{title}.")
        else:
            figure.text(0.5, 1 - 0.13 / height, title, fontsize=9, ha="center", va="center")
        width = layout.side + GAP
        left = NAMES + max(0.0, (page.WIDTH - NAMES - BAR - width * len(columns)) / 2)
        image = None
        for place, column in enumerate(columns):
            at = (left + place * width + layout.side / 2) / page.WIDTH
            text, _ = _heading(column, layout.broad)
            above = figure.text(at, 1 - (TOP + layout.heading - 0.02) / height, text, fontsize=6)
            above.set(ha="center", va="bottom", linespacing=1.1, rotation=90 if layout.broad < UPRIGHT else 0)
        for row, variant in enumerate(page_variants):
            bottom = height - TOP - layout.heading - layout.pitch * (row + 1) + GAP
            text = page.wrapped(names[variant], NAME_LENGTH, 3)
            middle = (bottom + layout.side / 2) / height
            figure.text((left - 0.06) / page.WIDTH, middle, text, fontsize=6, ha="right", va="center")
            for place, column in enumerate(columns):
                if (variant, column) in matrices:
                    inches = (left + place * width, bottom, layout.side, layout.side)
                    image = _draw_matrix(figure, inches, matrices[variant, column], scale[0])
        if image is not None:
            _draw_bar(figure, image, left + width * len(columns) + 0.05, scale)
        page.caption(figure, texts[1])
        paths += page.save(figure, folder, name if number == 1 else f"{name}-{number}")
    return paths


def _heading(column: str, side: float) -> tuple[str, float]:
    """Return the name of a column and its height in inches: upright over narrow panels."""
    if side < UPRIGHT:
        text = page.wrapped(column, 17)
        return text, page.CHARACTER * 6 * max(map(len, text.split("\n")))
    text = page.wrapped(column, page.characters_that_fit(side + GAP, 6), 3)
    return text, LINE * (text.count("\n") + 1)


def _joined(parts: Sequence[str], side: float) -> list[str]:
    """Return the parts in as few lines as fit."""
    lines: list[str] = []
    for part in parts:
        if lines and len(lines[-1]) + len(part) + 2 <= page.characters_that_fit(side + GAP, TITLE):
            lines[-1] += f", {part}"
        else:
            lines.append(part)
    return lines


def _draw_matrix(
    figure: Figure, inches: tuple[float, float, float, float], matrix: Matrix, largest: float
) -> AxesImage:
    width, height = figure.get_size_inches()
    left, bottom, side, _ = inches
    panel = figure.add_axes((left / width, bottom / height, side / width, side / height))
    values, down, across = in_blocks(matrix)
    for draw_line, borders in ((panel.axhline, down), (panel.axvline, across)):
        # Many groups stay visible between the lines.
        for border in borders:
            draw_line(border, color=BORDER, linewidth=min(0.8, 4 / len(borders)))
    panel.set_facecolor("0.75")  # of dead filters
    panel.set(xticks=[], yticks=[])
    panel.set_title("\n".join(_joined(matrix.title, side)), fontsize=TITLE, pad=2, linespacing=1.1)
    masked = np.ma.masked_invalid(values)
    return panel.imshow(masked, vmin=0, vmax=largest, cmap="magma", aspect="auto", interpolation="auto")


def _draw_bar(figure: Figure, image: AxesImage, left: float, scale: tuple[float, str]) -> None:
    width, height = figure.get_size_inches()
    tall = min(1.5, 0.8 * height)
    axes = figure.add_axes((left / width, 0.5 - tall / height / 2, 0.1 / width, tall / height))
    bar = figure.colorbar(image, cax=axes, extend="max" if scale[0] < 1 else "neither")
    bar.set_label(scale[1], fontsize=7)
    bar.ax.tick_params(labelsize=6)
