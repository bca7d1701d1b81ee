"""Links of layers against what moves when one input moves."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from analysis.links import channel_links, count_macs, inputs_seen, spatial_links
from gconv import ChannelPermutation, ChannelShuffle, GroupedConv2d, Partition
from gconv.cost import count_cost


def positive(layer):
    """The layer with weights that cannot cancel, in float64."""
    for parameter in layer.parameters():
        nn.init.uniform_(parameter, 1, 2)
    return layer.double()


def moved(layer, shape, axis):
    """Pairs (input, output) along one axis of (C, H, W): which outputs move when one input does."""
    # One image for each input, bumped there, and a last one left alone.
    x = torch.rand(1, *shape, dtype=torch.float64).repeat(shape[axis] + 1, 1, 1, 1)
    for place in range(shape[axis]):
        x[place].select(axis, place).add_(1)
    y = layer(x)
    # Images of a batch may be summed in different orders; a link moves an output by 1 or more.
    change = ((y[:-1] - y[-1:]).abs() > 0.5).movedim(axis + 1, 1).flatten(2).any(2)
    return {tuple(pair) for pair in change.nonzero().tolist()}


@st.composite
def convolutions(draw):
    size = st.integers(1, 3)
    groups = draw(st.integers(1, 3))
    options = {
        "kernel_size": (draw(size), draw(size)),
        "stride": (draw(size), draw(size)),
        "dilation": (draw(size), draw(size)),
        "padding": (draw(st.integers(0, 2)), draw(st.integers(0, 2))),
        "padding_mode": draw(st.sampled_from(["zeros", "reflect", "replicate", "circular"])),
    }
    if draw(st.booleans()):
        options |= {"padding": draw(st.sampled_from(["same", "valid"])), "stride": 1}
    if draw(st.booleans()):
        per_group = draw(size), draw(size)
        return nn.Conv2d(per_group[0] * groups, per_group[1] * groups, groups=groups, **options)
    ins, outs = ([draw(size) for _ in range(groups)] for _ in range(2))
    return GroupedConv2d(sum(ins), sum(outs), groups=outs, in_groups=ins, **options)


@settings(max_examples=30)
@given(layer=convolutions())
def test_links_are_what_moves_and_their_product_is_the_cost(layer):
    shape = (layer.in_channels, 7, 8)
    assert count_macs(layer, *shape[1:]) == count_cost(layer, shape).macs
    layer = positive(layer)
    assert set(channel_links(layer)) == moved(layer, shape, 0)
    for axis in (0, 1):
        links = spatial_links(layer, shape[1 + axis], axis)
        assert {(pixel, out) for pixel, out in links if 0 <= pixel < shape[1 + axis]} == moved(layer, shape, 1 + axis)


@pytest.mark.parametrize(
    "layer",
    [
        ChannelShuffle(Partition.uniform(6, 2)),
        ChannelShuffle(Partition((4, 2, 1))),
        ChannelPermutation([2, 0, 1]),
    ],
    ids=str,
)
def test_moved_channels_are_linked_one_to_one_and_cost_nothing(layer):
    channels = len(channel_links(layer))
    assert set(channel_links(layer)) == moved(layer, (channels, 2, 3), 0)
    assert set(spatial_links(layer, 3)) == moved(layer, (channels, 2, 3), 2)
    assert count_macs(layer, 4, 4) == 0


def test_zero_padding_is_linked_too():
    links = spatial_links(nn.Conv2d(1, 1, 3, padding=1), 2)
    assert links == [(-1, 0), (0, 0), (1, 0), (0, 1), (1, 1), (2, 1)]


def test_what_has_no_known_links_says_so():
    with pytest.raises(ValueError, match=r"BatchNorm2d.*GroupedConv2d"):
        channel_links(nn.BatchNorm2d(3))
    with pytest.raises(ValueError, match="BatchNorm2d"):
        spatial_links(nn.BatchNorm2d(3), 4)
    with pytest.raises(ValueError, match=r"2 pixels, 2 when padded.*covers 3"):
        spatial_links(nn.Conv2d(1, 1, 3), 2)


def test_a_stack_depends_on_what_its_layers_pass_on():
    grouped = channel_links(GroupedConv2d(4, 4, 1, groups=2))
    shuffle = channel_links(ChannelShuffle(Partition.uniform(4, 2)))
    assert inputs_seen([grouped, grouped], 0) == [{0, 1}, {0, 1}, {0}]
    assert inputs_seen([grouped, shuffle, grouped], 0) == [{0, 1, 2, 3}, {0, 2}, {0, 1}, {0}]
