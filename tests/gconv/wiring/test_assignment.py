"""Recovery of hidden blocks; small cases against every possible assignment."""

from itertools import permutations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from gconv import Partition
from gconv.wiring.assignment import _round_robin, assign_channels


def kept(energy, in_order, out_order, in_groups, out_groups):
    blocks = energy[out_order][:, in_order]
    inside = torch.tensor(out_groups.labels)[:, None] == torch.tensor(in_groups.labels)
    return blocks[inside].sum().item()


def as_they_lie(energy, in_groups, out_groups):
    return kept(energy, torch.arange(in_groups.channels), torch.arange(out_groups.channels), in_groups, out_groups)


def hidden_blocks(in_groups, out_groups, noise, seed):
    """Energies of nine normal weights per pair, ``noise`` times as large off the blocks, in a random order."""
    generator = torch.Generator().manual_seed(seed)
    in_labels = torch.tensor(in_groups.labels)[torch.randperm(in_groups.channels, generator=generator)]
    out_labels = torch.tensor(out_groups.labels)[torch.randperm(out_groups.channels, generator=generator)]
    inside = out_labels[:, None] == in_labels
    weight = torch.randn(*inside.shape, 9, generator=generator, dtype=torch.double)
    energy = (weight * torch.where(inside, 1.0, noise)[..., None]).square().sum(-1)
    return energy, energy[inside].sum().item()


@given(
    st.lists(st.tuples(st.integers(1, 12), st.integers(1, 12)), min_size=1, max_size=6),
    st.integers(0, 2**16),
)
@settings(max_examples=30)
def test_an_order_names_every_channel_once_and_is_never_worse_than_none(sizes, seed):
    in_groups, out_groups = (Partition(side) for side in zip(*sizes, strict=True))
    energy = torch.rand(out_groups.channels, in_groups.channels, generator=torch.Generator().manual_seed(seed)).double()
    in_order, out_order = assign_channels(energy, in_groups, out_groups)
    assert sorted(in_order.tolist()) == list(range(in_groups.channels))
    assert sorted(out_order.tolist()) == list(range(out_groups.channels))
    for order, groups in ((in_order, in_groups), (out_order, out_groups)):
        assert all((part.diff() > 0).all() for part in order.split(list(groups.sizes))), "ascending inside a group"
    reached = kept(energy, in_order, out_order, in_groups, out_groups)
    assert reached >= as_they_lie(energy, in_groups, out_groups) * (1 - 1e-12)


@pytest.mark.parametrize("noise", [0.0, 0.3])
@pytest.mark.parametrize(
    ("inputs", "outputs", "groups"),
    [
        (64, 64, 4),
        (96, 256, "log:4"),
        (256, 128, "log:5"),
        (128, 128, "8"),
        (64, 256, "log:3"),
        (48, 96, "1:4:7"),
        (100, 90, "~3"),
        (40, 40, "10"),
    ],
    ids=str,
)
def test_hidden_blocks_are_found_exactly(inputs, outputs, groups, noise):
    in_groups, out_groups = Partition.of(groups, inputs), Partition.of(groups, outputs)
    for seed in range(2):
        energy, planted = hidden_blocks(in_groups, out_groups, noise, seed)
        energy_kept = kept(energy, *assign_channels(energy, in_groups, out_groups), in_groups, out_groups)
        assert energy_kept == pytest.approx(planted, rel=1e-9)


def test_small_layers_without_any_structure_come_near_the_best_of_all_assignments():
    in_groups, out_groups = Partition((3, 2, 1)), Partition((2, 2, 2))
    shortfalls = []
    for seed in range(12):
        energy = torch.randn(6, 6, generator=torch.Generator().manual_seed(seed)).double().square()
        # All labels of the inputs, and for each the best outputs, by brute force over both.
        ins, outs = ({tuple(p) for p in permutations(groups.labels)} for groups in (in_groups, out_groups))
        in_MCG, out_NOG = (F.one_hot(torch.tensor(sorted(labels)), 3).double() for labels in (ins, outs))
        best = torch.einsum("nog,oc,mcg->nm", out_NOG, energy, in_MCG).max().item()
        energy_kept = kept(energy, *assign_channels(energy, in_groups, out_groups), in_groups, out_groups)
        assert energy_kept <= best * (1 + 1e-12)
        shortfalls.append(1 - energy_kept / best)
    assert sum(shortfalls) / len(shortfalls) < 0.1


def test_no_exchange_of_two_channels_gains():
    in_groups, out_groups = Partition.of("log:3", 16), Partition.of("log:3", 12)
    energy = torch.rand(12, 16, generator=torch.Generator().manual_seed(5)).double()
    in_order, out_order = assign_channels(energy, in_groups, out_groups)
    reached = kept(energy, in_order, out_order, in_groups, out_groups)
    for order in (in_order, out_order):
        for a in range(len(order)):
            for b in range(a):
                order[[a, b]] = order[[b, a]]
                assert kept(energy, in_order, out_order, in_groups, out_groups) <= reached * (1 + 1e-6)
                order[[a, b]] = order[[b, a]]


def test_loud_channels_go_to_the_largest_group():
    loud_in, loud_out = torch.tensor([1.0, 9, 1, 9]), torch.tensor([1.0, 1, 9])
    energy = loud_out[:, None] * loud_in
    # The loud inputs with two outputs, one of them loud: 18 · 10 + 2 · 1; with the loud output alone: 18 · 9 + 2 · 2.
    in_order, out_order = assign_channels(energy, Partition((2, 2)), Partition((1, 2)))
    assert in_order.tolist() == [0, 2, 1, 3]
    assert kept(energy, in_order, out_order, Partition((2, 2)), Partition((1, 2))) == 182
    in_order, out_order = assign_channels(energy, Partition((2, 2)), Partition((2, 1)))
    assert in_order.tolist() == [1, 3, 0, 2]


def test_channels_in_blocks_already_keep_their_order():
    energy = torch.block_diag(torch.ones(4, 4), torch.ones(2, 2), torch.ones(2, 2))
    cut = Partition((4, 2, 2))
    assert [order.tolist() for order in assign_channels(energy, cut, cut)] == [list(range(8))] * 2
    assert [order.tolist() for order in assign_channels(0 * energy, cut, cut)] == [list(range(8))] * 2


def test_the_same_energies_give_the_same_orders_and_no_luck_is_drawn():
    energy = torch.rand(32, 32, generator=torch.Generator().manual_seed(0))
    cut = Partition.uniform(32, 4)
    before = torch.get_rng_state()
    first, again = assign_channels(energy, cut, cut), assign_channels(energy, cut, cut)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("groups", range(1, 10))
def test_in_a_round_robin_every_two_groups_meet_once(groups):
    met = [
        (a, b)
        for first, second, _ in _round_robin(Partition((2,) * groups))
        for a, b in set(zip(first.tolist(), second.tolist(), strict=True))
        if a != b
    ]
    assert sorted(met) == [(a, b) for a in range(groups) for b in range(a + 1, groups)]


def test_energies_that_are_no_numbers_are_refused():
    energy = torch.ones(4, 4)
    energy[1, 2] = float("nan")
    with pytest.raises(ValueError, match="finite"):
        assign_channels(energy, Partition((2, 2)), Partition((2, 2)))
