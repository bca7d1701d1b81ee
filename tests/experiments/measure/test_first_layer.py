"""Rows on the first layer, of networks whose filters were made by hand."""

import numpy as np
import pytest
import torch

from experiments.data.augment import Views
from experiments.measure.context import prepare
from experiments.measure.first_layer import measure_first_layer
from experiments.measure.options import MeasureOptions
from experiments.measure.table import gather
from experiments.models import build_model
from experiments.training.recipe import Recipe
from experiments.training.run_context import RunContext
from tiny_images import tiny_dataset

SIZE = 12


@pytest.fixture(autouse=True)
def few_crops(monkeypatch):
    monkeypatch.setattr("experiments.measure.first_layer.CROPS", 2)


def pattern(colour, fine):
    """A grating, grey or red against green, fine or broad, of 5 × 5 pixels."""
    wave = np.cos(np.arange(5) * (2.5 if fine else 0.6))
    plane = np.tile(wave, (5, 1))
    return np.stack([plane, -plane if colour else plane, 0 * plane if colour else plane])


def prepared(filters, groups, initial=0.0, known=True):
    """The small network with these filters in conv1, which began as noise so large, ready to be measured."""
    torch.manual_seed(0)
    trained, untrained = (build_model("small", classes=2, groups=groups, width=len(filters)) for _ in range(2))
    start = torch.randn(len(filters), 3, 5, 5, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        untrained.conv1.weight.copy_(start)
        trained.conv1.weight.copy_(torch.as_tensor(np.stack(filters)) + initial * start)
    run_context = RunContext.of(tiny_dataset(SIZE), Views(image_size=SIZE, crop_size=SIZE), Recipe(device="cpu"))
    options = MeasureOptions(images=8, permutations=199)
    return prepare(trained, untrained, run_context, options, initialisation_known=known)


def measured(filters, groups, initial=0.0, known=True):
    """Rows by (measure, null), and notes."""
    context = prepared(filters, groups, initial, known)
    measured = gather(measure_first_layer(context), "study", "variant", 0)
    return {(row["measure"], row["null"]): row["value"] for _, row in measured.table.iterrows()}, measured.notes


def test_groups_that_read_grey_and_coloured_filters_are_a_colour_split():
    """The index of a grey filter is 0, that of red against green 1, so the groups differ by 1.

    Less what the projection on an unrelated start takes: 1/75 of the energy on average.
    """
    values, _ = measured([pattern(k >= 6, k % 2) * (1 + k / 9) for k in range(12)], 2)
    assert values["learned_filters", ""] == 1
    assert values["colour_difference", ""] == pytest.approx(1, abs=0.05)
    assert values["separation_colour_auc", ""] == 1
    assert values["colour_split", ""] == 1
    assert values["separation_colour_auc", "labels permuted"] < 0.8
    assert values["colour_difference", "labels permuted"] < 0.5


def test_filters_that_kept_their_initialisation_are_no_colour_split():
    """Half of the filters grew from noise into grey. The others hardly left it: they are not learned."""
    values, _ = measured([pattern(False, k % 2) * (9 if k < 6 else 0.1) for k in range(12)], 2, initial=1.0)
    assert values["learned_filters", ""] == 0.5
    assert values["colour_index", ""] < 0.1
    assert ("colour_split", "") not in values


def test_without_a_known_initialisation_filters_are_taken_as_they_are_and_a_note_says_so():
    values, notes = measured([pattern(k >= 6, k % 2) * 9 for k in range(12)], 2, initial=1.0, known=False)
    assert "learned_energy" in set(notes["measure"])
    assert ("learned_energy", "") not in values and ("correlation_with_initialisation", "") not in values
    assert values["separation_colour_auc", ""] == 1


def test_a_dense_network_is_cut_in_contiguous_halves():
    values, _ = measured([pattern(k >= 6, k % 2) for k in range(12)], 1)
    assert values["colour_difference", "contiguous partition"] == pytest.approx(1, abs=0.05)
    assert values["colour_split", "contiguous partition"] == 1
    assert values["separation_colour_auc", "contiguous partition, labels permuted"] < 0.8


def test_frequency_is_compared_inside_the_colour_halves():
    """Groups: grey broad, grey fine, coloured broad, coloured fine; then frequency that follows colour alone."""
    split, _ = measured([pattern(k >= 8, k // 4 % 2) * (1 + k / 99) for k in range(16)], 4)
    assert split["separation_frequency_auc_within_colour", ""] == 1
    follows, _ = measured([pattern(k >= 8, k >= 8) * (1 + k / 99) for k in range(16)], 4)
    measure = "separation_frequency_auc_within_colour"
    assert follows[measure, ""] <= follows[measure, "labels permuted"] + 0.25
    assert follows["separation_frequency_auc", ""] > 0.8, "over all groups frequency separates, with colour"


def test_specialisation_is_the_squared_shift_less_what_groups_of_that_size_have_by_chance():
    """log:3 of 16 filters: 8, 4, 4; the last four are coloured, so index 1 among 12 of index 0: mean ¼, variance 3/16.

    The largest group has mean 0, its shift is (¼)² = 1/16; the mean square of a random mean of 8 of 16 is
    3/16 / 8 · (16 − 8) / 15 = .0125. In variances: (1/16 − .0125) / (3/16) = .2667.
    """
    values, _ = measured([pattern(k >= 12, k % 2) for k in range(16)], "log:3")
    assert values["specialisation_largest_group", ""] == pytest.approx(0.2667, abs=0.05)


def test_each_module_of_the_network_keeps_its_mode():
    context = prepared([pattern(k >= 6, k % 2) * 9 for k in range(12)], 2)
    context.network.train()
    context.network.get_submodule("conv2").eval()
    before = {name: module.training for name, module in context.network.named_modules()}
    gather(measure_first_layer(context), "study", "variant", 0)
    assert {name: module.training for name, module in context.network.named_modules()} == before
