"""The wiring of a whole network as columns of units and flows of filters between them, ready to be drawn.

A column is a convolution, in the order of computation; the input of the network is column 0. The units of a column are
the groups of the convolution. If there are too many groups to be drawn (depthwise), a filter belongs to the unit that
*reads* it, as a filter of AlexNet's conv1 belongs to the group of conv2 that reads it.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from torch import nn

from gconv.conv import CONVOLUTIONS, cuts
from gconv.wiring import LayerWiring, trace_wiring
from gconv.wiring.origins import set_bits

MAX_UNITS = 16


@dataclass(frozen=True)
class Column:
    """One convolution, or the input.

    Attributes:
        name: name of the module; ``input`` for the image.
        caption: kernel and groups, such as ``3×3, 2 groups``.
        groups: number of groups.
        inputs, outputs: channels that each unit reads, filters that it computes.
    """

    name: str
    caption: str
    groups: int
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]

    @property
    def is_striped(self) -> bool:
        """True if there are too many groups for a unit each."""
        return self.groups > MAX_UNITS


@dataclass(frozen=True)
class Flow:
    """The filters of one unit that one unit of another column reads.

    Attributes:
        source, source_unit: column and unit that compute the filters.
        reader, reader_unit: column and unit that read them.
        filters: number of filters.
        channels: number of input channels of the reader that come from them; more than ``filters`` if some are read
            twice.
        source_start, reader_start: first place of the flow among the filters of the source's unit, and among the input
            channels of the reader's unit.
    """

    source: int
    source_unit: int
    reader: int
    reader_unit: int
    filters: int
    channels: int
    source_start: int
    reader_start: int


@dataclass(frozen=True)
class Bus:
    """Columns whose filters are read by columns after the next one, drawn as one line.

    Every reader reads all sources before it, and nothing else. A stream of residual sums is one bus.

    Attributes:
        sources, readers: columns, in order.
    """

    sources: tuple[int, ...]
    readers: tuple[int, ...]


@dataclass(frozen=True)
class Scheme:
    """A network as columns in the order of computation and the flows between them."""

    columns: tuple[Column, ...]
    flows: tuple[Flow, ...]


def network_scheme(model: nn.Module, input_shape: tuple[int, ...]) -> Scheme:
    """Trace a model, and count the filters that each unit reads from each other unit.

    Args:
        model: any module that ``gconv.wiring`` can trace.
        input_shape: shape of one image, (C, H, W).

    Raises:
        ValueError: the model cannot be traced, or has no convolution.
    """
    wiring = trace_wiring(model, input_shape)
    if not wiring:
        raise ValueError(f"{type(model).__name__} has no convolution")
    units = _units(model, wiring)
    columns = [Column("input", f"{input_shape[0]} channels", 1, (input_shape[0],), (input_shape[0],))]
    for name, (in_units, out_units) in units.items():
        conv = model.get_submodule(name)
        assert isinstance(conv, CONVOLUTIONS)
        count = 1 + max(out_units)
        inputs = tuple(in_units.count(unit) for unit in range(count))
        outputs = tuple(out_units.count(unit) for unit in range(count))
        columns.append(Column(name, _caption(conv), cuts(conv)[1].groups, inputs, outputs))
    place = {name: column for column, name in enumerate(wiring, 1)}
    flows = [flow for name in wiring for flow in _flows_into(name, wiring, units, place, input_shape[0])]
    return Scheme(tuple(columns), tuple(flows))


def buses(scheme: Scheme) -> list[Bus]:
    """Return the fewest buses that show exactly which columns are read by columns after the next one."""
    readers: dict[int, set[int]] = defaultdict(set)
    for flow in scheme.flows:
        readers[flow.source].add(flow.reader)
    gathered: list[tuple[list[int], set[int]]] = []
    for source in sorted(readers):
        if readers[source] == {source + 1}:
            continue
        for sources, reads in gathered:
            if {reader for reader in reads if reader > source} == readers[source]:
                sources.append(source)
                break
        else:
            gathered.append(([source], readers[source]))
    return [Bus(tuple(sources), tuple(sorted(reads))) for sources, reads in gathered]


Units = dict[str, tuple[list[int], list[int]]]  # by convolution: unit of each input channel, of each filter


def _units(model: nn.Module, wiring: dict[str, LayerWiring]) -> Units:
    """Return the units of each convolution, readers first: many groups take the units of their reader."""
    units: Units = {}
    for name in reversed(wiring):
        conv = model.get_submodule(name)
        assert isinstance(conv, CONVOLUTIONS)
        in_groups, out_groups = cuts(conv)
        of_group = list(range(out_groups.groups))
        if out_groups.groups > MAX_UNITS:
            of_group = _units_by_reader(name, wiring, units, out_groups.labels) or [0] * out_groups.groups
        units[name] = [of_group[g] for g in in_groups.labels], [of_group[g] for g in out_groups.labels]
    return {name: units[name] for name in wiring}


def _units_by_reader(
    name: str, wiring: dict[str, LayerWiring], units: Units, groups: tuple[int, ...]
) -> list[int] | None:
    """The unit that reads each group, by the first reader of several units; None where a group has no single one."""
    for reader in wiring[name].read_by:
        if reader == name or max(units[reader][0]) == 0:
            continue
        reading: dict[int, set[int]] = defaultdict(set)
        for unit, sources in set(zip(units[reader][0], wiring[reader].sources, strict=True)):
            for channel in set_bits(sources.channels.get(name, 0)):
                reading[groups[channel]].add(unit)
        if len(reading) == len(set(groups)) and all(len(group_units) == 1 for group_units in reading.values()):
            of_group = [reading[group].pop() for group in range(len(reading))]
            if set(of_group) == set(range(1 + max(of_group))):
                return of_group
    return None


def _flows_into(
    name: str, wiring: dict[str, LayerWiring], units: Units, place: dict[str, int], image_channels: int
) -> list[Flow]:
    """Return the flows that one convolution reads. Sets of filters are whole numbers: bit f is filter f."""
    members = {source: _members(units[source][1]) for source in wiring}
    # What each input channel comes from: filters of each (column, unit). If from the image, its channels come in order.
    origins = [
        {
            (place[source], unit): bits & those
            for source, bits in sources.channels.items()
            for unit, those in enumerate(members[source])
            if bits & those
        }
        or {(0, 0): 1 << channel % image_channels}
        for channel, sources in enumerate(wiring[name].sources)
    ]
    readers = units[name][0]
    # Channels from the same unit are neighbours, so that each flow is one stretch.
    order = sorted(range(len(readers)), key=lambda channel: (sorted(origins[channel]), channel))
    used = [0] * (1 + max(readers))
    filters: dict[tuple[int, int], dict[int, int]] = defaultdict(lambda: defaultdict(int))
    channels: dict[tuple[int, int, int], list[int]] = defaultdict(list)
    for channel in order:
        unit = readers[channel]
        for source, bits in origins[channel].items():
            filters[source][unit] |= bits
            channels[(*source, unit)].append(used[unit])
        used[unit] += 1
    flows = []
    for (column, source_unit), read in sorted(filters.items()):
        # So do filters that the same units read.
        stretch = sorted(
            [unit for unit in sorted(read) if read[unit] >> number & 1]
            for number in range(max(read.values()).bit_length())
            if any(bits >> number & 1 for bits in read.values())
        )
        for unit, bits in sorted(read.items()):
            start = next(position for position, reading in enumerate(stretch) if unit in reading)
            places = channels[column, source_unit, unit]
            flow = Flow(column, source_unit, place[name], unit, bits.bit_count(), len(places), start, min(places))
            flows.append(flow)
    return flows


def _members(labels: list[int]) -> list[int]:
    """Return the filters of each unit, as bits."""
    bits = [0] * (1 + max(labels))
    for number, unit in enumerate(labels):
        bits[unit] |= 1 << number
    return bits


def _caption(conv: nn.Module) -> str:
    assert isinstance(conv, CONVOLUTIONS)
    groups = cuts(conv)[1]
    kernel = "×".join(map(str, conv.kernel_size))
    if groups.groups == 1:
        return kernel
    if groups.is_uniform and groups.groups == groups.channels == conv.in_channels:
        return f"{kernel}, depthwise"
    cut = str(groups)
    named = f"{cut} groups" if groups.is_uniform else cut if cut.startswith("log:") else f"{groups.groups} uneven"
    return f"{kernel}, {named}"
