import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from gconv import ChannelPermutation, ChannelShuffle, Partition, channel_shuffle
from gconv.shuffle import shuffle_order


def test_equal_groups_shuffle_as_published():
    x = torch.arange(6.0).view(1, 6, 1, 1)
    assert channel_shuffle(x, Partition.uniform(6, 2)).flatten().tolist() == [0, 3, 1, 4, 2, 5]


@pytest.mark.parametrize("groups", [1, 2, 3, 4, 6, 12])
def test_equal_groups_shuffle_as_torch_does(groups):
    x = torch.randn(2, 12, 3, 3)
    assert torch.equal(channel_shuffle(x, Partition.uniform(12, groups)), nn.ChannelShuffle(groups)(x))


@pytest.mark.parametrize("shape", [(3, 6, 5), (6, 6, 4), (2, 6, 2, 3), (2, 6, 2, 2, 2)], ids=str)
def test_dimension_1_is_that_of_the_channels_in_every_shape_as_in_torch(shape):
    """(6, 6, 4) is a batch of six too, not an image of six channels."""
    x, uneven = torch.randn(shape), Partition((4, 2))
    assert torch.equal(channel_shuffle(x, 2), nn.ChannelShuffle(2)(x))
    for shuffled in (channel_shuffle(x, uneven), ChannelShuffle(uneven)(x)):
        assert torch.equal(shuffled, x[:, [0, 4, 1, 2, 5, 3]])  # places 1/8, 1/4, 3/8, 5/8, 3/4, 7/8
    assert channel_shuffle(torch.arange(6.0)[None], 2).tolist() == [[0, 3, 1, 4, 2, 5]]  # no pixels, as after pooling


@pytest.mark.parametrize("partition", [Partition((4, 2)), Partition((3, 3))], ids=str)
def test_an_image_without_a_batch_is_told_what_it_lacks(partition):
    image = torch.randn(6, 4, 4)
    for shuffle in (lambda x: channel_shuffle(x, partition), ChannelShuffle(partition), ChannelPermutation(range(6))):
        with pytest.raises(ValueError, match=r"input has 4 channels; .* \(6, 4, 4\) has no batch: give x\[None\]"):
            shuffle(image)
        assert shuffle(image[None]).shape == (1, 6, 4, 4)


@given(st.integers(1, 6), st.integers(1, 6))
def test_the_rule_for_unequal_groups_gives_the_published_order_for_equal_ones(groups, size):
    published = torch.arange(groups * size).view(groups, size).T.flatten().tolist()
    assert list(shuffle_order(Partition.uniform(groups * size, groups))) == published


@given(st.lists(st.integers(1, 30), min_size=1, max_size=6))
def test_a_shuffle_loses_nothing_and_mixes_in_proportion(sizes):
    partition = Partition(tuple(sizes))
    order = shuffle_order(partition)
    assert sorted(order) == list(range(partition.channels))
    labels = [partition.labels[channel] for channel in order]
    for end in range(1, partition.channels + 1):
        for group, size in enumerate(sizes):
            share = end * size / partition.channels
            assert abs(labels[:end].count(group) - share) <= partition.groups / 2 + 1
    for group in range(partition.groups):
        own = [channel for channel in order if partition.labels[channel] == group]
        assert own == sorted(own), "channels of a group keep their order"


def test_unequal_groups_by_hand():
    # Places: group 1 at 1/8, 3/8, 5/8, 7/8; group 2 at 1/4, 3/4.
    assert shuffle_order(Partition((4, 2))) == (0, 4, 1, 2, 5, 3)


@pytest.mark.parametrize("sizes", [(4, 2), (3, 3)], ids=str)
def test_the_layer_shuffles_alike_and_compiles_as_one_graph(sizes):
    torch._dynamo.reset()
    layer, x = ChannelShuffle(Partition(sizes)), torch.randn(2, 6, 3, 3)
    expected = channel_shuffle(x, Partition(sizes))
    assert torch.equal(layer(x), expected)
    assert torch.equal(torch.compile(layer, fullgraph=True, backend="eager")(x), expected)
    assert not layer.state_dict(), "nothing is stored: the order follows from the partition"


@pytest.mark.parametrize("partition", [Partition((4, 2)), Partition((3, 3))], ids=str)
@pytest.mark.parametrize("channels", [5, 12])
def test_other_channels_are_refused(partition, channels):
    x = torch.randn(1, channels, 2, 2)
    for shuffle in (lambda x: channel_shuffle(x, partition), ChannelShuffle(partition), ChannelPermutation(range(6))):
        with pytest.raises(ValueError, match=f"input has {channels} channels; the .* 6"):
            shuffle(x)
        with pytest.raises(ValueError, match=r"input of shape \(6,\)"):
            shuffle(torch.randn(6))


def test_a_shuffle_that_was_built_without_memory_has_its_order():
    with torch.device("meta"):
        layer = nn.Sequential(ChannelShuffle(Partition((4, 2))))
    layer.to("meta").to_empty(device="cpu")
    x = torch.arange(6.0).view(1, 6, 1, 1)
    assert layer(x).flatten().tolist() == [0, 4, 1, 2, 5, 3]  # places 1/8, 1/4, 3/8, 5/8, 3/4, 7/8


def test_a_random_permutation_follows_the_seed_and_is_stored():
    torch.manual_seed(3)
    first = ChannelPermutation.random(12)
    torch.manual_seed(3)
    again = ChannelPermutation.random(12)
    assert torch.equal(first.order, again.order)
    other = ChannelPermutation(range(12))
    other.load_state_dict(first.state_dict())
    x = torch.arange(12.0).view(1, 12, 1, 1)
    assert other(x).flatten().tolist() == first.order.tolist()
    with torch.device("meta"):
        assert sorted(ChannelPermutation.random(5).order.tolist()) == [0, 1, 2, 3, 4]


def test_an_order_that_is_no_permutation_raises():
    with pytest.raises(ValueError, match="from 0 to 2"):
        ChannelPermutation([0, 2, 2])
