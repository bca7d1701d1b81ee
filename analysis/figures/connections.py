"""Connection diagrams: the inputs that each output of a layer is computed from, in space and in the channels.

The number of lines is the cost ("Why MobileNet and its variants are fast", yu4u). Every line is a link of a real layer
(``analysis.links``). Lengths are inches, y runs downward.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.patches import FancyArrowPatch
from torch import nn

from analysis.figures import page
from analysis.links import Link, channel_links, count_macs, inputs_seen, spatial_links
from gconv.conv import CONVOLUTIONS, cuts
from gconv.partition import Partition

DIAGRAM = 1.37  # width of one, at least
PIXELS = 5  # in the row of pixels that is drawn
GAP = 0.43  # from one row of units to the next
HEAD = 0.44  # three lines of text above a diagram
FOOT = 0.32  # one line below it, and the space to the next
SPACE_X, CHANNELS_X, PITCH, CHANNELS_WIDTH = 0.29, 0.97, 0.075, 0.58
NEUTRAL = (0.45, 0.45, 0.45)
Colour = tuple[float, float, float]


@dataclass(frozen=True)
class Diagram:
    """A layer, or consecutive layers, to be drawn.

    Attributes:
        title: its name.
        formula: its multiply-accumulates in H, W (output pixels), N inputs, M outputs, B inner channels, K kernel,
            G groups, n logarithmic groups.
        layers: each with a short name; the first reads the input.
        shortcut: True if the input is added to the output.
    """

    title: str
    formula: str
    layers: tuple[tuple[str, nn.Module], ...]
    shortcut: bool = False

    @property
    def channel_steps(self) -> list[list[Link]]:
        """The channel links of each layer."""
        return [channel_links(layer) for _, layer in self.layers]

    @property
    def spatial_steps(self) -> list[list[Link]]:
        """The links of each layer along the width, for ``PIXELS`` pixels."""
        return [spatial_links(layer, PIXELS) for _, layer in self.layers]


@dataclass(frozen=True)
class Count:
    """Multiplications of a diagram for one output pixel.

    Attributes:
        terms: of each layer that multiplies, (pixel links, channel links).
        dense: multiplications of a standard 3×3 convolution between the same inputs and outputs.
    """

    terms: tuple[tuple[int, int], ...]
    dense: int

    @property
    def total(self) -> int:
        """Multiplications for one output pixel."""
        return sum(pixels * channels for pixels, channels in self.terms)

    def __str__(self) -> str:
        """``9·32 = 288, 50%``."""
        products = "+".join(f"{pixels}·{channels}" if pixels > 1 else f"{channels}" for pixels, channels in self.terms)
        total = f" = {self.total}" if products != str(self.total) else ""
        return f"{products}{total}, {100 * self.total / self.dense:.3g}%"


def count_lines(diagram: Diagram) -> Count:
    """Count the lines of a diagram: pixels (down × along) and channels, for one output pixel of each layer.

    Raises:
        ValueError: a layer changes the number of pixels, so that there is no one output pixel.
    """
    terms = []
    for name, layer in diagram.layers:
        pixels = PIXELS * PIXELS
        links = channel_links(layer)
        if {out for _, out in spatial_links(layer, PIXELS)} != set(range(PIXELS)):
            raise ValueError(f"{diagram.title}, {name}: it changes the number of pixels, and a diagram keeps them")
        if macs := count_macs(layer, PIXELS, PIXELS):
            terms.append((macs // pixels // len(links), len(links)))
    inputs = 1 + max(source for source, _ in diagram.channel_steps[0])
    outputs = 1 + max(out for _, out in diagram.channel_steps[-1])
    dense = nn.Conv2d(inputs, outputs, 3, padding=1, device="meta")
    return Count(tuple(terms), count_macs(dense, PIXELS, PIXELS) // PIXELS**2)


def draw(diagrams: list[Diagram], folder: Path) -> list[Path]:
    """Draw the diagrams in rows: title, formula, count, and the links in space and in the channels.

    Args:
        diagrams: diagrams in reading order.
        folder: folder for the figure.
    """
    columns = max(1, int(page.WIDTH / DIAGRAM))
    rows = [diagrams[start : start + columns] for start in range(0, len(diagrams), columns)]
    heights = [HEAD + FOOT + GAP * max(len(d.layers) for d in row) for row in rows]
    note = 0.56
    figure = plt.figure(figsize=(page.WIDTH, sum(heights) + note))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, page.WIDTH), ylim=(sum(heights) + note, 0))
    axes.set_axis_off()
    for number, row in enumerate(rows):
        for column, diagram in enumerate(row):
            _draw_diagram(axes, diagram, column * page.WIDTH / columns, sum(heights[:number]))
    text = (
        "Left of each pair: a row of pixels; right: the channels, coloured by group. Ringed: one output, and in full "
        "colour all\nit depends on. Dotted: moved, not multiplied. Arrow: the input is added. Second line of a title: "
        "multiply-accumulates.\nThird: pixel links (3 × 3) · channel links of one output pixel, in % of a standard 3×3 "
        "with the same inputs and outputs.\nH, W: height and width of the output; N: input channels; M: output "
        "channels; B: inner channels of a block; K: width of the\nkernel; G: groups; n: logarithmic groups."
    )
    if page.BARE:
        page.keep_text(figure, text)
    else:
        axes.text(0.06, sum(heights) + 0.02, text, fontsize=6, va="top", color="0.25", linespacing=1.3)
    return page.save(figure, folder, "layers")


def _draw_diagram(axes: Axes, diagram: Diagram, x: float, y: float) -> None:
    for line, text in enumerate((diagram.title, diagram.formula, str(count_lines(diagram)))):
        weight = "normal" if line else "bold"
        axes.text(x + 0.06, y + 0.06 + 0.115 * line, text, fontsize=6.5, va="center", weight=weight)
    top = y + HEAD
    bottom = top + GAP * len(diagram.layers)
    dotted = [not isinstance(layer, CONVOLUTIONS) for _, layer in diagram.layers]

    steps = diagram.spatial_steps
    neutral = [[NEUTRAL] * PIXELS] * (len(steps) + 1)
    seen = _draw_links(axes, steps, neutral, dotted, diagram.shortcut, (x + SPACE_X, top, PITCH))
    label = f"{seen} pixel{'s' * (seen > 1)}"
    axes.text(x + SPACE_X, bottom + 0.06, label, fontsize=6, ha="center", va="top")

    steps, colours = diagram.channel_steps, _channel_colours(diagram)
    pitch = min(PITCH, CHANNELS_WIDTH / max(map(len, colours)))
    seen = _draw_links(axes, steps, colours, dotted, diagram.shortcut, (x + CHANNELS_X, top, pitch))
    label = f"{seen} of {len(colours[0])} channels"
    axes.text(x + CHANNELS_X, bottom + 0.06, label, fontsize=6, ha="center", va="top")

    if len(diagram.layers) > 1:
        middle = x + (SPACE_X + PITCH * (PIXELS + 1) / 2 + CHANNELS_X - CHANNELS_WIDTH / 2) / 2
        for number, (name, _) in enumerate(diagram.layers):
            text = axes.text(middle, top + (number + 0.5) * GAP, name, fontsize=6, color="0.25", rotation=90)
            text.set(ha="center", va="center")
    if diagram.shortcut:
        side = x + CHANNELS_X + CHANNELS_WIDTH / 2 + 0.01
        bend = f"arc3,rad={-0.14 / (bottom - top):.3f}"
        arrow = FancyArrowPatch((side, top), (side, bottom), connectionstyle=bend, arrowstyle="-|>", mutation_scale=4)
        arrow.set(color="0.25", linewidth=0.7)
        axes.add_patch(arrow)


def _channel_colours(diagram: Diagram) -> list[list[Colour]]:
    """Return the colour of each channel, row by row.

    It is that of the group that computes the channel, else of the group that reads it; a layer that links each output
    to one input passes the colour on.
    """
    palette = sns.color_palette("colorblind")

    def by_group(partition: Partition) -> list[Colour]:
        cut = 1 < partition.groups < partition.channels
        return [palette[group] if cut else NEUTRAL for group in partition.labels]

    layers, steps = [layer for _, layer in diagram.layers], diagram.channel_steps
    first = layers[0]
    inputs = 1 + max(source for source, _ in steps[0])
    rows = [by_group(cuts(first)[0]) if isinstance(first, CONVOLUTIONS) else [NEUTRAL] * inputs]
    for layer, links, reader in zip(layers, steps, [*layers[1:], None], strict=True):
        outputs = [NEUTRAL] * (1 + max(out for _, out in links))
        if len(links) == len(outputs):
            outputs = [rows[-1][source] for source, _ in links]
        elif isinstance(layer, CONVOLUTIONS):
            outputs = by_group(cuts(layer)[1])
        if set(outputs) == {NEUTRAL} and isinstance(reader, CONVOLUTIONS):
            outputs = by_group(cuts(reader)[0])
        rows.append(outputs)
    return rows


def _draw_links(
    axes: Axes,
    steps: list[list[Link]],
    colours: list[list[Colour]],
    dotted: list[bool],
    shortcut: bool,
    place: tuple[float, float, float],
) -> int:
    """Draw rows of units, one colour each, with the links between them.

    Args:
        axes: axes whose unit is the inch.
        steps: the links of each layer; inputs beyond the row are padding.
        colours: of each unit of each row.
        dotted: of each layer, whether it only moves units.
        shortcut: True if the output depends on its own input too.
        place: centre of the rows, top, distance of two units.

    Returns:
        How many units of the first row the ringed output depends on.
    """
    centre, top, pitch = place
    ringed = (len(colours[-1]) - 1) // 2
    seen = inputs_seen(steps, ringed)
    if shortcut:
        seen[0].add(ringed)

    def point(row: int, unit: int) -> tuple[float, float]:
        return centre + (unit - (len(colours[row]) - 1) / 2) * pitch, top + row * GAP

    for row, links in enumerate(steps):
        for strong in (False, True):
            drawn = [link for link in links if (link[1] in seen[row + 1]) == strong]
            tints = [colours[row][source] if 0 <= source < len(colours[row]) else NEUTRAL for source, _ in drawn]
            style = {"linestyles": (0, (1, 1)) if dotted[row] else "solid", "zorder": 2 + strong}
            width, alpha = (0.9 if len(drawn) <= 16 else 0.5, 1.0) if strong else (0.5, 0.4)
            ends = [(point(row, source), point(row + 1, out)) for source, out in drawn]
            axes.add_collection(LineCollection(ends, colors=tints, linewidths=width, alpha=alpha, **style))
        padding = sorted({source for source, _ in links} - set(range(len(colours[row]))))
        places = [point(row, source) for source in padding]
        axes.scatter(*_xy(places), s=4, facecolors="white", edgecolors="0.6", linewidths=0.5, zorder=2)
    area = (72 * pitch * 0.62) ** 2
    for row, tints in enumerate(colours):
        places = [point(row, unit) for unit in range(len(tints))]
        faces = [t if unit in seen[row] else tuple(0.45 * c + 0.55 for c in t) for unit, t in enumerate(tints)]
        axes.scatter(*_xy(places), s=area, c=faces, linewidths=0, zorder=4)
    ring = [point(len(steps), ringed)]
    axes.scatter(*_xy(ring), s=2.2 * area, facecolors="none", edgecolors="black", linewidths=0.8, zorder=5)
    return len([unit for unit in seen[0] if 0 <= unit < len(colours[0])])


def _xy(places: list[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in places], [y for _, y in places]
