"""The page of all figures: paper size, fonts, styles of variants, text that fits, and saving."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill
from weakref import WeakKeyDictionary

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from fontTools.subset import Options
from matplotlib.artist import Artist
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox
from tueplots import axes, figsizes, fontsizes

WIDTH = figsizes.neurips2024()["figure.figsize"][0]  # inches
HEIGHT = 8.4  # at most, with a caption below still on the page
MARGIN = 0.1
CHARACTER = 0.0087  # width of a character in inches per point of its size, rounded up
COLOURS = 7  # of the palette; the eighth is grey
MARKERS = "os^DvPX<>pd*h8"
LINES = ("-", "--", ":", "-.")

FORMATS = ("pdf", "png")
BARE = False  # neither title nor caption inside

Colour = tuple[float, float, float]

# Only a typesetter reads these tables of a font in a PDF, and cutting them took half of the time of a PDF.
Options._drop_tables_default = [*Options._drop_tables_default, "GDEF", "GPOS", "GSUB"]  # pyright: ignore[reportAttributeAccessIssue]

_texts: WeakKeyDictionary[Figure, list[str]] = WeakKeyDictionary()  # of bare figures


def set_output(formats: Sequence[str], width: float, bare: bool) -> None:
    """Set how every figure that follows is written.

    Args:
        formats: suffixes of the files.
        width: inches.
        bare: True to write title and caption to a text file of the figure's name, and not into it.
    """
    global FORMATS, WIDTH, BARE
    FORMATS, WIDTH, BARE = tuple(formats), width, bare


def apply_style() -> None:
    """Set fonts, lines and colours for every figure that follows; TrueType is embedded in PDFs."""
    sns.set_theme(context="paper", style="ticks", palette="colorblind")
    settings = {
        **fontsizes.neurips2024(),
        **axes.lines(),
        **{"figure.titlesize": 9, "axes.titlesize": 7, "axes.labelsize": 8, "legend.fontsize": 8},
        "text.hinting": "no_hinting",  # hinted text has another width at each resolution: a caption would be cut off
        **{"pdf.fonttype": 42, "ps.fonttype": 42, "font.family": "DejaVu Sans", "savefig.dpi": 200},
    }
    for key, value in settings.items():
        plt.rcParams[key] = value  # type: ignore[index]


@dataclass(frozen=True)
class Style:
    """Style of a variant: more than a colour, since there may be more variants than colours."""

    colour: Colour
    marker: str
    line: str


def variant_styles(variants: Sequence[str]) -> dict[str, Style]:
    """Return the style of each variant, the same in every figure of a study; all differ up to 98 variants."""
    palette = sns.color_palette("colorblind")[:COLOURS]
    return {
        variant: Style(
            palette[k % COLOURS], MARKERS[(k + k // len(MARKERS)) % len(MARKERS)], LINES[k // COLOURS % len(LINES)]
        )
        for k, variant in enumerate(variants)
    }


def short_names(names: Sequence[str], length: int) -> dict[str, str]:
    """Return each name in at most ``length`` characters: long ones lose their middle; no two become the same."""
    short: dict[str, str] = {}
    for name in dict.fromkeys(names):
        text, number = _cut(name, length), 1
        while text in short.values():
            number += 1
            text = _cut(name, length - len(f"#{number}")) + f"#{number}"
        short[name] = text
    return short


POINT = r"(?<=\d)\.(?=\d)"  # of a number


def wrapped(name: str, length: int, lines: int = 2) -> str:
    """Return a name in lines, broken after dots, hyphens, commas and spaces, not in a number; the rest is left out."""
    rows: list[str] = []
    for part in re.findall(rf"(?:[^-., _]|{POINT})*(?:(?!{POINT})[-., _])+|(?:[^-., _]|{POINT})+", name):
        if rows and len((rows[-1] + part).strip()) <= length:
            rows[-1] += part
        else:
            rows.append(part)
    rows = [*rows[: lines - 1], "".join(rows[lines - 1 :])]
    return "\n".join(_cut(row.strip(), length) for row in rows if row.strip())


def _cut(text: str, length: int) -> str:
    length = max(3, length)
    if len(text) <= length:
        return text
    tail = (length - 1) // 2
    return f"{text[: length - 1 - tail]}…{text[-tail:]}"


def characters_that_fit(inches: float, size: float) -> int:
    """Return the number of characters of a font size that fit into a width."""
    return int(inches / (CHARACTER * size))


def legend(figure: Figure, handles: Sequence[Artist], names: Sequence[str]) -> None:
    """Draw one legend below the panels, in as many columns as its names leave room for."""
    if not names:
        return
    size = 6.5
    entry = 4.3 * size / 72  # handle and spaces
    texts = list(short_names(names, characters_that_fit(WIDTH / 2 - entry, size)).values())

    def width(columns: int) -> float:
        longest = [max(map(len, part)) for part in np.array_split(texts, columns)]
        return sum(entry + CHARACTER * size * length for length in longest)

    columns = max((count for count in range(1, min(7, len(texts)) + 1) if width(count) <= WIDTH), default=1)
    figure.legend(
        handles,
        texts,
        loc="outside lower center",
        ncols=columns,
        frameon=False,
        fontsize=size,
        handlelength=1.8,
        columnspacing=1.2,
        labelspacing=0.3,
        borderpad=0.2,
    )


def fix_layout(figure: Figure) -> None:
    """Lay out the figure; later additions move nothing."""
    engine = figure.get_layout_engine()
    if engine is None:
        return
    engine.execute(figure)
    figure.set_layout_engine(None)
    for below in figure.legends:
        below.set_bbox_to_anchor((0, 0, 1, 1), figure.transFigure)


def title(figure: Figure, text: str) -> None:
    """Write the title above a figure."""
    if BARE:
        keep_text(figure, f"{text}.")
    else:
        figure.suptitle(fill(text, characters_that_fit(WIDTH, 9)))


def keep_text(figure: Figure, text: str) -> None:
    """Add to the text file of a bare figure."""
    _texts.setdefault(figure, []).append(" ".join(text.split()))


def caption(figure: Figure, text: str) -> None:
    """Write how to read a figure, in small print below it; nothing may be added after it."""
    fix_layout(figure)
    if BARE:
        keep_text(figure, text)
        return
    lines = fill(" ".join(text.split()), int(WIDTH / (0.9 * CHARACTER * 6)))
    figure.text(0.01, -0.01, lines, fontsize=6, va="top", color="0.25", linespacing=1.3)


def save(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Write a figure in every format, cropped to its content, and close it; returns the paths.

    A bare figure has exactly the width asked for, if its content is not wider. Its text is in a file next to it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    fix_layout(figure)
    tight = figure.get_tightbbox()
    box = tight.padded(MARGIN)
    if BARE:
        edge = MARGIN / 5
        box = Bbox([[min(0, tight.x0), tight.y0 - edge], [max(WIDTH, tight.x1), tight.y1 + edge]])
    paths = [folder / f"{name}.{suffix}" for suffix in FORMATS]
    for path in paths:
        fresh = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            figure.savefig(fresh, format=path.suffix[1:], bbox_inches=box)
            fresh.replace(path)
        finally:
            fresh.unlink(missing_ok=True)
    plt.close(figure)
    if texts := _texts.pop(figure, None):
        paths.append(folder / f"{name}.txt")
        paths[-1].write_text(" ".join(texts) + "\n", encoding="utf-8")
    return paths
