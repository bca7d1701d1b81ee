"""The wiring of whole networks: who reads how many filters of whom, and how that is drawn."""

import matplotlib.pyplot as plt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.patches import PathPatch
from PIL import Image
from torch import nn

from analysis.figures import page, wiring
from analysis.scheme import MAX_UNITS, Bus, Column, Flow, Scheme, buses, network_scheme
from experiments.models import build_model
from figure_checks import checked
from gconv import ChannelShuffle, GroupedConv2d, Partition
from gconv.wiring import trace_wiring


def ribbons(scheme):
    return {(f.source, f.source_unit, f.reader, f.reader_unit): f.filters for f in scheme.flows}


def test_alexnet_by_hand():
    scheme = network_scheme(build_model("alexnet", groups=2, norm="batch", head="average"), (3, 112, 112))
    assert [column.name for column in scheme.columns] == ["input", "conv1", "conv2", "conv3", "conv4", "conv5"]
    assert scheme.columns[2] == Column("conv2", "5×5, 2 groups", 2, (48, 48), (128, 128))
    assert scheme.columns[3] == Column("conv3", "3×3", 1, (256,), (384,))
    assert scheme.flows[1:5] == (
        Flow(1, 0, 2, 0, 48, 48, 0, 0),
        Flow(1, 0, 2, 1, 48, 48, 48, 0),
        Flow(2, 0, 3, 0, 128, 128, 0, 0),
        Flow(2, 1, 3, 0, 128, 128, 0, 128),
    )
    assert ribbons(scheme)[4, 0, 5, 0] == ribbons(scheme)[4, 1, 5, 1] == 192, "two towers"
    assert (4, 0, 5, 1) not in ribbons(scheme)
    assert buses(scheme) == []


class Unit(nn.Module):
    """A ShuffleNet unit with a shortcut, the shuffle left out if asked for; depthwise in more groups than are shown."""

    def __init__(self, shuffle):
        super().__init__()
        self.stem = nn.Conv2d(3, 40, 1)
        self.reduce = GroupedConv2d(40, 40, 1, groups=2)
        self.shuffle = ChannelShuffle(Partition.uniform(40, 2)) if shuffle else nn.Identity()
        self.depthwise = nn.Conv2d(40, 40, 3, padding=1, groups=40)
        self.expand = GroupedConv2d(40, 40, 1, groups=2)
        self.head = nn.Conv2d(40, 10, 1)

    def forward(self, x):
        x = self.stem(x)
        return self.head(x + self.expand(self.depthwise(self.shuffle(self.reduce(x)))))


@pytest.mark.parametrize("shuffle", [True, False])
def test_depthwise_filters_belong_to_the_group_that_reads_them(shuffle):
    scheme = network_scheme(Unit(shuffle), (3, 8, 8))
    depthwise = scheme.columns[3]
    assert depthwise == Column("depthwise", "3×3, depthwise", 40, (20, 20), (20, 20))
    assert depthwise.is_striped
    crossing = {pair: ribbons(scheme).get((2, pair[0], 3, pair[1]), 0) for pair in ((0, 0), (0, 1), (1, 0), (1, 1))}
    straight = {(0, 0): 20, (0, 1): 0, (1, 0): 0, (1, 1): 20}
    assert crossing == (dict.fromkeys(straight, 10) if shuffle else straight)
    assert buses(scheme) == [Bus((1,), (2, 5))], "the shortcut"


def test_too_many_groups_that_nobody_tells_apart_are_one_unit():
    model = nn.Sequential(nn.Conv2d(3, 34, 1), nn.Conv2d(34, 34, 3, groups=17), nn.Conv2d(34, 4, 1))
    scheme = network_scheme(model, (3, 8, 8))
    assert MAX_UNITS < 17
    assert scheme.columns[2] == Column("1", "3×3, 17 groups", 17, (34,), (34,))


class Branches(nn.Module):
    """Concatenation, a chunk, a skip of the input, filters read twice and by two groups."""

    def __init__(self):
        super().__init__()
        self.a = GroupedConv2d(4, 8, 1, groups="6,2", in_groups="3,1")
        self.b = nn.Conv2d(8, 8, 1, groups=4)
        self.c = GroupedConv2d(20, 6, 1, groups="4,2", in_groups="13,7")
        self.d = nn.Conv2d(3, 4, 1)
        self.e = nn.Conv2d(16, 4, 1, groups=2)

    def forward(self, x):
        a = self.a(x)
        b = self.b(a) + a
        left, _ = self.c(torch.cat([b, x, a], 1)).chunk(2, 1)
        return self.d(left).sum() + self.e(torch.cat([a, a], 1)).sum()


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (Branches(), (4, 5, 5)),
        (Unit(True), (3, 8, 8)),
        (build_model("small", groups="log:4"), (3, 32, 32)),
        (build_model("alexnet", groups=4, norm="batch", head="average"), (3, 112, 112)),
    ],
    ids=["branches", "unit", "small", "alexnet"],
)
def test_ribbon_widths_add_up_to_the_filters(model, shape):
    traced, scheme = trace_wiring(model, shape), network_scheme(model, shape)
    place = {column.name: number for number, column in enumerate(scheme.columns)}
    for name, layer in traced.items():
        for reader, groups in layer.read_by.items():
            if scheme.columns[place[reader]].is_striped:
                continue
            for unit in range(scheme.columns[place[reader]].groups):
                into = [
                    f for f in scheme.flows if (f.source, f.reader, f.reader_unit) == (place[name], place[reader], unit)
                ]
                assert sum(f.filters for f in into) == sum(unit in group for group in groups)
                channels = sum(
                    any(source == name for source, _ in sources)
                    for sources, label in zip(traced[reader].sources, in_labels(model, reader), strict=True)
                    if label == unit
                )
                assert sum(f.channels for f in into) == channels
    for flow in scheme.flows:
        assert flow.reader_start + flow.channels <= scheme.columns[flow.reader].inputs[flow.reader_unit]
        assert flow.source_start + flow.filters <= scheme.columns[flow.source].outputs[flow.source_unit]


def in_labels(model, reader):
    conv = model.get_submodule(reader)
    if isinstance(conv, GroupedConv2d):
        return conv.geometry.in_groups.labels
    return Partition.uniform(conv.in_channels, conv.groups).labels


def test_what_is_read_twice_and_what_comes_from_the_image():
    scheme = network_scheme(Branches(), (4, 5, 5))
    flows = {(f.source, f.source_unit, f.reader, f.reader_unit): f for f in scheme.flows}
    assert (flows[1, 0, 5, 0].filters, flows[1, 0, 5, 1].filters) == (6, 6), "both groups of e read all of a"
    assert (flows[0, 0, 3, 0].channels, flows[0, 0, 1, 1].source_start) == (4, 3)
    assert (flows[3, 0, 4, 0].filters, flows[3, 0, 4, 0].channels) == (3, 3), "of c's 4 + 2 filters d reads the first 3"


def scheme_of(pairs):
    columns = tuple(Column(str(n), "1×1", 1, (1,), (1,)) for n in range(12))
    return Scheme(columns, tuple(Flow(source, 0, reader, 0, 1, 1, 0, 0) for source, reader in pairs))


@given(pairs=st.sets(st.tuples(st.integers(0, 11), st.integers(0, 11)).filter(lambda pair: pair[0] < pair[1])))
def test_buses_tell_exactly_who_reads_past_the_next_column(pairs):
    drawn = buses(scheme_of(sorted(pairs)))
    read = [(source, reader) for bus in drawn for source in bus.sources for reader in bus.readers if source < reader]
    assert len(read) == len(set(read))
    assert set(read) <= pairs
    assert {(source, reader) for source, reader in pairs if reader > source + 1} <= set(read)


def test_a_stream_of_residual_sums_is_one_bus():
    blocks = {(1, 2), (1, 4), (1, 6), (2, 3), (3, 4), (3, 6), (4, 5), (5, 6)}
    assert buses(scheme_of(sorted(blocks))) == [Bus((1, 3), (2, 4, 6))]


@given(
    spans=st.lists(st.tuples(st.integers(0, 20), st.integers(1, 20)), unique=True, max_size=12),
)
def test_lines_in_one_lane_do_not_overlap(spans):
    lanes = wiring._lanes([Bus((start,), (start + length,)) for start, length in spans])
    for one, lane in lanes.items():
        for other, other_lane in lanes.items():
            if one != other and lane == other_lane:
                assert one.readers[-1] <= other.sources[0] or other.readers[-1] <= one.sources[0]


@given(sizes=st.lists(st.integers(1, 25), min_size=1, max_size=12))
def test_rows_hold_all_columns_in_order(sizes):
    names = [f"stage.{block}.conv{n}" for block, size in enumerate(sizes) for n in range(size)]
    rows = wiring._break_rows(names)
    assert [number for row in rows for number in row] == list(range(len(names)))
    assert all(1 <= len(row) <= wiring.ROW_COLUMNS for row in rows)


def test_rows_break_between_blocks_and_blocks_are_named():
    names = ["stem", *(f"layer1.{block}.conv{n}" for block in range(8) for n in range(3))]
    assert wiring._break_rows(names) == [range(0, 13), range(13, 25)]
    assert [wiring._block(name) for name in ("conv1", "layer1.0.conv2", "features.14.conv.2", "features.3")] == [
        "",
        "layer1.0",
        "features.14",
        "features",
    ]


def test_ribbons_are_as_wide_as_the_filters_they_carry_and_stay_inside_their_blocks():
    scheme = network_scheme(build_model("small", groups="log:4"), (3, 32, 32))
    row = wiring.Row(scheme, range(0, 4), pitch=1.0, middle=2.0, height=1.5)
    figure, axes = plt.subplots()
    wiring._draw_flows(axes, row, [(0.0, 0.0, unit / 4) for unit in range(4)])
    drawn = [patch.get_path().vertices for patch in axes.patches if isinstance(patch, PathPatch)]
    plt.close(figure)
    # Outline: top left, …, top right (3), bottom right (4), …, bottom left (7).
    assert len(drawn) == len(scheme.flows)
    for flow, corners in zip(scheme.flows, drawn, strict=True):
        assert corners[7][1] - corners[0][1] == pytest.approx(flow.filters * row.scale)
        assert corners[4][1] - corners[3][1] == pytest.approx(flow.channels * row.scale)
        top, bottom = row.spans(scheme.columns[flow.reader].inputs)[flow.reader_unit]
        assert top <= corners[3][1] + 1e-9
        assert corners[4][1] <= bottom + 1e-9
    highest = max(
        row.spans(side)[-1][1] - row.spans(side)[0][0] for c in scheme.columns for side in (c.inputs, c.outputs)
    )
    assert highest == pytest.approx(row.height)


@pytest.mark.parametrize(
    ("model", "shape"),
    [(Unit(True), (3, 8, 8)), (Branches(), (4, 5, 5)), (build_model("small", groups=4), (3, 32, 32))],
    ids=["unit", "branches", "small"],
)
def test_networks_are_drawn(tmp_path, model, shape):
    page.apply_style()
    checked(wiring.draw(network_scheme(model, shape), "a network", tmp_path, "wiring"))


def test_a_deep_network_is_drawn_in_rows(tmp_path):
    page.apply_style()
    blocks = [nn.Sequential(nn.Conv2d(4, 8, 1), nn.Conv2d(8, 8, 1, groups=2), nn.Conv2d(8, 4, 1)) for _ in range(14)]
    paths = wiring.draw(network_scheme(nn.Sequential(*blocks), (4, 4, 4)), "deep", tmp_path, "deep")
    checked(paths)
    width, height = Image.open(paths[1]).size
    assert height > width


def test_a_model_without_convolutions_says_so():
    with pytest.raises(ValueError, match="Sequential has no convolution"):
        network_scheme(nn.Sequential(nn.Flatten(), nn.Linear(12, 2)), (3, 2, 2))
