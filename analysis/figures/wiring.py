"""Group wiring of a whole network: the filters that each group reads, by the group that computes them.

Columns are convolutions in the order of computation, in several rows where the network is deep. Lengths are inches, y
runs downward.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate, groupby
from math import ceil
from pathlib import Path

import matplotlib.pyplot as plt
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.patches import PathPatch, Polygon
from matplotlib.path import Path as Outline

from analysis.figures import page
from analysis.scheme import MAX_UNITS, Bus, Column, Scheme, buses

ROW_COLUMNS = 20  # at most, in one row
LEFT, RIGHT = 0.22, 0.1  # margins; the scale bar is in the left one
LANE = 0.065  # between two lines above the blocks
STUB = 0.1  # of a ribbon that goes on in another row
CHARACTER = page.CHARACTER * 6
LABEL_SIZES = (6, 5, 4.5)  # of a block's name: the largest in which no part of it is cut
NEUTRAL = (0.55, 0.55, 0.55)
INK = "0.25"
Colour = tuple[float, float, float]
Span = tuple[float, float]  # top, bottom


@dataclass(frozen=True)
class Row:
    """The places of the columns of one row.

    Attributes:
        scheme: the whole network.
        columns: numbers of those in this row.
        pitch: from one column to the next.
        middle: y of the blocks' axis.
        height: of the highest column.
    """

    scheme: Scheme
    columns: range
    pitch: float
    middle: float
    height: float

    @property
    def scale(self) -> float:
        """Inches per channel, the gaps between units taken off the highest column."""
        drawn_columns = [self.scheme.columns[number] for number in self.columns]
        return min(
            (self.height - self.gap(side) * (len(side) - 1)) / sum(side)
            for column in drawn_columns
            for side in (column.inputs, column.outputs)
        )

    def gap(self, side: tuple[int, ...]) -> float:
        """Return the gap between the units of a column, in inches."""
        return min(0.045, 0.2 * self.height / len(side))

    def edges(self, column: int) -> tuple[float, float]:
        """Return x of the left and of the right edge of a column's blocks."""
        centre = LEFT + (column - self.columns.start + 0.5) * self.pitch
        half = min(0.15 * self.pitch, 0.09)
        return centre - half, centre + half

    def spans(self, side: tuple[int, ...]) -> list[Span]:
        """Return the top and bottom of each unit on one side of a column."""
        scale, gap = self.scale, self.gap(side)
        tops = accumulate((size * scale + gap for size in side[:-1]), initial=0.0)
        start = self.middle - (sum(side) * scale + gap * (len(side) - 1)) / 2
        return [(start + top, start + top + size * scale) for top, size in zip(tops, side, strict=True)]


def draw(scheme: Scheme, title: str, folder: Path, name: str) -> list[Path]:
    """Draw a network: blocks for its groups, ribbons for filters that the next convolution reads, lines for the rest.

    Args:
        scheme: columns and flows.
        title: name of the network.
        folder: folder for the figure.
        name: name of the files, without suffix.
    """
    rows = _break_rows([column.name for column in scheme.columns])
    pitch = (page.WIDTH - LEFT - RIGHT) / max(4, *map(len, rows))
    height = 1.7 if len(rows) == 1 else 0.9
    lanes = _lanes(buses(scheme))
    widest = max(len(column.outputs) for column in scheme.columns)
    palette = sns.color_palette("colorblind" if widest <= 7 else "husl", widest)  # the eighth is grey

    figure = plt.figure(figsize=(page.WIDTH, 1))
    axes = figure.add_axes((0, 0, 1, 1))
    if page.BARE:
        page.keep_text(figure, f"{title}.")
    else:
        axes.text(page.WIDTH / 2, 0.1, title, ha="center", va="center", fontsize=9)
    y = 0.1 if page.BARE else 0.3
    for columns in rows:
        here = {b: lane for b, lane in lanes.items() if b.sources[0] < columns.stop and b.readers[-1] >= columns.start}
        top = y + LANE * (1 + max(here.values(), default=-1)) + (0.1 if here else 0)
        row = Row(scheme, columns, pitch, top + height / 2, height)
        _draw_flows(axes, row, palette)
        for number in columns:
            _draw_blocks(axes, row, number, palette)
        for bus, lane in here.items():
            _draw_bus(axes, row, bus, top - 0.1 - LANE * lane)
        _draw_scale(axes, row)
        y = _draw_names(axes, row, top + height + 0.06) + 0.12
    y = _draw_note(axes, scheme, bool(lanes), y)
    figure.set_size_inches(page.WIDTH, y)
    axes.set(xlim=(0, page.WIDTH), ylim=(y, 0))
    axes.set_axis_off()
    return page.save(figure, folder, name)


def _break_rows(names: list[str]) -> list[range]:
    """Return rows of about equal length, broken between blocks of the network where that leaves no row half empty."""
    rows, first = [], 0
    while first < len(names):
        left = len(names) - first
        wanted = first + ceil(left / ceil(left / ROW_COLUMNS))
        stops = range(first + ROW_COLUMNS // 2, min(first + ROW_COLUMNS, len(names)) + 1)
        between = [n for n in stops if n == len(names) or _block(names[n]) != _block(names[n - 1])]
        stop = min(between or [wanted], key=lambda place: abs(place - wanted))
        rows.append(range(first, stop))
        first = stop
    return rows


def _lanes(bus_list: list[Bus]) -> dict[Bus, int]:
    """Return a lane for each bus, the shortest lowest, so that no two overlap."""
    lanes: dict[Bus, int] = {}
    for bus in sorted(bus_list, key=lambda bus: bus.readers[-1] - bus.sources[0]):
        taken = {
            lane
            for other, lane in lanes.items()
            if other.sources[0] < bus.readers[-1] and bus.sources[0] < other.readers[-1]
        }
        lanes[bus] = next(lane for lane in range(len(bus_list)) if lane not in taken)
    return lanes


def _unit_colour(column: Column, unit: int, palette: list[Colour]) -> Colour:
    return palette[unit] if len(column.outputs) > 1 else NEUTRAL


def _draw_blocks(axes: Axes, row: Row, number: int, palette: list[Colour]) -> None:
    """Draw one block per unit: a trapezoid from the channels it reads to the filters it computes."""
    column = row.scheme.columns[number]
    left, right = row.edges(number)
    for unit, (into, out) in enumerate(zip(row.spans(column.inputs), row.spans(column.outputs), strict=True)):
        corners = [(left, into[0]), (right, out[0]), (right, out[1]), (left, into[1])]
        colour = _unit_colour(column, unit, palette)
        axes.add_patch(Polygon(corners, facecolor=colour, edgecolor=colour, linewidth=0.6, joinstyle="round", zorder=3))
        if column.is_striped:
            highest = max(into[1] - into[0], out[1] - out[0])
            stripes = min(max(2, round(highest / 0.03)), column.outputs[unit])
            shares = [stripe / stripes for stripe in range(1, stripes)]
            ends = [((left, _at(into, share)), (right, _at(out, share))) for share in shares]
            axes.add_collection(LineCollection(ends, colors="white", linewidths=0.5, zorder=4))


def _at(span: Span, share: float) -> float:
    return span[0] + share * (span[1] - span[0])


def _draw_flows(axes: Axes, row: Row, palette: list[Colour]) -> None:
    """Draw ribbons from each column to the next; between two rows, a stub on either side."""
    for flow in row.scheme.flows:
        if flow.reader != flow.source + 1 or not {flow.source, flow.reader} & set(row.columns):
            continue
        source, reader = row.scheme.columns[flow.source], row.scheme.columns[flow.reader]
        out = _part(row, row.spans(source.outputs)[flow.source_unit], flow.source_start, flow.filters)
        into = _part(row, row.spans(reader.inputs)[flow.reader_unit], flow.reader_start, flow.channels)
        start, end = row.edges(flow.source)[1], row.edges(flow.reader)[0]
        if flow.reader not in row.columns:
            into, end = out, start + STUB
        elif flow.source not in row.columns:
            out, start = into, end - STUB
        colour = _unit_colour(source, flow.source_unit, palette)
        if colour == NEUTRAL:
            colour = _unit_colour(reader, flow.reader_unit, palette)
        axes.add_patch(PathPatch(_ribbon(start, end, out, into), facecolor=colour, alpha=0.4, linewidth=0, zorder=2))


def _part(row: Row, span: Span, start: int, size: int) -> Span:
    """Return the stretch of a unit that a flow takes."""
    top = span[0] + start * row.scale
    return top, top + size * row.scale


def _ribbon(start: float, end: float, out: Span, into: Span) -> Outline:
    bend = (start + end) / 2
    points = [(start, out[0]), (bend, out[0]), (bend, into[0]), (end, into[0])]
    points += [(end, into[1]), (bend, into[1]), (bend, out[1]), (start, out[1]), (start, out[0])]
    line, curve = Outline.LINETO, Outline.CURVE4
    return Outline(points, [Outline.MOVETO, curve, curve, curve, line, curve, curve, curve, Outline.CLOSEPOLY])


def _draw_bus(axes: Axes, row: Row, bus: Bus, y: float) -> None:
    """Draw one line above the blocks: its sources join it with a dot, its readers take from it with an arrow."""
    columns = row.scheme.columns
    ends = [LEFT, row.edges(row.columns[-1])[1] + STUB]
    if bus.sources[0] in row.columns:
        ends[0] = row.edges(bus.sources[0])[1]
    if bus.readers[-1] in row.columns:
        ends[1] = row.edges(bus.readers[-1])[0]
    lines = [((ends[0], y), (ends[1], y))]
    for source in set(bus.sources) & set(row.columns):
        x = row.edges(source)[1]
        lines.append(((x, y), (x, row.spans(columns[source].outputs)[0][0])))
        axes.plot(x, y, "o", markersize=2.2, color=INK, zorder=6)
    for reader in set(bus.readers) & set(row.columns):
        if [source for source in bus.sources if source < reader] == [reader - 1]:
            continue  # the ribbon says it
        x, top = row.edges(reader)[0], row.spans(columns[reader].inputs)[0][0]
        lines.append(((x, y), (x, top)))
        axes.plot(x, top - 0.015, marker="v", markersize=2.6, markeredgewidth=0, color=INK, zorder=6)
    axes.add_collection(LineCollection(lines, colors=INK, linewidths=0.6, zorder=5))


def _draw_scale(axes: Axes, row: Row) -> None:
    """Draw the height of a round number of filters in this row."""
    size = 1
    while 2 * size * row.scale <= 0.5 * row.height:
        size *= 2
    top, bottom = row.middle - size * row.scale / 2, row.middle + size * row.scale / 2
    axes.plot([0.16, 0.16], [top, bottom], color=INK, linewidth=0.8, marker="_", markersize=3)
    axes.text(0.09, row.middle, f"{size} filters", fontsize=6, rotation=90, ha="center", va="center", color=INK)


def _draw_names(axes: Axes, row: Row, y: float) -> float:
    """Write name, kernel and groups under each column, and the name of a block; returns where the text ends."""
    drawn_columns = [(number, row.scheme.columns[number]) for number in row.columns]
    if row.pitch >= 0.75:
        for number, column in drawn_columns:
            lines = [column.name, *column.caption.split(", ")]
            if number:
                lines.insert(2, f"{sum(column.outputs)} filters")
            axes.text(sum(row.edges(number)) / 2, y, "\n".join(lines), fontsize=6.5, ha="center", va="top")
        return y + 0.45
    places: list[tuple[str, str]] = []  # of each column: block, name inside it
    for block, members in groupby((column for _, column in drawn_columns), key=lambda column: _block(column.name)):
        names = [column.name for column in members]
        alone = len(names) == 1
        places += [("", name) if alone else (block, name.removeprefix(f"{block}.")) for name in names]
    for (number, column), (_, name) in zip(drawn_columns, places, strict=True):
        x = sum(row.edges(number)) / 2
        axes.text(x - 0.055, y, name, fontsize=6, rotation=90, ha="center", va="top")
        axes.text(x + 0.055, y, column.caption, fontsize=6, rotation=90, ha="center", va="top", color="0.4")
    longest = max(
        max(len(name), len(column.caption)) for (_, column), (_, name) in zip(drawn_columns, places, strict=True)
    )
    y += CHARACTER * longest + 0.05
    deepest = 0  # lines of a block's name
    for block, numbered in groupby(zip(row.columns, places, strict=True), key=lambda item: item[1][0]):
        members = [number for number, _ in numbered]
        if not block:
            continue
        left, right = row.edges(members[0])[0] - 0.06, row.edges(members[-1])[1] + 0.06
        room = row.pitch * len(members)
        longest = max(map(len, block.split("."))) + 1
        size = next((s for s in LABEL_SIZES if page.characters_that_fit(room, s) >= longest), LABEL_SIZES[-1])
        label = page.wrapped(block, page.characters_that_fit(room, size), 4)
        deepest = max(deepest, label.count("\n") + 1)
        axes.plot([left, right], [y, y], color="0.6", linewidth=0.6)
        axes.text((left + right) / 2, y + 0.02, label, fontsize=size, ha="center", va="top", linespacing=1.1)
    return y + (0.04 + 0.09 * deepest if deepest else 0)


def _block(name: str) -> str:
    """Return the part of a name that its neighbours share: up to the first number, else all but the last part."""
    parts = name.split(".")
    numbers = [place for place, part in enumerate(parts[:-1]) if part.isdigit()]
    return ".".join(parts[: numbers[0] + 1] if numbers else parts[:-1])


def _draw_note(axes: Axes, scheme: Scheme, lines_above: bool, y: float) -> float:
    """Write how to read the figure; returns where the text ends."""
    lines = [
        "Blocks are groups; left edge: the channels they read, right edge: the filters they compute. Ribbons: filters",
        "that the next convolution reads, coloured by the group that computes them, else by the one that reads them.",
    ]
    if any(column.is_striped for column in scheme.columns):
        lines.append(
            f"Striped: more than {MAX_UNITS} groups, split by the group that reads them, if there are several."
        )
    if lines_above:
        lines.append(
            "Line above: filters read further on. ● joins it; ▼ reads from all that joined before (shortcut, branch)."
        )
    figure = axes.get_figure(root=True)
    if page.BARE and figure is not None:
        page.keep_text(figure, " ".join(lines))
        return y
    axes.text(0.06, y, "\n".join(lines), fontsize=6, va="top", color=INK, linespacing=1.3)
    return y + 0.12 * len(lines) + 0.02
