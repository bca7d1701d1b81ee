import math
import weakref

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from analysis.correlation import correlation_matrix
from analysis.null_filters import random_filters
from analysis.responses import (
    CHUNK,
    Input,
    PairStatistics,
    Refiltered,
    ResponseStatistics,
    collect,
    collect_pairs,
    collect_responses,
)
from analysis.similarity import MomentStatistics
from gconv import GroupedConv2d


def samples(x):
    return x.movedim(1, 0).flatten(1).double()


@pytest.mark.parametrize("offset", [0.0, 1e4], ids=["centred", "far from zero"])
def test_streamed_covariance_equals_the_two_pass_formula(offset):
    torch.manual_seed(0)
    x = torch.randn(7, 5, 4, 3, dtype=torch.float64) @ torch.randn(3, 3, dtype=torch.float64) + offset
    statistics = ResponseStatistics()
    for part in x.split(3):
        statistics.add(part)
    assert statistics.count == 7 * 4 * 3
    torch.testing.assert_close(statistics.mean, samples(x).mean(1))
    torch.testing.assert_close(statistics.covariance, torch.cov(samples(x)), rtol=1e-9, atol=1e-9)


@settings(max_examples=30)
@given(data=st.data(), images=st.integers(2, 9), channels=st.sampled_from([1, 3, 129, 300]), side=st.integers(1, 4))
def test_the_covariance_does_not_depend_on_batches_or_layout(data, images, channels, side):
    x = torch.randn(images, channels, side, side + 1) * torch.linspace(0.5, 3, channels)[:, None, None] + 5
    expected = np.cov(samples(x).numpy()).reshape(channels, channels)
    statistics = ResponseStatistics()
    start = 0
    while start < images:
        end = data.draw(st.integers(start + 1, images))
        layout = data.draw(st.sampled_from([torch.contiguous_format, torch.channels_last]))
        statistics.add(x[start:end].to(memory_format=layout))
        start = end
    np.testing.assert_allclose(statistics.covariance, expected, rtol=1e-10, atol=1e-10)


def test_images_larger_than_what_is_taken_at_a_time_are_taken_whole():
    x = torch.randn(3, 2, 70, 70)
    assert x[0, 0].numel() > CHUNK["cpu"]
    statistics = ResponseStatistics()
    statistics.add(x)
    torch.testing.assert_close(statistics.covariance, torch.cov(samples(x)))


def test_responses_are_left_as_they_were():
    x = torch.randn(4, 3, 2, 2, dtype=torch.float64)
    before = x.clone()
    ResponseStatistics().add(x)
    PairStatistics().add(x, x)
    ResponseStatistics().add(x[:, :, 0, 0])
    assert torch.equal(x, before)


def test_one_pass_gathers_several_layers_in_evaluation_mode():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Dropout(0.9)).train()
    x = torch.randn(6, 3, 5, 5)
    gathered = collect_responses(model, x.split(2), ["0", "2"])
    with torch.no_grad():
        torch.testing.assert_close(gathered["0"].mean, model[0](x).double().mean((0, 2, 3)))
        model.eval()
        torch.testing.assert_close(gathered["2"].mean, model(x).double().mean((0, 2, 3)))
        model.train()
    collect_responses(model, [x], ["0"])
    assert model.training
    assert not model[0]._forward_hooks


def test_a_part_that_stood_in_evaluation_mode_still_does():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4).eval())
    collect_responses(model, [torch.randn(2, 3, 2, 2)], ["1"])
    assert (model.training, model[0].training, model[1].training) == (True, True, False)


def test_hooks_go_when_the_images_fail():
    model = nn.Sequential(nn.Conv2d(3, 4, 1))
    with pytest.raises(RuntimeError):
        collect(model, [torch.randn(1, 5, 2, 2)], {"0": ResponseStatistics(), Input("0"): ResponseStatistics()})
    assert not model[0]._forward_hooks
    assert not model[0]._forward_pre_hooks


def test_any_accumulator_gathers_inputs_and_outputs_in_one_pass():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(inplace=True), GroupedConv2d(4, 6, 1, groups=2))
    x = torch.randn(5, 3, 4, 4)
    gathered = collect(model, x.split(2), {tap: MomentStatistics() for tap in ("0", Input("2"), "2")})
    with torch.no_grad():
        before = model[0](x)  # what the activation, in place, has not touched
        read = before.relu()
        for tap, expected in (("0", before), (Input("2"), read), ("2", model[2](read))):
            covariance = torch.from_numpy(gathered[tap].moments.covariance)
            torch.testing.assert_close(covariance, torch.cov(samples(expected)))


def test_inputs_of_a_grouped_layer_correlate_by_the_group_that_reads_them():
    """Planted: two sources, each copied with noise of the same variance to the four inputs of one group: |r| = ½."""
    torch.manual_seed(0)
    model = nn.Sequential(GroupedConv2d(8, 4, 1, groups=2))
    x = torch.randn(200, 2, 10, 10).repeat_interleave(4, 1) + torch.randn(200, 8, 10, 10)
    gathered = collect(model, x.split(50), {Input("0"): ResponseStatistics()})[Input("0")]
    corr = correlation_matrix(gathered.covariance)
    np.testing.assert_allclose(corr, np.kron(np.eye(2), np.full((4, 4), 0.5)) + 0.5 * np.eye(8), atol=0.03)


def kept_bytes(statistics):
    tensors = [value for value in vars(statistics).values() if isinstance(value, torch.Tensor)]
    nested = [value for value in vars(statistics).values() if isinstance(value, ResponseStatistics)]
    return sum(t.untyped_storage().nbytes() for t in tensors) + sum(map(kept_bytes, nested))


def test_memory_does_not_grow_with_the_images():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AvgPool2d(2))
    alive = []

    def batches(count):
        for _ in range(count):
            x = torch.randn(4, 3, 12, 12)
            alive.append(weakref.ref(x))
            yield x
            assert sum(ref() is not None for ref in alive) <= 2

    def kept(count):
        alone = collect_responses(model, batches(count), ["0"])["0"]
        pair = collect_pairs(model, batches(count), [("0", "1")])["0", "1"]
        assert (alone.count, pair.count, pair.distinct) == (count * 400, count * 400, count * 100)
        return kept_bytes(alone), kept_bytes(pair)

    few, many = kept(2), kept(60)
    assert few == many
    assert few[0] == 8 * (8 + 8 + 8 * 8)  # shift, sum, products
    assert few[1] == 2 * few[0] + 8 * 8 * 8


@settings(max_examples=30)
@given(
    sides=st.tuples(st.integers(1, 7), st.integers(1, 7), st.integers(1, 7), st.integers(1, 7)),
    first_is_larger=st.booleans(),
    batch=st.integers(1, 5),
)
def test_pair_covariances_equal_those_of_upsampled_maps(sides, first_is_larger, batch):
    height, width = sorted(sides[:2]), sorted(sides[2:])
    large = torch.randn(5, 3, height[1], width[1]) + 7
    small = F.adaptive_avg_pool2d(large, (height[0], width[0]))[:, :2] + torch.randn(5, 2, height[0], width[0])
    upsampled = F.interpolate(small, size=large.shape[2:], mode="nearest")
    pair = (large, small) if first_is_larger else (small, large)
    whole = (large, upsampled) if first_is_larger else (upsampled, large)
    statistics = PairStatistics()
    for x, y in zip(pair[0].split(batch), pair[1].split(batch), strict=True):
        statistics.add(x, y)
    joint = torch.cov(torch.cat([samples(part) for part in whole]))
    cut = whole[0].shape[1]
    assert statistics.count == 5 * height[1] * width[1]
    assert statistics.distinct == 5 * height[0] * width[0]
    if statistics.count > 1:
        torch.testing.assert_close(statistics.first.covariance, joint[:cut, :cut])
        torch.testing.assert_close(statistics.second.covariance, joint[cut:, cut:])
        torch.testing.assert_close(statistics.cross_covariance, joint[:cut, cut:])


def test_pairs_are_gathered_before_an_activation_in_place_changes_them():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(inplace=True), nn.Conv2d(4, 2, 3, padding=1))
    x = torch.randn(4, 3, 5, 5)
    pair = collect_pairs(model, x.split(3), [("0", "2")])["0", "2"]
    with torch.no_grad():
        joint = torch.cov(torch.cat([samples(model[0](x)), samples(model(x))]))
    torch.testing.assert_close(pair.cross_covariance, joint[:4, 4:])


def test_maps_that_do_not_belong_together_are_refused():
    with pytest.raises(ValueError, match="same images"):
        PairStatistics().add(torch.zeros(2, 1, 3, 3), torch.zeros(3, 1, 3, 3))
    with pytest.raises(ValueError, match="no common one"):
        PairStatistics().add(torch.zeros(2, 1, 3, 5), torch.zeros(2, 1, 5, 3))


def test_a_layer_that_runs_twice_or_never_has_no_pair():
    shared = nn.ReLU()
    model = nn.Sequential(nn.Conv2d(3, 3, 1), shared, nn.Conv2d(3, 3, 1), shared)
    x = torch.randn(1, 3, 2, 2)
    with pytest.raises(ValueError, match="1 runs twice"):
        collect_pairs(model, [x], [("0", "1")])
    model = nn.Sequential(nn.Conv2d(3, 3, 1))
    model[0].spare = nn.ReLU()
    with pytest.raises(ValueError, match=r"0\.spare does not run"):
        collect_pairs(model, [x], [("0", "0.spare")])


def test_other_filters_see_the_inputs_of_the_trained_network():
    """On white inputs two 1 × 1 filters of one group correlate as their weights: r = cos(w, v); those of two, not."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 4, 1, bias=False), GroupedConv2d(4, 6, 1, groups=2))
    nn.init.eye_(model[0].weight.data.view(4, 4))
    trained = {name: value.clone() for name, value in model.state_dict().items()}
    x = torch.randn(400, 4, 8, 8)
    taps = [Refiltered("1", random_filters(model[1], seed)) for seed in (5, 6, 7)]
    statistics = collect(model, x.split(100), {tap: ResponseStatistics() for tap in taps})
    assert all(torch.equal(trained[name], value) for name, value in model.state_dict().items())
    assert not model[1]._forward_pre_hooks
    for tap in taps:
        w = tap.filters.weight.detach().view(2, 3, 2).double()
        cosine = F.cosine_similarity(w[:, :, None], w[:, None], dim=-1)
        expected = torch.block_diag(*cosine).numpy()
        np.testing.assert_allclose(correlation_matrix(statistics[tap].covariance), expected, atol=0.03)


def test_a_response_of_any_size_kills_no_other_filter():
    """Five filters of noise, and one that answers 1e30 once: all vary, and the five correlate as without it."""
    x = torch.randn(200, 6, 2, 2)
    alone = ResponseStatistics()
    alone.add(x[:, :5])
    x[0, 5, 0, 0] = 1e30
    whole = ResponseStatistics()
    whole.add(x)
    corr = correlation_matrix(whole.covariance)
    assert np.isfinite(corr).all()
    np.testing.assert_allclose(corr[:5, :5], correlation_matrix(alone.covariance), atol=1e-12)


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_responses_that_are_not_finite_concern_their_own_filter_alone(value):
    x = torch.randn(50, 3, 2, 2)
    x[7, 1, 0, 0] = value
    statistics = ResponseStatistics()
    statistics.add(x)
    corr = correlation_matrix(statistics.covariance)
    assert np.isnan(corr[1]).all() and np.isnan(corr[:, 1]).all()
    assert np.isfinite(corr[np.ix_([0, 2], [0, 2])]).all()


def test_a_constant_response_is_dead_whatever_its_size():
    x = torch.cat([torch.full((30, 1, 3, 3), 1e6 / 3), torch.randn(30, 1, 3, 3) * 1e-9], 1)
    statistics = ResponseStatistics()
    for part in x.split(7):
        statistics.add(part)
    corr = correlation_matrix(statistics.covariance)
    assert np.isnan(corr[0]).all() and corr[1, 1] == 1


@pytest.mark.parametrize("tap", ["conv9", Input("conv9")], ids=["output", "input"])
def test_an_unknown_layer_is_named_with_those_there_are(tap):
    with pytest.raises(ValueError, match=r"conv9.*there are: 0, 1"):
        collect(nn.Sequential(nn.ReLU(), nn.ReLU()), [], {tap: ResponseStatistics()})


def test_nothing_collected_is_said():
    with pytest.raises(ValueError, match="two samples"):
        _ = ResponseStatistics().covariance
    with pytest.raises(ValueError, match="two samples"):
        _ = PairStatistics().cross_covariance
