"""Which channels to put in which group, so that a dense layer loses as little as possible when it is cut.

Given the energy of every weight of a dense layer and the sizes of the groups, choose the group of each input and of
each output such that the energy inside the blocks is greatest. The exact answer is out of reach (it contains graph
bisection), so this is a local search from three starts: the channels as they lie, the loudest in the largest group, and
a spectral co-clustering (Dhillon 2001, "Co-clustering documents and words using bipartite spectral graph partitioning",
section 4). With one side fixed, two groups share out their channels on the other side best by a sort, so pairs of
groups do that in turn.

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
TOLERANCE = 1e-9  # smaller gains are rounding


def assign_channels(energy_OC: Tensor, in_groups: Partition, out_groups: Partition) -> tuple[Tensor, Tensor]:
    """Order inputs and outputs so that the blocks of two partitions hold as much energy as can be found.

    The same energies always give the same orders, and never a worse one than the channels as they lie.

    Args:
        energy_OC: non-negative energy of each pair of an output and an input channel, (O, C).
        in_groups, out_groups: cuts of the C inputs and the O outputs into equally many groups.

    Returns:
        The inputs in their new order, (C,), and the outputs, (O,): the members of the first group in ascending order,
        then those of the second, and so on.

    Raises:
        ValueError: an energy is not a finite number.
    """
    energy_OC = energy_OC.detach().to("cpu", torch.float64)
    if not energy_OC.isfinite().all():
        raise ValueError("its weights are not all finite numbers")
    as_they_lie = torch.tensor(in_groups.labels), torch.tensor(out_groups.labels)
    largest_G = _largest_first(in_groups, out_groups)
    loudest_first = (
        _line_up(energy_OC.sum(0), in_groups, largest_G),
        _line_up(energy_OC.sum(1), out_groups, largest_G),
    )
    starts = as_they_lie, loudest_first, _spectral_labels(energy_OC, in_groups, out_groups)
    best, *others = (_search(energy_OC, *start, in_groups, out_groups) for start in starts)
    for other in others:
        best = other if other[0] > best[0] * (1 + TOLERANCE) else best  # where equal the first: it moves least
    _, in_labels_C, out_labels_O = best
    return in_labels_C.argsort(stable=True), out_labels_O.argsort(stable=True)


def _search(
    energy_OC: Tensor, in_labels_C: Tensor, out_labels_O: Tensor, in_groups: Partition, out_groups: Partition
) -> tuple[float, Tensor, Tensor]:
    """Exchange inputs, then outputs, until it gains no more; the energy in the blocks and both labels."""
    best = -1.0, in_labels_C, out_labels_O
    while True:
        score_CG = energy_OC.T @ _one_hot(out_labels_O, out_groups)
        energy = score_CG.gather(1, in_labels_C[:, None]).sum().item()
        if energy <= best[0] * (1 + TOLERANCE):
            return best
        best = energy, in_labels_C, out_labels_O
        in_labels_C = _exchange(score_CG, in_labels_C, in_groups)
        out_labels_O = _exchange(energy_OC @ _one_hot(in_labels_C, in_groups), out_labels_O, out_groups)


def _exchange(score_IG: Tensor, labels_I: Tensor, groups: Partition) -> Tensor:
    """Let every pair of groups share out its channels anew, once: those that gain most by it go to the first."""
    for first_G, second_G, dealt_I in _tournament(groups):
        first_I, second_I = first_G[labels_I], second_G[labels_I]
        gain_I = (score_IG.gather(1, first_I[:, None]) - score_IG.gather(1, second_I[:, None])).squeeze(1)
        order_I = gain_I.argsort(descending=True, stable=True)
        order_I = order_I[first_I[order_I].argsort(stable=True)]  # pair after pair, the best for its first group first
        labels_I = torch.empty_like(labels_I).index_copy_(0, order_I, dealt_I)
    return labels_I


@lru_cache(maxsize=8)
def _tournament(groups: Partition) -> tuple[tuple[Tensor, Tensor, Tensor], ...]:
    """Rounds in which every two groups meet once.

    Returns:
        For each round the first and the second group of the pair that each group is in, (G,), both itself where it
        sits out; and the labels to deal to the channels when they stand pair after pair, (I,).
    """
    sizes_G = torch.tensor(groups.sizes, device="cpu")
    itself_G = torch.arange(groups.groups, device="cpu")
    odd = groups.groups - 1 + groups.groups % 2
    rounds = []
    for number in range(odd):
        partner_G = (number - itself_G[:odd]) % odd
        if odd < groups.groups:  # who would sit out meets the last
            alone = (partner_G == itself_G[:odd]).nonzero().flatten()
            partner_G = torch.cat([partner_G.index_fill(0, alone, odd), alone])
        first_G, second_G = torch.minimum(itself_G, partner_G), torch.maximum(itself_G, partner_G)
        pairs_G = first_G.argsort(stable=True)
        rounds.append((first_G, second_G, pairs_G.repeat_interleave(sizes_G[pairs_G])))
    return tuple(rounds)


def _spectral_labels(energy_OC: Tensor, in_groups: Partition, out_groups: Partition) -> tuple[Tensor, Tensor]:
    """Cluster inputs and outputs together by the leading singular vectors; the largest cluster fills the largest group.

    The energies are divided by the roots of the row and column sums, so that loud channels do not decide alone.
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
    in_labels_C = _fill(affinity_IG[outputs:], in_groups)
    return in_labels_C, _fill(energy_OC @ _one_hot(in_labels_C, in_groups), out_groups)


def _singular_vectors(matrix_OC: Tensor, count: int) -> Tensor:
    """The leading singular vectors, left above right, (O + C, count), by power iteration from a fixed start.

    Twice as many are iterated as are returned: those at the edge converge slowly.
    """
    width = min(2 * count, *matrix_OC.shape)
    right_CD = torch.randn(matrix_OC.shape[1], width, generator=torch.Generator().manual_seed(0)).double()
    for _ in range(POWER_STEPS):
        right_CD, _ = torch.linalg.qr(matrix_OC.T @ (matrix_OC @ right_CD))
    left_OD, _, mix_DD = torch.linalg.svd(matrix_OC @ right_CD, full_matrices=False)
    return torch.cat([left_OD, right_CD @ mix_DD.T])[:, :count]


def _spherical_means(place_ID: Tensor, groups: int) -> Tensor:
    """Centres of k-means on the sphere, (G, D), from seeds that lie far apart; no draw of luck."""
    nearest_I = place_ID @ place_ID[0]
    seeds = [0]
    while len(seeds) < groups:
        seeds.append(int(nearest_I.argmin()))
        nearest_I = torch.maximum(nearest_I, place_ID @ place_ID[seeds[-1]])
    centres_GD = place_ID[seeds]
    for _ in range(LLOYD_STEPS):
        members_IG = F.one_hot((place_ID @ centres_GD.T).argmax(1), groups).to(place_ID)
        centres_GD = F.normalize(members_IG.T @ place_ID + 1e-9 * centres_GD, dim=1)  # one without members stays
    return centres_GD


def _fill(score_IG: Tensor, groups: Partition) -> Tensor:
    """Groups of the given sizes by preference: lined up by the favourite group, then exchanged."""
    everyone = torch.arange(groups.groups)
    return _exchange(score_IG, _line_up(-score_IG.argmax(1), groups, everyone), groups)


def _line_up(value_I: Tensor, groups: Partition, order_G: Tensor) -> Tensor:
    """Labels that put the greatest values in the first group of ``order_G``, the next in its second, and so on."""
    dealt_I = order_G.repeat_interleave(torch.tensor(groups.sizes)[order_G])
    return torch.empty_like(dealt_I).index_copy_(0, value_I.argsort(descending=True, stable=True), dealt_I)


def _largest_first(in_groups: Partition, out_groups: Partition) -> Tensor:
    """The groups in the order of their share of inputs and outputs together."""
    sizes = ((torch.tensor(groups.sizes) / groups.channels) for groups in (in_groups, out_groups))
    return sum(sizes, torch.zeros(in_groups.groups)).argsort(descending=True, stable=True)


def _one_hot(labels_I: Tensor, groups: Partition) -> Tensor:
    return F.one_hot(labels_I, groups.groups).double()
