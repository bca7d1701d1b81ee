"""Aligned text tables, short enough for a screen."""

from __future__ import annotations

from collections.abc import Sequence

MOST_ROWS = 24


def aligned(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    total: Sequence[str] | None = None,
    texts: int = 1,
    most: int | None = MOST_ROWS,
) -> str:
    """One line for the header, each row and the total.

    Args:
        header, rows, total: cells as text; the rows as long as the header.
        texts: how many columns, from the left, are text; the others are numbers and end at the same place.
        most: rows shown; the others are counted in a line. None shows all.
    """
    shown = rows if most is None or len(rows) <= most else rows[: most - 1]
    lines = [header, *shown, *([total] if total is not None else [])]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]

    def line_of(cells: Sequence[str]) -> str:
        places = zip(cells, widths, range(len(cells)), strict=True)
        return "  ".join(f"{c:<{width}}" if column < texts else f"{c:>{width}}" for c, width, column in places).rstrip()

    text = [line_of(line) for line in lines]
    if len(shown) < len(rows):
        text.insert(1 + len(shown), f"… {len(rows) - len(shown)} more")
    return "\n".join(text)
