"""The effects that claims compare: from the long table of a study to one effect per seed.

Reads the columns variant, seed, layer, measure, null and value. Five kinds of effect cover the ledger:

    difference    sum of some values − sum of others; so a difference of differences is a difference too
    ratio         one value / another
    slope         slope of a difference over several variants, against a number or a cost; with log, of the logarithms
    share         share of the seeds in which a value of 0 or 1 is 1
    equal_cost    one family of variants − another, interpolated to equal cost
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.tradeoff import difference_at_equal_cost

Kind = Literal["difference", "ratio", "slope", "share", "equal_cost"]

EACH = "each"  # the layer of a term that takes all layers, and pairs them by name
SLOT = "{}"  # in a variant's name: where a slope puts the names it runs over


class NotMeasuredError(LookupError):
    """The table lacks a value that an effect is computed from; the message names it."""


@dataclass(frozen=True)
class Term:
    """A place in the long table.

    Attributes:
        measure: name of the measure.
        variants: one variant, or several to average over; with ``equal_cost`` a family.
        layer: name of the layer; empty for a measure of the whole network. With ``each``, the layers of all terms are
            paired by name, and the effect is averaged over them.
        against: name of the null; empty for the trained network.
    """

    measure: str
    variants: tuple[str, ...]
    layer: str = ""
    against: str = ""

    def __str__(self) -> str:
        where = f", {self.layer} layer" if self.layer == EACH else f", {self.layer}" if self.layer else ""
        return f"{self.measure}({'|'.join(self.variants)}{where}{f', {self.against}' if self.against else ''})"


@dataclass(frozen=True)
class Metric:
    """The formula of an effect.

    Attributes:
        kind: kind of the effect; see the head of this file.
        of: the terms that are added, or the numerator of a ratio.
        minus: the terms that are subtracted, or the denominator of a ratio.
        over: for a slope, each name that replaces ``{}`` in the variants, and its number; NaN with ``by``.
        by: the cost that a slope runs against, or that is equal.
        log: True for a slope of logarithms on both sides, which is the exponent of a power law.
        per_seed: True for one value per seed; False for one value per variant: a count, or a timing with quartiles.
    """

    kind: Kind
    of: tuple[Term, ...]
    minus: tuple[Term, ...] = ()
    over: Mapping[str, float] = field(default_factory=dict)
    by: str = ""
    log: bool = False
    per_seed: bool = True

    def __str__(self) -> str:
        of, minus = (" + ".join(map(str, terms)) for terms in (self.of, self.minus))
        if self.kind == "ratio":
            return f"{of} / {minus}"
        text = of + (f" − {minus if len(self.minus) < 2 else f'({minus})'}" if minus else "")
        if self.kind == "share":
            return f"share of seeds with {text}"
        if self.kind == "equal_cost":
            return f"{text}, at equal {self.by}"
        if self.kind == "slope":
            steps = ", ".join(name if self.by else f"{name}: {x:g}" for name, x in self.over.items())
            return f"{'exponent' if self.log else 'slope'} of {text} over {self.by and f'{self.by} of '}{steps}"
        return text


@dataclass(frozen=True)
class Effect:
    """An effect as it was measured.

    Attributes:
        values: (n,) one value per seed, 0 or 1 for a share; (1,) if the effect is not per seed.
        low, high: bounds of a timing, from the quartiles of its repeats; the value itself for a count; None per seed.
        lost: number of further seeds whose runs were begun but have no value.
        note: values that were left out, in plain words.
    """

    values: NDArray[np.float64]
    low: float | None = None
    high: float | None = None
    lost: int = 0
    note: str = ""


def measure_effect(table: pd.DataFrame, metric: Metric, lost: Mapping[tuple[str, int], str] | None = None) -> Effect:
    """Compute an effect.

    Args:
        table: the long table, without the rows of lost runs.
        metric: the effect.
        lost: by variant and seed, why the run is no evidence: for example, it diverged.

    Raises:
        NotMeasuredError: a variant, a measure or a null is not in the table, no seed has all of them, or the effect is
            defined in none (a ratio to 0, a logarithm of a value that is not positive).
        ValueError: a share of values other than 0 and 1.
    """
    lost, names = lost or {}, _variants(metric)
    for name in names:
        of_name = {seed: why for (variant, seed), why in lost.items() if variant == name}
        seeds = table.loc[table["variant"] == name, "seed"]
        if seeds.notna().any() or (len(seeds) and not (metric.per_seed and of_name)):  # times have no seed
            continue
        if of_name:
            raise NotMeasuredError(f"no run of {name} is evidence: seed {min(of_name)} {of_name[min(of_name)]}")
        raise NotMeasuredError(f"no variant {name}")
    table = table[table["variant"].isin(names)]
    trained = {name: set(table.loc[table["variant"] == name, "seed"].dropna().astype(int)) for name in names}
    table = table[table["measure"].isin(_measures(metric)) & np.isfinite(table["value"])]
    table = table.assign(null=table["null"].fillna(""), layer=table["layer"].fillna(""))
    if not metric.per_seed:
        values = [float(_per_seed(_without_seeds(corner), metric).iloc[0]) for corner in _corners(table, metric)]
        return Effect(np.array(values[:1]), min(values), max(values))
    by_seed = _per_seed(table, metric)
    tried = [trained[name] | {seed for variant, seed in lost if variant == name} for name in names]
    missing = set.intersection(*tried) - set(by_seed.index)
    untrained = set.union(*tried) - set.intersection(*tried)
    why = dict.fromkeys(f"{name} {lost[name, seed]}" for name in names for seed in missing if (name, seed) in lost)
    undefined = sum(not any((name, seed) in lost for name in names) for seed in missing)
    notes = [*why, f"value undefined in {undefined}" if undefined else ""]
    notes = [
        f"{len(missing)} of {len(by_seed) + len(missing)} seeds lost ({'; '.join(filter(None, notes))})"
        if missing
        else "",
        f"seeds not yet trained in every variant: {len(untrained)}" if untrained else "",
    ]
    values = by_seed.to_numpy(dtype=np.float64)
    return Effect(values, lost=len(missing), note="; ".join(filter(None, notes)))


def _variants(metric: Metric) -> list[str]:
    """Return the variants that an effect compares."""
    terms = (*metric.of, *metric.minus)
    return list(dict.fromkeys(n for term in terms for v in term.variants for n in _filled(v, metric.over)))


def _measures(metric: Metric) -> set[str]:
    """Return the measures that an effect is computed from, with the quartiles of timings."""
    names = {term.measure for term in (*metric.of, *metric.minus)}
    return {f"{name}{end}" for name in names for end in ("", "_lower", "_upper")} | {metric.by}


def _per_seed(table: pd.DataFrame, metric: Metric) -> pd.Series:
    """Return one effect per seed, indexed by seed."""
    if metric.kind == "slope":
        return _slope(table, metric)
    if metric.kind == "equal_cost":
        (ours,), (theirs,) = metric.of, metric.minus
        for term in (ours, theirs):
            for variant in term.variants:
                _rows(table, replace(term, variants=(variant,)))
        differences = difference_at_equal_cost(table, ours.variants, theirs.variants, metric.by, ours.measure)
        if differences.empty:
            raise NotMeasuredError(f"no seed in which both families have networks of equal {metric.by}")
        return differences
    frame = _joined([*(_values(table, term) for term in metric.of), *(_values(table, term) for term in metric.minus)])
    of, minus = frame.iloc[:, : len(metric.of)], frame.iloc[:, len(metric.of) :]
    if metric.kind == "share":
        effect = of.iloc[:, 0]
        if not effect.isin((0, 1)).all():
            raise ValueError(f"{metric}: each seed must have 0 or 1, not {effect[~effect.isin((0, 1))].iloc[0]:g}")
    else:
        effect = of.iloc[:, 0] / minus.iloc[:, 0] if metric.kind == "ratio" else of.sum(axis=1) - minus.sum(axis=1)
        seeds = effect.index.get_level_values("seed")
        effect = effect[~seeds.isin(seeds[~np.isfinite(effect)])]
        if effect.empty:
            raise NotMeasuredError(f"no seed with a defined value of {metric}")
    by_layer = effect.unstack("layer")
    whole = by_layer.dropna(axis=1)  # the same layers in every seed, where there are such
    return (by_layer if whole.empty else whole).mean(axis=1)


def _slope(table: pd.DataFrame, metric: Metric) -> pd.Series:
    columns, at = [], []
    for name, number in metric.over.items():
        of, minus = (
            tuple(replace(term, variants=tuple(v.replace(SLOT, name) for v in term.variants)) for term in terms)
            for terms in (metric.of, metric.minus)
        )
        columns.append(_per_seed(table, Metric("difference", of, minus)))
        cost = Term(metric.by, of[0].variants)
        at.append(float(_values(table, cost).mean()) if metric.by else number)
    y, x = _joined(columns), np.array(at)
    if metric.log:
        y = y[(y > 0).all(axis=1)]
        if y.empty or (x <= 0).any():
            raise NotMeasuredError(f"no seed with a defined value of {metric}: a logarithm needs values above 0")
        y, x = y.apply(np.log), np.log(x)
    steps = x - x.mean()
    return y @ (steps / (steps @ steps))


def _values(table: pd.DataFrame, term: Term) -> pd.Series:
    """Return a term by seed and layer, averaged over its variants."""
    by_variant = []
    for variant in term.variants:
        rows = _rows(table, replace(term, variants=(variant,)))
        layer = rows["layer"] if term.layer == EACH else ""
        by_variant.append(rows.assign(layer=layer).groupby(["seed", "layer"], dropna=False)["value"].mean())
    return by_variant[0] if len(by_variant) == 1 else _joined(by_variant).mean(axis=1)


def _rows(table: pd.DataFrame, term: Term) -> pd.DataFrame:
    """Return the rows of a term of one variant."""
    (variant,) = term.variants
    wanted = (table["variant"] == variant) & (table["measure"] == term.measure) & (table["null"] == term.against)
    if term.layer != EACH:
        wanted &= table["layer"] == term.layer
    rows = table[wanted]
    if rows.empty:
        raise NotMeasuredError(f"no {term}")
    return rows


def _joined(columns: Sequence[pd.Series]) -> pd.DataFrame:
    """Return columns joined side by side, without rows in which a value is missing."""
    frame = pd.concat(columns, axis=1, join="inner", keys=range(len(columns))).dropna()
    if frame.empty:
        raise NotMeasuredError("no seed, or no layer, with all that is compared")
    return frame


def _filled(variant: str, names: Mapping[str, float]) -> list[str]:
    return [variant.replace(SLOT, name) for name in names] if SLOT in variant else [variant]


def _without_seeds(table: pd.DataFrame) -> pd.DataFrame:
    return table.assign(seed=0)


def _corners(table: pd.DataFrame, metric: Metric) -> Iterator[pd.DataFrame]:
    """Yield the table itself, then with every timing at its lower or upper quartile, in all combinations.

    An effect that rises or falls with each of them has its extremes there.
    """
    yield table
    timed = dict.fromkeys(
        (term.measure, name)
        for term in (*metric.of, *metric.minus)
        if (table["measure"] == f"{term.measure}_lower").any()
        for variant in term.variants
        for name in _filled(variant, metric.over)
    )
    for ends in product(("lower", "upper"), repeat=len(timed)) if timed else ():
        measure = table["measure"].copy()
        for (name, variant), end in zip(timed, ends, strict=True):
            of_variant = table["variant"] == variant
            measure = measure.mask(of_variant & (measure == name), "")
            measure = measure.mask(of_variant & (measure == f"{name}_{end}"), name)
        yield table.assign(measure=measure)
