"""A study in one picture, from tables and arrays."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from analysis.figures import overview, page
from analysis.figures.saved import Saved
from analysis.nulls import LABELS_PERMUTED
from figure_checks import checked, long_names


def saved(variants, seeds, groups):
    rng = np.random.default_rng(0)
    rows = []
    for variant in variants:
        for seed in range(seeds):
            values = {("test_accuracy", ""): 0.8 + 0.01 * seed, (overview.SEPARATION, ""): 0.5 + 0.05 * seed}
            values |= {(overview.SEPARATION, LABELS_PERMUTED): 0.55, ("latency", ""): 1.0 + 0.1 * len(rows)}
            rows += [(variant, seed, "conv1", measure, null, value) for (measure, null), value in values.items()]
    table = pd.DataFrame(rows, columns=["variant", "seed", "layer", "measure", "null", "value"])
    table.loc[table["measure"].isin(["test_accuracy", "latency"]), "layer"] = ""
    arrays = {"filters": rng.normal(size=(32, 3, 5, 5)), "colour_index": rng.random(32), "learned": np.arange(32) > 2}
    arrays["filter_groups"] = np.arange(32) * groups // 32
    return Saved(table.assign(study="s", groups="", unit=""), {variants[0]: arrays}, None, pd.DataFrame())


@pytest.mark.parametrize(
    ("variants", "seeds", "groups"),
    [(["groups-2"], 1, 2), (["groups-2", "groups-4", "dense"], 12, 4), (long_names(9), 8, 8)],
)
def test_it_fits_the_page_with_few_and_many_variants_and_seeds(tmp_path, variants, seeds, groups):
    page.apply_style()
    checked(overview.draw(saved(variants, seeds, groups), tmp_path))


def test_every_seed_is_drawn_with_its_null(tmp_path, monkeypatch):
    monkeypatch.setattr(page, "save", lambda figure, _folder, _name: [figure])
    (figure,) = overview.draw(saved(["groups-2"], 6, 2), tmp_path)
    nulls, seeds = figure.axes[1].lines[1:3]
    assert list(seeds.get_ydata()) == pytest.approx([0.5, 0.55, 0.6, 0.65, 0.7, 0.75])
    assert list(nulls.get_ydata()) == [0.55] * 6
    plt.close(figure)


def test_a_seed_of_which_most_filters_are_noise_has_no_mark(tmp_path, monkeypatch):
    monkeypatch.setattr(page, "save", lambda figure, _folder, _name: [figure])
    made = saved(["groups-2"], 4, 2)
    rows = [("groups-2", seed, "conv1", "learned_filters", "", share) for seed, share in enumerate((0.9, 0.5, 0.49, 0))]
    learned = pd.DataFrame(rows, columns=["variant", "seed", "layer", "measure", "null", "value"])
    table = pd.concat([made.measures, learned.assign(study="s", groups="", unit="")])
    (figure,) = overview.draw(Saved(table, made.arrays, None, pd.DataFrame()), tmp_path)
    nulls, seeds = figure.axes[1].lines[1:3]
    assert list(seeds.get_ydata()) == pytest.approx([0.5, 0.55])
    assert len(nulls.get_ydata()) == 2
    plt.close(figure)


@pytest.mark.parametrize(("variants", "labels"), [(["groups-2", "dense"], 2), ([f"uniform-{n}" for n in range(9)], 0)])
def test_variants_are_named_below_the_marks_where_their_names_fit(tmp_path, monkeypatch, variants, labels):
    monkeypatch.setattr(page, "save", lambda figure, _folder, _name: [figure])
    (figure,) = overview.draw(saved(variants, 3, 2), tmp_path)
    assert [label.get_text() for label in figure.axes[1].get_xticklabels()] == variants[:labels]
    assert len(figure.legends[0].get_texts()) == len(variants)
    plt.close(figure)


def test_every_seed_is_a_dot_at_its_accuracy(tmp_path, monkeypatch):
    monkeypatch.setattr(page, "save", lambda figure, _folder, _name: [figure])
    (figure,) = overview.draw(saved(["groups-2"], 2, 2), tmp_path)
    assert list(figure.axes[2].lines[0].get_ydata()) == pytest.approx([0.8, 0.81])
    plt.close(figure)


def test_without_groups_in_the_first_layer_there_is_none(tmp_path):
    assert overview.draw(saved(["dense"], 3, 1), tmp_path) == []


def test_a_group_that_learned_no_filter_has_a_dash(tmp_path, monkeypatch):
    monkeypatch.setattr(page, "save", lambda figure, _folder, _name: [figure])
    made = saved(["groups-2"], 1, 2)
    made.arrays["groups-2"]["learned"][16:] = False
    made.arrays["groups-2"]["colour_index"][:] = 0.25
    (figure,) = overview.draw(made, tmp_path)
    assert figure.axes[0].get_title().endswith("0.25 (13 of 16), – (0 of 16)")
    plt.close(figure)
