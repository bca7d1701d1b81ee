"""Assignment of channels to groups that keeps most of the weight energy of a dense layer.

The problem: given the energy of every weight of a dense layer and the sizes of the groups, choose the group of each
input and of each output so that the energy inside the blocks is greatest. It is NP-hard, because it contains graph
bisection. So this is a local search from three starts: the present order; the channels of most energy in the largest
group; and a spectral co-clustering (Dhillon 2001, "Co-clustering documents and words using bipartite spectral graph
partitioning", section 4). If the groups of the inputs are fixed, a sort gives the best exchange of channels between two
groups of outputs, and the same holds the other way round. So pairs of groups exchange channels in turn.

Legend: O outputs, C inputs, I either of them, G groups, D spectral dimensions.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from gconv.partition import Partition

LLOYD_STEPS = 30
POWER_STEPS = 10
MIN_RELATIVE_GAIN = 1e-9  # smaller gains are rounding


def assign_channels(energy_OC: Tensor, in_groups: Partition, out_groups: Partition) -> tuple[Tensor, Tensor]:
    """Order inputs and outputs so that the blocks of two partitions hold much of the energy.

    The result is deterministic, and never worse than the present order.

    Args:
        energy_OC: energy of each pair of an output and an input channel, at least 0, (O, C).
        in_groups, out_groups: partitions of the C inputs and the O outputs into equally many groups.

    Returns:
        The inputs in their new order, (C,), and the outputs, (O,): the members of the first group in ascending order,
        then those of the second, and so on.

    Raises:
        ValueError: an energy is not finite.
    """
    energy_OC = energy_OC.detach().to("cpu", torch.float64)
    if not energy_OC.isfinite().all():
        raise ValueError("its weights are not all finite numbers")
    present = torch.tensor(in_groups.labels), torch.tensor(out_groups.labels)
    largest_G = _largest_first(in_groups, out_groups)
    by_energy = (
        _labels_by_rank(energy_OC.sum(0), in_groups, largest_G),
        _labels_by_rank(energy_OC.sum(1), out_groups, largest_G),
    )
    starts = present, by_energy, _spectral_labels(energy_OC, in_groups, out_groups)
    best, *others = (_search(energy_OC, *start, in_groups, out_groups) for start in starts)
    for other in others:
        best = (
            other if other[0] > best[0] * (1 + MIN_RELATIVE_GAIN) else best
        )  # of equal ones the first, which moves least
    _, in_labels_C, out_labels_O = best
    return in_labels_C.argsort(stable=True), out_labels_O.argsort(stable=True)


def _search(
    energy_OC: Tensor, in_labels_C: Tensor, out_labels_O: Tensor, in_groups: Partition, out_groups: Partition
) -> tuple[float, Tensor, Tensor]:
    """Exchange inputs, then outputs, until the energy stops rising. Return the energy in the blocks and both labels."""
    best = -1.0, in_labels_C, out_labels_O
    while True:
        score_CG = energy_OC.T @ _one_hot(out_labels_O, out_groups)
        energy = score_CG.gather(1, in_labels_C[:, None]).sum().item()
        if energy <= best[0] * (1 + MIN_RELATIVE_GAIN):
            return best
        best = energy, in_labels_C, out_labels_O
        in_labels_C = _exchange(score_CG, in_labels_C, in_groups)
        out_labels_O = _exchange(energy_OC @ _one_hot(in_labels_C, in_groups), out_labels_O, out_groups)


def _exchange(score_IG: Tensor, labels_I: Tensor, groups: Partition) -> Tensor:
    """Redistribute the channels of every pair of groups once: those that gain most go to the first group."""
    for first_G, second_G, pair_labels_I in _round_robin(groups):
        first_I, second_I = first_G[labels_I], second_G[labels_I]
        gain_I = (score_IG.gather(1, first_I[:, None]) - score_IG.gather(1, second_I[:, None])).squeeze(1)
        order_I = gain_I.argsort(descending=True, stable=True)
        order_I = order_I[first_I[order_I].argsort(stable=True)]  # sorted by pair, then by gain
        labels_I = torch.empty_like(labels_I).index_copy_(0, order_I, pair_labels_I)
    return labels_I


@lru_cache(maxsize=8)
def _round_robin(groups: Partition) -> tuple[tuple[Tensor, Tensor, Tensor], ...]:
    """Return the rounds of a round-robin tournament, in which every two groups are paired once.

    Returns:
        For each round: the first and the second group of the pair of each group, (G,), both the group itself if it is
        not paired; and the labels of the channels sorted by pair, (I,).
    """
    sizes_G = torch.tensor(groups.sizes, device="cpu")
    itself_G = torch.arange(groups.groups, device="cpu")
    odd = groups.groups - 1 + groups.groups % 2
    rounds = []
    for number in range(odd):
        partner_G = (number - itself_G[:odd]) % odd
        if odd < groups.groups:  # the group without a partner is paired with the last
            alone = (partner_G == itself_G[:odd]).nonzero().flatten()
            partner_G = torch.cat([partner_G.index_fill(0, alone, odd), alone])
        first_G, second_G = torch.minimum(itself_G, partner_G), torch.maximum(itself_G, partner_G)
        pairs_G = first_G.argsort(stable=True)
        rounds.append((first_G, second_G, pairs_G.repeat_interleave(sizes_G[pairs_G])))
    return tuple(rounds)


def _spectral_labels(energy_OC: Tensor, in_groups: Partition, out_groups: Partition) -> tuple[Tensor, Tensor]:
    """Cluster inputs and outputs together by the leading singular vectors; the largest cluster fills the largest group.

    The energies are divided by the roots of the row and column sums, so that channels of high energy do not dominate.
    """
    outputs, inputs = energy_OC.shape
    norm_O, norm_C = (energy_OC.sum(dim).clamp_min(1e-300).rsqrt() for dim in (1, 0))
    place_ID = F.normalize(_singular_vectors(norm_O[:, None] * energy_OC * norm_C, in_groups.groups), dim=1)
    affinity_IG = place_ID @ _spherical_means(place_ID, in_groups.groups).T
    share_I = torch.cat([torch.full((outputs,), 1 / outputs), torch.full((inputs,), 1 / inputs)]).double()
    mass_G = torch.zeros(in_groups.groups).double().index_add_(0, affinity_IG.argmax(1), share_I)
    clusters = mass_G.argsort(descending=True, stable=True)
    affinity_IG = torch.empty_like(affinity_IG).index_copy_(
        1, _largest_first(in_groups, out_groups), affinity_IG[:, clusters]
    )
    in_labels_C = _labels_by_score(affinity_IG[outputs:], in_groups)
    return in_labels_C, _labels_by_score(energy_OC @ _one_hot(in_labels_C, in_groups), out_groups)


def _singular_vectors(matrix_OC: Tensor, count: int) -> Tensor:
    """Return the leading singular vectors, left above right, (O + C, count), by power iteration from a fixed start.

    Twice as many are iterated as are returned, because the last ones converge slowly.
    """
    width = min(2 * count, *matrix_OC.shape)
    right_CD = torch.randn(matrix_OC.shape[1], width, generator=torch.Generator().manual_seed(0)).double()
    for _ in range(POWER_STEPS):
        right_CD, _ = torch.linalg.qr(matrix_OC.T @ (matrix_OC @ right_CD))
    left_OD, _, mix_DD = torch.linalg.svd(matrix_OC @ right_CD, full_matrices=False)
    return torch.cat([left_OD, right_CD @ mix_DD.T])[:, :count]


def _spherical_means(place_ID: Tensor, groups: int) -> Tensor:
    """Return the centres of spherical k-means, (G, D), from deterministic seeds that are far from each other."""
    nearest_I = place_ID @ place_ID[0]
    seeds = [0]
    while len(seeds) < groups:
        seeds.append(int(nearest_I.argmin()))
        nearest_I = torch.maximum(nearest_I, place_ID @ place_ID[seeds[-1]])
    centres_GD = place_ID[seeds]
    for _ in range(LLOYD_STEPS):
        members_IG = F.one_hot((place_ID @ centres_GD.T).argmax(1), groups).to(place_ID)
        centres_GD = F.normalize(members_IG.T @ place_ID + 1e-9 * centres_GD, dim=1)  # a centre without members stays
    return centres_GD


def _labels_by_score(score_IG: Tensor, groups: Partition) -> Tensor:
    """Return labels of the given group sizes: sorted by the group of the highest score, then exchanged."""
    everyone = torch.arange(groups.groups)
    return _exchange(score_IG, _labels_by_rank(-score_IG.argmax(1), groups, everyone), groups)


def _labels_by_rank(value_I: Tensor, groups: Partition, order_G: Tensor) -> Tensor:
    """Return labels that put the greatest values in the first group of ``order_G``, the next in its second, …"""
    pair_labels_I = order_G.repeat_interleave(torch.tensor(groups.sizes)[order_G])
    return torch.empty_like(pair_labels_I).index_copy_(0, value_I.argsort(descending=True, stable=True), pair_labels_I)


def _largest_first(in_groups: Partition, out_groups: Partition) -> Tensor:
    """Return the groups sorted by their fraction of the inputs plus that of the outputs, largest first."""
    sizes = ((torch.tensor(groups.sizes) / groups.channels) for groups in (in_groups, out_groups))
    return sum(sizes, torch.zeros(in_groups.groups)).argsort(descending=True, stable=True)


def _one_hot(labels_I: Tensor, groups: Partition) -> Tensor:
    return F.one_hot(labels_I, groups.groups).double()
