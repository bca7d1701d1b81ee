"""Towers on ranks and the exchanges between them, against values computed by hand."""

from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from experiments.models import build_model
from gconv import ChannelShuffle, GroupedConv2d, Partition
from gconv.placement import plan
from gconv.placement.owners import even, place, spread


def on_meta(name, **arguments):
    with torch.device("meta"):
        return build_model(name, **arguments)


def blocks(*sizes):
    """Return owners of channels in blocks: (2, 1) is 0, 0, 1."""
    return tuple(rank for rank, size in enumerate(sizes) for _ in range(size))


def largest(loads, ranks_of, ranks):
    return max(sum(load for load, r in zip(loads, ranks_of, strict=True) if r == rank) for rank in range(ranks))


@pytest.mark.parametrize(
    ("loads", "ranks", "expected"),
    [
        ([5, 5, 5, 5], 2, (0, 0, 1, 1)),
        ([5, 5, 5], 2, (0, 0, 1)),
        ([8, 4, 2, 2], 2, (0, 1, 1, 1)),
        ([16, 4, 1, 1], 3, (0, 1, 2, 2)),
        ([1, 1, 4, 16], 4, (0, 1, 2, 3)),
        ([3, 3, 2, 2, 2], 2, (0, 0, 1, 1, 1)),  # largest first alone ends at 7
    ],
)
def test_towers_are_spread_so_that_the_largest_rank_is_as_small_as_can_be(loads, ranks, expected):
    assert spread(loads, ranks) == (expected, True)


@settings(max_examples=60)
@given(st.integers(1, 3).flatmap(lambda r: st.tuples(st.lists(st.integers(1, 30), min_size=r, max_size=7), st.just(r))))
def test_no_other_way_to_spread_few_towers_has_a_smaller_largest_rank(case):
    loads, ranks = case
    ranks_of_towers, exact = spread(loads, ranks)
    ways = (way for way in product(range(ranks), repeat=len(loads)) if len(set(way)) == ranks)
    assert exact
    assert set(ranks_of_towers) == set(range(ranks)), "no rank is empty"
    assert largest(loads, ranks_of_towers, ranks) == min(largest(loads, way, ranks) for way in ways)


@settings(max_examples=40)
@given(st.lists(st.integers(1, 1000), min_size=13, max_size=40), st.integers(2, 6))
def test_many_towers_are_spread_within_the_bound_of_graham(loads, ranks):
    """Bound of 1966, for any order: the mean of all ranks, and (1 − 1/ranks) of the largest tower."""
    ranks_of_towers, _ = spread(loads, ranks)
    assert set(ranks_of_towers) == set(range(ranks))
    assert largest(loads, ranks_of_towers, ranks) <= sum(loads) / ranks + (1 - 1 / ranks) * max(loads)


def test_many_unequal_towers_are_not_said_to_be_spread_in_the_best_way_unless_they_are():
    assert spread([7] * 12 + [5], 2)[1] is False
    assert spread([2] * 12 + [4] * 2, 2)[1] is True, "both ranks have half"


@given(st.integers(1, 300).flatmap(lambda c: st.tuples(st.just(c), st.integers(1, c))))
def test_an_even_cut_is_in_blocks_whose_sizes_differ_by_one_at_most(case):
    count, ranks = case
    owners = even(count, ranks)
    sizes = [owners.count(rank) for rank in range(ranks)]
    assert list(owners) == sorted(owners)
    assert max(sizes) - min(sizes) <= 1


def test_the_towers_of_alexnet_are_where_krizhevsky_had_them():
    """conv1 follows the groups of conv2, conv3 those of conv4; conv3 and the dense layers read both halves."""
    placement = place(on_meta("alexnet", groups=2, norm="batch"), (3, 227, 227), 2)
    assert [run.layers for run in placement.segments] == [("conv1", "conv2"), ("conv3", "conv4", "conv5")]
    halves = {"conv1": 48, "conv2": 128, "conv3": 192, "conv4": 192, "conv5": 128, "fc6": 2048, "classify": 500}
    for name, half in halves.items():
        assert placement.owners[name] == blocks(half, half), name
    conv1, conv2 = 48 * 3 * 121 * 55**2, 128 * 48 * 25 * 27**2
    assert placement.segments[0].loads == (conv1 + conv2, conv1 + conv2)
    assert placement.imbalance == 1


def test_alexnet_sends_the_inputs_of_conv3_and_of_the_dense_layers_and_the_class_scores():
    """By hand, bytes of one image: each tensor goes once to the other rank, and its gradient comes back."""
    model = on_meta("alexnet", groups=2, norm="batch")
    planned = plan(model, (3, 227, 227), 2)
    numbers = {"conv3": 256 * 13 * 13, "fc6": 256 * 6 * 6, "fc7": 4096, "classify": 4096}
    expected = {layer: 2 * 4 * number for layer, number in numbers.items()}
    assert planned.sent(1) == {**expected, "output": 4 * 1000}, "from the loss nothing comes back"
    assert planned.sent(32, training=False) == {**{k: 16 * v for k, v in expected.items()}, "output": 32 * 4 * 1000}
    assert not any(exchange.grouped for exchange in planned.exchanges)
    four = plan(on_meta("alexnet", groups=4, norm="batch"), (3, 227, 227), 4)
    assert four.sent(1) == {layer: 3 * sent for layer, sent in planned.sent(1).items()}, "to three others"


def test_normalisation_across_neighbouring_channels_has_to_be_sent_too():
    sent = plan(on_meta("alexnet", groups=2, norm="local"), (3, 227, 227), 2).sent(1)
    assert list(sent) == ["norm1", "norm2", "fc6", "fc7", "classify", "output"]
    assert sent["norm1"] == 2 * 4 * 96 * 55 * 55


def test_each_rank_sends_its_channels_forwards_and_those_of_others_backwards():
    planned = plan(on_meta("small", groups="4:2:1:1", width=16), (3, 32, 32), 3)
    (head, output) = planned.exchanges
    assert (head.layer, head.owners, head.elements) == ("classify", blocks(16, 8, 8), 1)
    assert head.sent(3) == (2 * 16 + 16, 2 * 8 + 24, 2 * 8 + 24)
    assert head.sent(3, training=False) == (32, 16, 16)
    assert output.sent(3) == (8, 6, 6), "10 classes are cut in 4, 3 and 3"


def test_logarithmic_groups_are_imbalanced_and_the_largest_share_changes_rank_from_segment_to_segment():
    """Stages of 16, 32 and 64 channels at 16, 8 and 4 pixels, each cut in 1/2, 1/4, 1/8 and 1/8."""
    placement = place(on_meta("lognet", groups="log:4", width=16), (3, 32, 32), 2)
    runs = [
        [g * 3 * 25 * 32**2 + g * g * 9 * 16**2 for g in (8, 4, 2, 2)],  # 5×5 stem before its pool
        [g * 16 * 16**2 + g * g * 9 * 8**2 for g in (16, 8, 4, 4)],  # 1×1 that widens before its pool
        [g * 32 * 8**2 + g * g * 9 * 4**2 for g in (32, 16, 8, 8)],
    ]
    assert [list(run.loads) for run in placement.segments] == runs
    assert [run.ranks for run in placement.segments] == [(0, 1, 1, 1), (1, 0, 0, 0), (0, 1, 1, 1)]
    assert all(run.exact for run in placement.segments)
    head = 64 * 5  # half of the classes
    assert placement.macs == (
        runs[0][0] + sum(runs[1][1:]) + runs[2][0] + head,
        sum(runs[0][1:]) + runs[1][0] + sum(runs[2][1:]) + head,
    )
    assert placement.critical_path == sum(map(max, runs)) + head
    assert placement.imbalance == pytest.approx(2 * placement.critical_path / (sum(map(sum, runs)) + 2 * head))


def test_one_rank_takes_any_network_and_sends_nothing():
    model = on_meta("shufflenet", groups=2)
    assert set(place(model, (3, 64, 64), 1).owners["stem.0"]) == {0}
    assert plan(model, (3, 64, 64), 1).sent(8) == {}


class Mixed(nn.Module):
    """Two grouped layers with another module between them."""

    def __init__(self, between, second=4):
        super().__init__()
        self.one = nn.Conv2d(3, 16, 1)
        self.two = GroupedConv2d(16, 16, 3, padding=1, groups=4)
        self.between = between
        self.three = nn.Conv2d(16, 16, 1, groups=second)
        self.head = nn.Conv2d(16, 8, 1)

    def forward(self, x):
        return self.head(self.three(self.between(self.two(self.one(x)))))


def test_groups_that_line_up_stay_together_when_a_layer_has_fewer_of_them():
    placement = place(Mixed(nn.ReLU(), second=2), (3, 8, 8), 2)
    assert placement.segments[0].layers == ("one", "two", "three")
    assert len(placement.segments[0].loads) == 2
    assert placement.owners["two"] == placement.owners["three"] == blocks(8, 8)


@pytest.mark.parametrize(
    ("model", "ranks", "words"),
    [
        (Mixed(nn.ReLU()), 5, ["5 ranks", "4 groups of two"]),
        (Mixed(nn.ReLU(), second=2), 4, ["4 ranks", "2 groups of three"]),
        (Mixed(ChannelShuffle(Partition((4, 4, 4, 4)))), 2, ["2 ranks", "three mixes", "1 of the 4 groups of two"]),
        (Mixed(nn.Softmax2d()), 2, ["between", "three reads"]),
        (nn.Conv2d(3, 8, 1), 2, ["Conv2d on 2 ranks", "no convolution has groups"]),
        (nn.Sequential(nn.Conv2d(4, 8, 1, groups=4), nn.Conv2d(8, 3, 1)), 4, ["4 ranks", "3 outputs of 1"]),
        (nn.Conv2d(4, 4, 1, groups=2), 0, ["0 ranks", "at least 1"]),
        (
            nn.Sequential(nn.Conv2d(3, 4, 1, groups=1), nn.Conv2d(4, 4, 1, groups=2), nn.GroupNorm(2, 4)),
            2,
            ["2", "GroupNorm"],
        ),
        (
            nn.Sequential(nn.Conv2d(4, 4, 1, groups=2), nn.Flatten(), nn.LogSoftmax(1)),
            2,
            ["ends in 2", "several ranks"],
        ),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_network_that_cannot_be_placed_raises_one_line_with_the_layer(model, ranks, words):
    channels = next(model.parameters()).shape[1]
    channels = model[0].in_channels if isinstance(model, nn.Sequential) else getattr(model, "in_channels", channels)
    with pytest.raises(ValueError) as error:
        plan(model, (channels, 8, 8), ranks)
    for word in words:
        assert word in str(error.value)
    assert "\n" not in str(error.value)


def test_planning_leaves_the_network_as_it_was():
    model = Mixed(nn.ReLU())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    plan(model, (3, 8, 8), 4)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
