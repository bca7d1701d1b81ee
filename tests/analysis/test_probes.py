import numpy as np
import pytest
import torch
from scipy.stats import kstest, norm
from torch import nn

from analysis.probes import PooledResponses, group_probes, image_targets, probe_score
from analysis.responses import Input, collect


def uniform_image(*rgb):
    return torch.tensor(rgb, dtype=torch.float32).view(1, 3, 1, 1).expand(1, 3, 16, 16)


def grating(frequency, degrees, side=64):
    """Luminance that changes along a direction: 0 to the right, 90 down."""
    down, right = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    along = right * np.cos(np.radians(degrees)) + down * np.sin(np.radians(degrees))
    wave = 0.5 + 0.4 * torch.sin(2 * np.pi * frequency * along)
    return wave.expand(1, 3, side, side).float()


@pytest.mark.parametrize(
    ("rgb", "degrees", "chroma"),
    [((1, 0, 0), 0, 1), ((0, 1, 0), 120, 1), ((0, 0, 1), 240, 1), ((1, 1, 0), 60, 1), ((0.6, 0.4, 0.4), 0, 0.2)],
    ids=["red", "green", "blue", "yellow", "pale red"],
)
def test_the_hue_and_chroma_of_a_uniform_image(rgb, degrees, chroma):
    targets = image_targets([uniform_image(*rgb)])
    angle = np.radians(degrees)
    np.testing.assert_allclose(targets["hue"], [[np.cos(angle), np.sin(angle)]], atol=1e-6)
    np.testing.assert_allclose(targets["chroma"], [[chroma]], atol=1e-6)


def test_opposite_colours_have_chroma_and_no_hue():
    both = torch.cat([uniform_image(1, 0, 0), uniform_image(0, 1, 1)], 3)
    targets = image_targets([both])
    assert np.isnan(targets["hue"]).all()
    assert targets["chroma"] == pytest.approx(1)


@pytest.mark.parametrize("degrees", [0, 30, 45, 90, 135])
def test_the_orientation_of_a_grating(degrees):
    twice = np.radians(2 * degrees)
    orientation = image_targets([grating(1 / 16, degrees)])["orientation"][0]
    np.testing.assert_allclose(orientation, [np.cos(twice), np.sin(twice)], atol=0.02)


@pytest.mark.parametrize("frequency", [1 / 16, 1 / 8, 1 / 4])
@pytest.mark.parametrize("degrees", [0, 90])
def test_the_frequency_of_a_grating(frequency, degrees):
    """A Hann window spreads a line over its neighbours, evenly: the centroid stays."""
    assert image_targets([grating(frequency, degrees)])["frequency"].item() == pytest.approx(frequency, abs=0.002)


def test_white_noise_has_the_frequency_that_theory_gives():
    x = torch.rand(20, 1, 64, 64, generator=torch.Generator().manual_seed(0)).expand(-1, 3, -1, -1)
    expected = (np.sqrt(2) + np.arcsinh(1)) / 6  # mean distance from the centre of a unit square
    assert image_targets([x])["frequency"].mean() == pytest.approx(expected, abs=0.003)


def test_what_an_image_does_not_have_is_not_made_up():
    targets = image_targets([uniform_image(0.5, 0.5, 0.5)])
    assert all(np.isnan(targets[name]).all() for name in ("hue", "orientation", "frequency"))
    assert targets["chroma"] == pytest.approx(0, abs=1e-6)


def test_targets_do_not_depend_on_the_batches():
    x = torch.rand(7, 3, 12, 10)
    whole, parts = image_targets([x]), image_targets(x.split(3))
    for name, values in whole.items():
        np.testing.assert_allclose(parts[name], values)


def test_images_that_are_not_rgb_of_0_to_1_are_refused():
    with pytest.raises(ValueError, match="not normalised"):
        image_targets([torch.full((1, 3, 8, 8), -1.5)])
    with pytest.raises(ValueError, match="must be RGB"):
        image_targets([torch.rand(1, 1, 8, 8)])
    with pytest.raises(ValueError, match="no image"):
        image_targets([])


def test_pooled_responses_are_what_the_next_layer_reads_averaged():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(inplace=True), nn.Conv2d(4, 2, 1))
    x = torch.randn(5, 3, 6, 6)
    pooled = collect(model, x.split(2), {Input("2"): PooledResponses()})[Input("2")]
    expected = model[0](x).relu().double().mean((2, 3)).detach()
    np.testing.assert_allclose(pooled.features, expected, rtol=1e-6)
    with pytest.raises(ValueError, match="no responses"):
        _ = PooledResponses().features


def test_r2_is_what_the_noise_leaves():
    """For k copies of a target of variance 1, each with noise of variance s²: R² = 1 / (1 + s² / k)."""
    rng = np.random.default_rng(0)
    target = rng.normal(size=4000)
    features = target[:, None] + rng.normal(size=(4000, 3)) * 2**0.5
    assert probe_score(features[:, :1] * 100 - 7, target) == pytest.approx(1 / 3, abs=0.03)
    assert probe_score(features, target) == pytest.approx(1 / (1 + 2 / 3), abs=0.03)


def test_a_circular_target_pools_its_cosine_and_sine():
    rng = np.random.default_rng(1)
    angle = rng.uniform(0, 2 * np.pi, 3000)
    target = np.stack([np.cos(angle), np.sin(angle)], 1)
    assert probe_score(target, target) == pytest.approx(1, abs=1e-3)
    assert probe_score(target[:, :1], target) == pytest.approx(0.5, abs=0.02)  # one of two equal variances


def test_balanced_accuracy_of_two_overlapping_classes():
    """Means ± 1, noise 1, a threshold between: Φ(1), though one class has four times the images."""
    rng = np.random.default_rng(2)
    target = np.repeat([0, 1], [4000, 1000])
    features = (2.0 * target - 1)[:, None] + rng.normal(size=(5000, 1))
    assert probe_score(features, target) == pytest.approx(norm.cdf(1), abs=0.02)


def test_a_probe_that_knows_nothing_is_at_chance():
    rng = np.random.default_rng(3)
    features = rng.normal(size=(1000, 5))
    assert probe_score(features, rng.normal(size=1000)) == pytest.approx(0, abs=0.02)
    assert probe_score(features, rng.integers(0, 4, 1000)) == pytest.approx(0.25, abs=0.06)


def planted(images=400):
    """Four filters of group 0 know hue, four of group 1 frequency, with noise of variance 1 in each."""
    rng = np.random.default_rng(4)
    hue, frequency = rng.normal(size=(2, images))
    signal = np.stack([hue] * 4 + [frequency] * 4, 1)
    return signal + rng.normal(size=signal.shape), np.repeat([0, 1], 4), {"hue": hue, "frequency": frequency}


def test_planted_knowledge_is_found_beside_the_null_of_its_size():
    probes = {(p.group, p.target): p for p in group_probes(*planted(), draws=20)}
    for group, knows, does_not in ((0, "hue", "frequency"), (1, "frequency", "hue")):
        probe = probes[group, knows]
        assert probe.score == pytest.approx(0.8, abs=0.05)  # 1 / (1 + 1/4)
        assert probes[group, does_not].score == pytest.approx(0, abs=0.05)
        assert (probe.metric, probe.chance, probe.filters, probe.dead) == ("R²", 0.0, 4, 0)
        # Of four filters drawn from eight, m know with the odds of a hypergeometric law: Σ P(m) m / (m + 1).
        expected = (16 * 1 / 2 + 36 * 2 / 3 + 16 * 3 / 4 + 1 * 4 / 5) / 70
        assert probe.null.mean() == pytest.approx(expected, abs=4 * 0.118 / 20**0.5)  # whose SD is 0.118
        assert probe.excess == pytest.approx(probe.score - probe.null.mean())
        assert probe.p is not None
        assert probe.p < 0.3


def test_the_null_of_a_dense_layer_is_drawn_from_it():
    features, labels, targets = planted()
    dense = np.random.default_rng(5).normal(size=(len(features), 20))
    probe = group_probes(features, labels, {"hue": targets["hue"]}, dense, draws=19)[0]
    assert probe.null.max() < 0.05
    assert probe.p == pytest.approx(2 / 20)


def test_classes_are_scored_against_one_over_their_number():
    features, labels, _ = planted()
    classes = np.digitize(features[:, 0], [-0.5, 0.5])
    probe = group_probes(features, labels, {"class": classes}, draws=0)[0]
    assert (probe.metric, probe.chance, probe.p) == ("balanced accuracy", pytest.approx(1 / 3), None)
    assert probe.score > 0.5


def test_guards_speak():
    features, labels, targets = planted(30)
    hue = targets["hue"].copy()
    hue[:3] = np.nan
    features[:, 1] = 5
    probe = group_probes(features, labels, {"hue": hue}, draws=2)[0]
    assert "3 of 30 images have no such target" in probe.note
    assert probe.dead == 1
    assert "its null is itself" in group_probes(features, np.zeros(8), {"hue": hue}, draws=2)[0].note
    wide = np.random.default_rng(6).normal(size=(30, 40))
    assert "mostly its penalty" in group_probes(wide, np.repeat([0, 1], [30, 10]), targets, draws=0)[0].note


def test_what_cannot_be_probed_is_refused():
    features = np.random.default_rng(7).normal(size=(20, 3))
    with pytest.raises(ValueError, match="there is nothing to predict"):
        probe_score(features, np.full(20, 0.1))
    with pytest.raises(ValueError, match="4 images with a target"):
        probe_score(features, np.r_[np.ones(4), np.full(16, np.nan)])
    with pytest.raises(ValueError, match=r"\{0: 17, 1: 3\}: a probe needs two classes, and 5 images of each"):
        probe_score(features, np.repeat([0, 1], [17, 3]))
    with pytest.raises(ValueError, match="do not fit"):
        probe_score(features, np.ones(19))
    with pytest.raises(ValueError, match="do not fit"):
        group_probes(features, [0, 1], {})
    with pytest.raises(ValueError, match="cannot be drawn"):
        group_probes(features, [0, 0, 0], {}, null_features=features[:, :2])


def test_of_groups_that_are_no_different_p_is_uniform(monkeypatch):
    """Scores are the sum of what each filter knows; the filters are dealt to the group at random."""
    monkeypatch.setattr("analysis.probes.probe_score", lambda features, *_: float(features[0].sum()))
    rng, p = np.random.default_rng(6), []
    for draw in range(500):
        features, labels = rng.normal(size=(4, 40)), rng.permutation(np.repeat([0, -1], [12, 28]))
        (probe,) = group_probes(features, labels, {"class": np.array([0, 0, 1, 1])}, draws=99, seed=draw)
        p.append(probe.p)
    assert kstest(p, "uniform").pvalue > 0.01
