"""Rank of each filter of a network whose groups are spread over several devices.

Groups that feed one another form a *tower*. In each half of AlexNet, conv1 and conv2 form one tower, and conv3 to conv5
another. A tower stays on one rank, together with the filters of a dense layer that it reads: the rank that has a group
of conv2 also computes the filters of conv1 that the group reads, as on Krizhevsky's two GPUs. Filters that no tower
reads are divided evenly. So ranks divide the outputs of every layer, and no parameter is on two ranks. Only a layer
that reads several towers needs communication (``exchange.py``).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from gconv.cost import count_cost
from gconv.wiring.trace import LayerWiring, trace_wiring

Owners = tuple[int, ...]  # the rank of each channel
Unit = tuple[str, int]  # a group of a grouped layer, or a filter of a dense one; never divided
MAX_TOWERS_TO_SEARCH = 12  # greatest number of unequal towers for which the optimum is searched


@dataclass(frozen=True)
class Segment:
    """Consecutive layers connected by the same towers, between two layers that read several towers.

    Attributes:
        layers: names in the order of computation, with the dense layers whose filters the towers read.
        loads: multiply-accumulates of each tower for one image.
        ranks: the rank of each tower.
        exact: True if the ranks are proved optimal: no other assignment has a smaller largest load.
    """

    layers: tuple[str, ...]
    loads: tuple[int, ...]
    ranks: tuple[int, ...]
    exact: bool


@dataclass(frozen=True)
class Placement:
    """A network on several ranks.

    Attributes:
        ranks: number of ranks.
        owners: the rank of each output channel of every convolution and linear layer, by name.
        readers: the rank that reads each input channel of a grouped convolution, by name.
        segments: the ranks of the towers, segment by segment.
        macs: multiply-accumulates of each rank for one image.
        critical_path: multiply-accumulates on the critical path, because ranks wait for each other between segments:
            the sum of the largest rank's, over segments and the layers between them.
    """

    ranks: int
    owners: dict[str, Owners]
    readers: dict[str, Owners]
    segments: tuple[Segment, ...]
    macs: tuple[int, ...]
    critical_path: int

    @property
    def imbalance(self) -> float:
        """Critical path relative to equal shares: 1 if all ranks always have equally many MACs."""
        return self.critical_path * self.ranks / sum(self.macs)


def place(model: nn.Module, input_shape: tuple[int, ...], ranks: int) -> Placement:
    """Spread the groups of a network over ranks.

    Within a segment the largest load of a rank is minimised (``spread``). In the next segment the rank with the least
    work so far gets the largest load.

    Args:
        model: any network whose wiring can be traced; it may be on the meta device. It is not changed.
        input_shape: shape of one image, (C, H, W).
        ranks: number of devices; 1 places any network.

    Raises:
        ValueError: a layer has fewer groups, or fewer outputs, than there are ranks; a layer mixes groups that would be
            on different ranks (the message names it); no layer has groups; the wiring cannot be traced.
    """
    if ranks < 1:
        raise ValueError(f"{ranks} ranks: must be at least 1")
    wiring = trace_wiring(model, input_shape)
    grouped = [name for name, layer in wiring.items() if _groups(layer) > 1]
    if ranks > 1 and not grouped:
        raise ValueError(f"{type(model).__name__} on {ranks} ranks: no convolution has groups to place")
    for name in grouped:
        if (groups := _groups(wiring[name])) < ranks:
            raise ValueError(f"{ranks} ranks are more than the {groups} groups of {name}; use at most {groups}")
    cost = {layer.name: layer.macs for layer in count_cost(model, input_shape).layers}
    macs = {name: _macs_per_filter(layer, cost[name]) for name, layer in wiring.items()}
    towers = _Towers(wiring, grouped, ranks)
    rank_of, segments = _spread_segments(wiring, towers, macs, ranks)
    owners: dict[str, Owners] = {}
    for name, layer in wiring.items():
        placed = [rank_of.get(towers.of((name, c))) for c in range(len(layer.computed_by))]
        owners[name] = _filled(name, placed, ranks)
    readers: dict[str, Owners] = {}
    for name in grouped:
        ranks_of_groups = [rank_of[tower] for tower in towers.of_groups(name)]
        readers[name] = tuple(ranks_of_groups[group] for group in wiring[name].inputs_read_by)
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            owners[name] = _filled(name, [None] * module.out_features, ranks)
            macs[name] = [cost[name] // module.out_features] * module.out_features
    segment_of = {name: number for number, segment in enumerate(segments) for name in segment.layers}
    spent: dict[object, list[int]] = {}  # by segment, or by layer if it is in none
    for name, of_layer in owners.items():
        stretch = spent.setdefault(segment_of.get(name, name), [0] * ranks)
        for owner, of_filter in zip(of_layer, macs[name], strict=True):
            stretch[owner] += of_filter
    totals = tuple(map(sum, zip(*spent.values(), strict=True)))
    return Placement(ranks, owners, readers, segments, totals, sum(map(max, spent.values())))


def spread(loads: Sequence[int], ranks: int) -> tuple[tuple[int, ...], bool]:
    """Spread towers over ranks so that the largest load is as small as possible, and no rank is empty.

    Equal towers are assigned in blocks, which is optimal. For up to 12 unequal towers the optimum is searched. More
    towers are assigned largest first, each to the rank with the least load (LPT; Graham 1969: the largest load is at
    most 4/3 − 1/(3 · ranks) of the optimum).

    Args:
        loads: load of each tower, above 0; at least as many as ranks.
        ranks: number of ranks.

    Returns:
        The rank of each tower, and whether that is proved optimal. Ranks are numbered in the order of their first
        towers.
    """
    if len(set(loads)) == 1:
        return even(len(loads), ranks), True
    order = sorted(range(len(loads)), key=lambda tower: -loads[tower])
    totals, best = [0] * ranks, [0] * len(loads)
    for tower in order:
        best[tower] = min(range(ranks), key=totals.__getitem__)
        totals[best[tower]] += loads[tower]
    least, exact = max(max(loads), -(-sum(loads) // ranks)), True
    if max(totals) > least:
        exact = len(loads) <= MAX_TOWERS_TO_SEARCH
        best = _search(loads, order, ranks, best, max(totals)) if exact else best
    numbers = {rank: number for number, rank in enumerate(dict.fromkeys(best))}
    return tuple(numbers[rank] for rank in best), exact


def even(count: int, ranks: int) -> Owners:
    """Return the rank of each of ``count`` channels, in blocks whose sizes differ by one at most."""
    return tuple(channel * ranks // count for channel in range(count))


def _search(loads: Sequence[int], order: list[int], ranks: int, best: list[int], bound: int) -> list[int]:
    """Return the optimal ranks of towers by branch and bound, from a solution whose largest load is ``bound``."""
    totals, current = [0] * ranks, [0] * len(loads)

    def go(depth: int) -> None:
        nonlocal bound, best
        if depth == len(order):
            bound, best = max(totals), current.copy()
            return
        if totals.count(0) > len(order) - depth:  # a rank would stay empty
            return
        tower, tried = order[depth], set()
        for rank in range(ranks):
            total = totals[rank]
            if total in tried or total + loads[tower] >= bound:
                continue
            tried.add(total)
            totals[rank], current[tower] = total + loads[tower], rank
            go(depth + 1)
            totals[rank] = total

    go(0)
    return best


class _Towers:
    """Towers of a network, by union-find over the sources of each grouped layer."""

    def __init__(self, wiring: dict[str, LayerWiring], grouped: list[str], ranks: int) -> None:
        self._wiring = wiring
        self._grouped = set(grouped)
        self._parent: dict[Unit, Unit] = {}
        for place, name in enumerate(grouped):
            layer = wiring[name]
            for group, sources in set(zip(layer.inputs_read_by, layer.sources, strict=True)):
                for source in sources:
                    self._parent[self.of(source)] = self._find((name, group))
            for earlier in grouped[: place + 1]:
                if (left := len(set(self.of_groups(earlier)))) < ranks:
                    raise ValueError(
                        f"{ranks} ranks: {name} mixes groups that would be on different ranks: its inputs leave {left} "
                        f"of the {_groups(wiring[earlier])} groups of {earlier} independent"
                    )

    def of(self, channel: tuple[str, int]) -> Unit:
        """Return the tower of a filter, named by one of its units; a dense filter that no tower reads is its own."""
        name, number = channel
        return self._find((name, self._wiring[name].computed_by[number]) if name in self._grouped else channel)

    def of_groups(self, name: str) -> list[Unit]:
        """Return the tower of each group of a layer."""
        return [self._find((name, group)) for group in range(_groups(self._wiring[name]))]

    def _find(self, unit: Unit) -> Unit:
        while (parent := self._parent.get(unit, unit)) != unit:
            self._parent[unit] = unit = self._parent.get(parent, parent)
        return unit


def _spread_segments(
    wiring: dict[str, LayerWiring], towers: _Towers, macs: dict[str, list[int]], ranks: int
) -> tuple[dict[Unit, int], tuple[Segment, ...]]:
    """Return the rank of every tower, and the segments."""
    loads = {tower: 0 for name, layer in wiring.items() if _groups(layer) > 1 for tower in towers.of_groups(name)}
    layers_of: dict[Unit, set[str]] = {tower: set() for tower in loads}
    for name, layer in wiring.items():
        for channel in range(len(layer.computed_by)):
            if (tower := towers.of((name, channel))) in loads:
                loads[tower] += macs[name][channel]
                layers_of[tower].add(name)
    rank_of: dict[Unit, int] = {}
    segments, totals = [], [0] * ranks
    while waiting := [tower for tower in loads if tower not in rank_of]:
        layers, members = set(layers_of[waiting[0]]), [waiting[0]]
        while len(connected := [t for t in waiting if layers & layers_of[t]]) > len(members):
            members = connected
            layers = layers.union(*(layers_of[t] for t in members))
        shares, exact = spread([loads[t] for t in members], ranks)
        sums = [sum(loads[t] for t, s in zip(members, shares, strict=True) if s == share) for share in range(ranks)]
        largest_first = sorted(range(ranks), key=lambda share: -sums[share])
        least_first = sorted(range(ranks), key=totals.__getitem__)
        rank_of_share = dict(zip(largest_first, least_first, strict=True))
        for share, rank in rank_of_share.items():
            totals[rank] += sums[share]
        rank_of |= {t: rank_of_share[s] for t, s in zip(members, shares, strict=True)}
        ordered = tuple(name for name in wiring if name in layers)
        segments.append(Segment(ordered, tuple(loads[t] for t in members), tuple(rank_of[t] for t in members), exact))
    return rank_of, tuple(segments)


def _filled(name: str, placed: list[int | None], ranks: int) -> Owners:
    """Return the rank of each output: that of its tower, or equal shares if there is none."""
    if len(placed) < ranks:
        raise ValueError(f"{ranks} ranks are more than the {len(placed)} outputs of {name}; use at most {len(placed)}")
    if all(rank is None for rank in placed):
        return even(len(placed), ranks)
    owners = tuple(rank or 0 for rank in placed)  # a filter that nothing reads goes to the first rank
    if missing := set(range(ranks)) - set(owners):
        raise ValueError(f"{ranks} ranks: the towers leave rank {min(missing)} nothing of {name}; use fewer ranks")
    return owners


def _groups(layer: LayerWiring) -> int:
    return layer.computed_by[-1] + 1


def _macs_per_filter(layer: LayerWiring, macs: int) -> list[int]:
    """Return the multiply-accumulates of each filter, which are proportional to the inputs of its group."""
    inputs = Counter(layer.inputs_read_by)
    read = [inputs[group] for group in layer.computed_by]
    return [macs * count // sum(read) for count in read]
