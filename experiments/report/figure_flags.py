"""Flags that set how figures are written: ``--format``, ``--width`` and ``--bare`` of the command ``figures``."""

from __future__ import annotations

from experiments.errors import UsageError

FORMATS = ("pdf", "png", "svg", "eps")
WIDTHS = {"column": 3.25, "page": 5.5}  # inches
INCH = 2.54  # cm
FLAGS = ("--format=A,B", "--width=W", "--bare")
NARROWEST, WIDEST = 6.0, 60.0  # cm
HELP = f"""\
  --format=A,B     of the files: {", ".join(FORMATS)}; pdf,png by default
  --width=W        column ({WIDTHS["column"]} in), page ({WIDTHS["page"]} in, the default), or a number of cm
  --bare           no title and no caption inside; they are written to a .txt file next to each figure
"""


def apply_figure_flags(flags: list[str]) -> list[str]:
    """Set how figures are written; returns the other flags.

    Raises:
        UsageError: an unknown format or width.
    """
    rest, formats, width, bare = [], ("pdf", "png"), WIDTHS["page"], False
    for flag in flags:
        key, has_value, value = flag.partition("=")
        if key == "--format":
            formats = _formats(value)
        elif key == "--width":
            width = _width(value)
        elif key == "--bare":
            if has_value:
                raise UsageError(f"figures: {flag}: --bare takes no value")
            bare = True
        else:
            rest.append(flag)
    from analysis.figures import page

    page.set_output(formats, width, bare)
    return rest


def _formats(value: str) -> tuple[str, ...]:
    wanted = tuple(dict.fromkeys(value.split(",")))
    for name in wanted:
        if name not in FORMATS:
            raise UsageError(f"figures: --format={value}: no such format {name!r}; there are: {', '.join(FORMATS)}")
    return wanted


def _width(value: str) -> float:
    if value in WIDTHS:
        return WIDTHS[value]
    try:
        width = float(value)
    except ValueError:
        width = float("nan")
    if not NARROWEST <= width <= WIDEST:
        range_ = f"a number of cm from {NARROWEST:g} to {WIDEST:g}"
        raise UsageError(f"figures: --width={value}: use {', '.join(WIDTHS)}, or {range_}")
    return width / INCH
