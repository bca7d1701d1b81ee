"""Rates of the verdict "supported" in simulated studies: without an effect (wrong verdicts) and with one (power).

Networks without effects (``null_networks``) are measured by the measures of the suite, and judged by the rule of the
ledger. For every kind of network a pool of runs is simulated, from which studies of 8 seeds are drawn. The rate of
"supported" must not exceed 5% for any claim.

    python -m benchmarks.null_studies [--runs=200] [--studies=2000] [--seeds=8] [--kinds=smooth,grey] [--processes=2]
        [--csv=results/null-studies/rates.csv]

Columns of the table:

    alone      rate of "supported" if a claim is judged alone (the worst case: all other claims of the ledger hold)
    ledger     the same if all claims are judged together and none has an effect
    part_alone the same for one part of the claim alone
    effect     mean effect of each part over the pool, sd over runs
    power      rate of "supported" if every part had the smallest effect of interest, and the spread of the pool
    runs, studies, seeds
               runs in the pool, studies drawn from it, and seeds of each

The page of claims (``make claims ARGS=--markdown``) shows the table in results/.

Claims about accuracy only have no networks here: their effects are normal numbers with the spread of their pilot. For
"the same" and "no gain" the rate is computed at the margin, where the claim just fails.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import nn

from analysis.claims import ChosenStudies, Claim, StudyAnswer, decide_claims
from analysis.effects import Effect, NotMeasuredError, measure_effect
from analysis.evidence import OUTCOMES, Record, sort_evidence
from analysis.null_filters import calibrate
from analysis.verdict import ALPHA, Part, Test, weigh
from benchmarks.null_networks import KINDS, Kind, network_pair, thin_alexnet, trained_on
from experiments.data.augment import Views
from experiments.data.datasets import load
from experiments.measure import groups
from experiments.measure.between_layers import measure_between_layers
from experiments.measure.context import Measure, MeasureContext
from experiments.measure.first_layer import measure_first_layer
from experiments.measure.groups import measure_groups
from experiments.measure.images import MeasuredImages
from experiments.measure.lesions import measure_lesions
from experiments.measure.options import MeasureOptions
from experiments.measure.table import gather, save_table
from experiments.models import build_model
from experiments.report.ledger import LEDGER, read_claims
from experiments.training.recipe import Recipe
from experiments.training.run_context import RunContext
from gconv.wiring import trace_wiring

SIZE = 32
OPTIONS = MeasureOptions(images=110, permutations=300, draws=2, lesion_images=110)
CLAIMED_ALONE = {"PARTITIONS": 5, "CUTS_OF_DENSE": {"": "~2"}}  # measures only these rows
ACCURACY = "accuracy"  # kind of effects without simulated networks
ACCURACY_SD = 0.005  # of a difference of accuracies without a pilot
PLACE = "simulated"
NONE_MISSING = pd.DataFrame(columns=pd.Index(["variant", "seed", "status", "reason"]))

Effects = dict[tuple[int, int], NDArray[np.float64]]  # by claim and part: one per run


@dataclass(frozen=True)
class Variant:
    """One network of a simulated study.

    Attributes:
        studies: names of the studies that have it.
        name: name of the variant there.
        model: name and arguments of the model.
        colour: colour of the images.
        measures: measures that the claims need.
    """

    studies: tuple[str, ...]
    name: str
    model: tuple[str, Any]
    colour: Literal["colour", "grey", "hue-scrambled"] = "colour"
    measures: tuple[Measure, ...] = (measure_groups, measure_first_layer)


FIRST = (measure_first_layer,)
ALEXNETS = ("alexnet-groups", "alexnet-colour")
VARIANTS = (
    Variant(ALEXNETS, "dense", ("alexnet", 1)),
    Variant(ALEXNETS, "groups-2", ("alexnet", 2), measures=(measure_groups, measure_first_layer, measure_lesions)),
    Variant(("alexnet-groups",), "groups-4", ("alexnet", 4), measures=FIRST),
    Variant(("alexnet-colour",), "grey", ("alexnet", 2), "grey", (measure_first_layer, measure_lesions)),
    Variant(("alexnet-colour",), "hue-scrambled", ("alexnet", 2), "hue-scrambled", FIRST),
    *(
        Variant(("nin-roots",), name, ("nin", name), measures=(measure_between_layers,))
        for name in ("root-4", "root-8", "root-16")
    ),
    Variant(("log-groups",), "log-4", ("lognet", "log:4"), measures=FIRST),
    Variant(("log-groups",), "log-4-grey", ("lognet", "log:4"), "grey", FIRST),
)


def main() -> None:
    """Run the simulation."""
    parser = argparse.ArgumentParser(description="How often the ledger supports a claim where there is nothing.")
    parser.add_argument("--runs", type=int, default=200, help="simulated runs of each kind")
    parser.add_argument("--studies", type=int, default=2000, help="studies drawn from them")
    parser.add_argument("--seeds", type=int, default=8, help="of a study")
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--data_root", type=Path, default=Path("data"))
    parser.add_argument(
        "--tables", type=Path, help="folder that keeps the long table of each run, and goes on with those"
    )
    parser.add_argument("--csv", type=Path)
    given = parser.parse_args()
    claims = read_claims(LEDGER)
    tables = {}
    for kind in (*given.kinds.split(","), ACCURACY):
        if kind == ACCURACY:
            effects = accuracy_effects(claims)
        else:
            effects = simulate_effects(claims, kind, given.runs, given.data_root, given.tables, given.processes)
        tables[kind] = rates(claims, effects, given.studies, given.seeds)
        print(f"{kind}\n{tables[kind].to_string(index=False)}", flush=True)
    if given.csv:
        given.csv.parent.mkdir(parents=True, exist_ok=True)
        save_table(given.csv, pd.concat(tables, names=["kind"]).reset_index("kind").round(5))


def simulate_effects(
    claims: Sequence[Claim], kind: str, runs: int, data_root: Path, tables: Path | None = None, processes: int = 1
) -> Effects:
    """Measure simulated runs of a kind; return one effect per run for each claim and part, NaN if it has none."""
    one_run = partial(run_effects, claims, kind, data_root=data_root, tables=tables)
    if processes > 1:
        with get_context("spawn").Pool(processes, torch.set_num_threads, (1,)) as pool:
            results = pool.map(one_run, range(runs), chunksize=1)
    else:
        results = [one_run(seed) for seed in range(runs)]
    return {part: np.array([of_run[part] for of_run in results]) for part in results[0]}


def run_effects(
    claims: Sequence[Claim], kind: str, seed: int, data_root: Path, tables: Path | None = None
) -> dict[tuple[int, int], float]:
    """Return the effects of one simulated seed for the claims that networks decide, by claim and part."""
    kept = None if tables is None else tables / f"{kind}-{seed}.csv.gz"
    if kept is not None and kept.is_file():
        table = pd.read_csv(kept, keep_default_na=False, na_values={"value": [""]})
    else:
        table = run_table(kind, seed, data_root)
        if kept is not None:
            kept.parent.mkdir(parents=True, exist_ok=True)
            table.to_csv(kept, index=False)
    effects_of = {}
    for claim, part, test in simulated_parts(claims):
        of_study = table[table["study"] == claim.studies[0]]
        _, unlearned, _ = sort_evidence(of_study, pd.DataFrame(), NONE_MISSING)
        record = Record(claim.studies[0], PLACE, of_study, unlearned=unlearned)
        try:
            value = measure_effect(record.for_effect(test.metric)[0], test.metric).values[0]
        except NotMeasuredError:
            value = np.nan
        effects_of[claim.number, part] = float(value)
    return effects_of


def simulated_parts(claims: Sequence[Claim]) -> list[tuple[Claim, int, Test]]:
    """Return the parts of the claims that simulated networks decide, counted from 1."""
    studies = {study for variant in VARIANTS for study in variant.studies}
    return [
        (claim, part, test)
        for claim in claims
        if claim.studies[0] in studies
        for part, test in enumerate(claim.tests, 1)
        if not test.construction and all(term.measure not in OUTCOMES for term in test.metric.of)
    ]


def run_table(kind: str, seed: int, data_root: Path) -> pd.DataFrame:
    """Return the long table of all networks of one simulated seed."""
    tables = []
    for stream, variant in enumerate(VARIANTS):
        shown_as = context(data_root, variant.colour)
        of_kind = trained_on(KINDS[kind], variant.colour)
        rows = _measured(variant, of_kind, seed, stream, shown_as)
        tables += [rows.assign(study=study) for study in variant.studies]
    return pd.concat(tables, ignore_index=True)


def _measured(variant: Variant, kind: Kind, seed: int, stream: int, shown_as: RunContext) -> pd.DataFrame:
    """Return the long table of one network, with the measures that the claims need."""
    images, classes = MeasuredImages(shown_as, OPTIONS.images), len(shown_as.dataset.classes)
    trained, untrained = network_pair(partial(_build, variant.model, classes), kind, seed, stream, images)
    calibrate(untrained, images.training())
    wiring = trace_wiring(trained, (3, SIZE, SIZE))
    context = MeasureContext(trained, untrained, wiring, images, OPTIONS)
    if measure_between_layers in variant.measures:
        context = replace(context, images=images.spaced(OPTIONS.images // 2))
    with patch.multiple(groups, **CLAIMED_ALONE):
        items = [item for measure in variant.measures for item in measure(context)]
    return gather(items, "", variant.name, seed, context.groups).table


def _build(model: tuple[str, Any], classes: int) -> nn.Module:
    name, cut = model
    if name == "alexnet":
        return thin_alexnet(cut, classes)
    if name == "nin":
        return build_model("nin", variant=cut, classes=classes, width=64, norm="batch")
    return build_model("lognet", groups=cut, classes=classes, width=32)


@cache
def context(data_root: Path, colour: Literal["colour", "grey", "hue-scrambled"]) -> RunContext:
    """Return a context with the photographs that ship with the dependencies, at 32 pixels."""
    dataset = load("photos", SIZE, data_root)
    views = Views(image_size=SIZE, crop_size=SIZE, colour=colour)
    return RunContext.of(dataset, views, Recipe(device="cpu", precision="fp32"))


def accuracy_effects(claims: Sequence[Claim], runs: int = 20_000) -> Effects:
    """Return effects of the claims about accuracy, without an effect: normal, with the spread of the pilots."""
    rng, simulated = np.random.default_rng(0), {claim.number for claim, _, _ in simulated_parts(claims)}
    return {
        (claim.number, part): rng.normal(_nothing(test), test.spread or ACCURACY_SD, runs)
        for claim in claims
        if claim.number not in simulated
        for part, test in enumerate(claim.tests, 1)
        if test.metric.per_seed and not test.construction
    }


def rates(claims: Sequence[Claim], effects: Effects, studies: int, seeds: int) -> pd.DataFrame:
    """Judge studies drawn from a pool of runs; one row per claim and part. See the head of this file."""
    numbers = {number for number, _ in effects}
    judged = [claim for claim in claims if claim.number in numbers]
    there = {place: _as_it_matters(values, _test(claims, place)) for place, values in effects.items()}
    rng, runs = np.random.default_rng(0), len(next(iter(effects.values())))
    alone, together, power = (np.zeros((studies, len(judged)), dtype=bool) for _ in range(3))
    by_part = {place: np.zeros(studies, dtype=bool) for place in effects}
    for draw in range(studies):
        drawn = rng.choice(runs, seeds, replace=False)
        chosen = [_choose(claim, effects, drawn) for claim in judged]
        together[draw] = [f.verdict == "supported" for f in decide_claims(judged, chosen)]
        for k, claim in enumerate(judged):
            alone[draw, k] = _supported(claim, chosen[k])
            power[draw, k] = _supported(claim, _choose(claim, there, drawn))
            for part in chosen[k].answers[0].parts:
                if not part.test.construction and part.support is not None and part.decided is None:
                    place = claim.number, claim.tests.index(part.test) + 1
                    by_part[place][draw] = 2 * part.support <= ALPHA
    rows = []
    for (number, part), values in effects.items():
        k, finite = [claim.number for claim in judged].index(number), values[np.isfinite(values)]
        row = {"claim": number, "part": part, "runs": len(finite), "studies": studies, "seeds": seeds}
        row |= {
            "effect": finite.mean() if len(finite) else np.nan,
            "sd": finite.std(ddof=1) if len(finite) > 1 else np.nan,
        }
        row |= {"matters": _test(claims, (number, part)).matters, "part_alone": by_part[number, part].mean()}
        rows.append(row | {"alone": alone[:, k].mean(), "ledger": together[:, k].mean(), "power": power[:, k].mean()})
    return pd.DataFrame(rows)


def _choose(claim: Claim, effects: Effects, drawn: NDArray) -> ChosenStudies:
    """Return the verdict of a study of the drawn runs on a claim; parts that the architecture decides hold."""
    parts, missing = [], ""
    for number, test in enumerate(claim.tests, 1):
        if (claim.number, number) not in effects:
            parts.append(Part(test, test.than, decided="supported"))
            continue
        values = effects[claim.number, number][drawn]
        known = values[np.isfinite(values)]
        if len(known):
            parts.append(weigh(Effect(known, lost=len(values) - len(known)), test))
        else:
            missing = "no run with a value"
    return ChosenStudies((StudyAnswer(Record(claim.studies[0], PLACE, pd.DataFrame()), tuple(parts), missing),))


def _supported(claim: Claim, chosen: ChosenStudies) -> bool:
    (finding,) = decide_claims([claim], [chosen])
    return finding.verdict == "supported"


def _test(claims: Sequence[Claim], place: tuple[int, int]) -> Test:
    return next(claim for claim in claims if claim.number == place[0]).tests[place[1] - 1]


def _nothing(test: Test) -> float:
    """Return the effect nearest to the claim that makes it false."""
    return test.than + (test.matters if test.direction in ("within", "no_greater") else 0.0)


def _as_it_matters(values: NDArray[np.float64], test: Test) -> NDArray[np.float64]:
    """Return the effects of a pool shifted to the smallest effect of interest; a fraction is drawn from it."""
    if test.metric.kind == "share":
        drawn = np.random.default_rng(1).uniform(size=len(values)) < test.than + test.matters
        return np.where(np.isfinite(values), drawn.astype(float), np.nan)
    side = {"greater": 1.0, "less": -1.0}.get(test.direction, 0.0)
    return values - np.nanmean(values) + test.than + side * test.matters


if __name__ == "__main__":
    main()
