"""Aligned text tables, short enough for a screen."""

from __future__ import annotations

from collections.abc import Sequence

MAX_ROWS = 24


def aligned(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    total: Sequence[str] | None = None,
    texts: int = 1,
    max_rows: int | None = MAX_ROWS,
) -> str:
    """Return a table as text: one line for the header, for each row and for the total.

    Args:
        header, rows, total: cells as text; every row is as long as the header.
        texts: number of columns, from the left, that are text; the others are numbers and are right-aligned.
        max_rows: number of rows printed, the others are counted in one line; None prints all.
    """
    printed = rows if max_rows is None or len(rows) <= max_rows else rows[: max_rows - 1]
    lines = [header, *printed, *([total] if total is not None else [])]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]

    def line_of(cells: Sequence[str]) -> str:
        places = zip(cells, widths, range(len(cells)), strict=True)
        return "  ".join(f"{c:<{width}}" if column < texts else f"{c:>{width}}" for c, width, column in places).rstrip()

    text = [line_of(line) for line in lines]
    if len(printed) < len(rows):
        text.insert(1 + len(printed), f"… {len(rows) - len(printed)} more")
    return "\n".join(text)
