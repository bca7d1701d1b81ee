"""Simulated networks, without an effect and with one, through the measures and the rule of the ledger."""

import re

import numpy as np
import pandas as pd
import pytest
import torch

from analysis.claims import judge_claims
from analysis.colour import colour_index, learned_part
from analysis.evidence import Record
from benchmarks.null_networks import KINDS, NULLS, fit_readout, network_pair, pretend_training, thin_alexnet
from benchmarks.null_studies import (
    VARIANTS,
    accuracy_effects,
    context,
    rates,
    run_effects,
    run_table,
    simulate_effects,
    simulated_parts,
)
from experiments.measure.images import MeasuredImages
from experiments.report.ledger import LEDGER, read_claims

RUNS, STUDIES = 24, 400  # a rate of 5% is 2 standard errors below 7.2%


@pytest.fixture(scope="module")
def claims():
    return read_claims(LEDGER)


@pytest.fixture(scope="module")
def data_root(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


def trained(kind, seed=0, groups=2):
    torch.manual_seed(seed)
    network = thin_alexnet(groups, 11)
    initial = network.conv1.weight.detach().clone()
    pretend_training(network, KINDS[kind], np.random.default_rng(seed))
    return network, initial


def test_grey_training_learns_no_colour_and_leaves_that_of_the_initialisation():
    network, initial = trained("grey")
    weight = network.conv1.weight.detach().numpy()
    of_learned = colour_index(weight - KINDS["grey"].left * initial.numpy())
    assert of_learned.max() < 1e-6  # weights in single precision
    assert colour_index(weight).mean() > 0.02


def test_uneven_growth_is_that_of_whole_groups():
    """The mean logarithms of groups vary more than those of independent filters would."""
    means = []
    for seed in range(40):
        network, initial = trained("growth", seed)
        share = learned_part(network.conv1.weight.detach().numpy(), initial.numpy()).energy
        size = np.log(np.sqrt((network.conv1.weight.detach().numpy() ** 2).sum((1, 2, 3)) * share)).reshape(2, 16)
        means.append(np.diff(size.mean(1)))
    kind = KINDS["growth"]
    assert np.std(means) == pytest.approx(kind.uneven * np.sqrt(2 + 2 / 16), rel=0.3)


def test_networks_of_one_seed_share_their_initialisation_and_nothing_else(data_root):
    images = MeasuredImages(context(data_root, "colour"), 22)
    (first, start), (second, begin) = (
        network_pair(lambda: thin_alexnet(2, 11), KINDS["shared"], 3, stream, images) for stream in (0, 1)
    )
    assert torch.equal(start.conv1.weight, begin.conv1.weight)
    assert not torch.equal(first.conv1.weight, second.conv1.weight)


def test_the_readout_beats_chance(data_root):
    network, _ = trained("smooth")
    assert fit_readout(network, MeasuredImages(context(data_root, "colour"), 330)) > 2 / 11


@pytest.mark.slow
def test_resampled_effects_give_the_verdicts_of_the_ledger(claims, data_root, tmp_path):
    """One study of 8 seeds: ``judge_claims`` on its tables, and the rates of the only study that can be drawn."""
    made_up = {}
    rng = np.random.default_rng(5)
    pattern = run_table("planted", 0, data_root)
    for seed in range(8):
        noise = rng.normal(0, 0.02, len(pattern)) * ~pattern["measure"].isin(["colour_split", "learned_filters"])
        made_up[seed] = pattern.assign(seed=seed, value=pattern["value"] + noise)
        made_up[seed].to_csv(tmp_path / f"planted-{seed}.csv.gz", index=False)
    whole = pd.concat(made_up.values())
    judged = sorted({claim.number for claim, _, _ in simulated_parts(claims)})
    records = [Record(study, "simulated", of_study) for study, of_study in whole.groupby("study")]
    verdicts = {}
    for number in judged:
        (claim,) = (claim for claim in claims if claim.number == number)
        (finding,) = judge_claims([claim], records)
        verdicts[number] = float(finding.verdict == "supported")
    effects = simulate_effects(claims, "planted", 8, data_root, tmp_path)
    drawn = rates(claims, effects, 1, 8).groupby("claim")["alone"].first()
    assert drawn.to_dict() == verdicts
    assert 0 < sum(verdicts.values()) < len(verdicts)


def test_power_is_that_of_the_effect_that_matters(claims):
    """Claim 13: normal differences, SD 1.2 points, one point matters; 8 seeds, by an independent simulation."""
    effects = {place: values for place, values in accuracy_effects(claims).items() if place[0] == 13}
    (row,) = rates(claims, effects, 600, 8).to_dict("records")
    x = np.random.default_rng(1).normal(-0.01, 0.012, (4000, 8))
    signs = np.array(np.meshgrid(*[[1, -1]] * 8)).reshape(8, -1)
    p = ((x @ signs) / 8 <= x.mean(1, keepdims=True) + 1e-12).mean(1)
    too_small = ((x + 0.01) @ signs / 8 >= (x + 0.01).mean(1, keepdims=True) - 1e-12).mean(1)
    assert row["power"] == pytest.approx(((p <= 0.025) & (too_small > 0.025)).mean(), abs=0.06)


@pytest.mark.slow
def test_every_claim_that_filters_decide_is_simulated(claims, data_root):
    simulated = {name for variant in VARIANTS for name in variant.studies}
    of_filters = re.compile("within_|cka_|on_block_|colour_|separation_|latent_|lesion_|specialisation_")
    numbers = {claim.number for claim, _, _ in simulated_parts(claims)}
    for claim in (claim for claim in claims if claim.studies[0] in simulated):
        parts = [test.metric.of[0].measure for test in claim.tests if not test.construction]
        assert claim.number in numbers or not any(map(of_filters.match, parts)), claim.number
    assert np.isfinite(list(run_effects(claims, "planted", 1, data_root).values())).all()
    assert {name for variant in VARIANTS for name in variant.studies} >= {"alexnet-groups", "log-groups"}


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", NULLS)
def test_nothing_planted_nothing_supported(claims, data_root, kind):
    table = rates(claims, simulate_effects(claims, kind, RUNS, data_root), STUDIES, 8)
    wrong = table[table["alone"] > 0.072]
    assert wrong.empty, wrong.to_string()


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_planted_effect_is_supported(claims, data_root):
    table = rates(claims, simulate_effects(claims, "planted", RUNS, data_root), STUDIES, 8)
    supported = table.groupby("claim")["alone"].first()
    assert (supported[[2, 3, 6, 7, 10, 11, 22]] > 0.8).all(), table.to_string()


def test_accuracies_without_a_difference_support_nothing(claims):
    table = rates(claims, accuracy_effects(claims), 300, 8)
    assert (table["alone"] <= 0.05).all(), table.to_string()
