"""Importance finds what was planted, and says where it can say nothing; both figures of a sweep are drawn."""

import numpy as np
import pandas as pd
import pytest

from analysis.figures import importance as importance_figure
from analysis.figures import parallel_coordinates
from analysis.importance import AT_LEAST, parameter_importance
from figure_checks import checked

SCALES = {"recipe.lr": "log", "recipe.momentum": "linear", "model.groups": "category"}


@pytest.fixture(autouse=True)
def small_forests(monkeypatch):
    monkeypatch.setattr("analysis.importance.CUTS", 2)
    monkeypatch.setattr("analysis.importance.TREES", 20)


def sweep_table(runs=40, seed=0):
    """The metric rises with the logarithm of the rate, and by 0.3 with one category; momentum does nothing."""
    rng = np.random.default_rng(seed)
    table = pd.DataFrame(
        {
            "state": "done",
            "recipe.lr": 10 ** rng.uniform(-3, 0, runs),
            "recipe.momentum": rng.uniform(0, 1, runs),
            "model.groups": rng.choice(["1", "2", "log:4"], runs),
        }
    )
    table["test_accuracy"] = np.log10(table["recipe.lr"]) / 3 + 0.3 * (table["model.groups"] == "log:4")
    return table


def test_what_was_planted_is_found():
    importance = parameter_importance(sweep_table(), list(SCALES), "test_accuracy").set_index("parameter")
    assert list(importance.index)[:2] == ["recipe.lr", "model.groups"]
    assert importance.loc["recipe.lr", "importance"] > 0.5
    assert abs(importance.loc["recipe.momentum", "importance"]) < 0.1
    assert (importance["low"] <= importance["importance"]).all()
    assert (importance["importance"] <= importance["high"]).all()
    assert (importance["n"] == 40).all()
    assert importance["explained"].iloc[0] > 0.5
    assert np.isnan(importance.loc["model.groups", "correlation"]), "categories have no ranks"


def test_rank_correlation_is_one_for_any_rising_function():
    table = sweep_table(12)
    table["test_accuracy"] = np.exp(table["recipe.lr"])
    importance = parameter_importance(table, ["recipe.lr"], "test_accuracy")
    assert importance["correlation"].item() == pytest.approx(1)


def test_noise_is_not_explained():
    table = sweep_table(30)
    table["test_accuracy"] = np.random.default_rng(1).normal(size=30)
    importance = parameter_importance(table, list(SCALES), "test_accuracy")
    assert importance["explained"].iloc[0] < 0.2
    assert importance["importance"].abs().max() < 0.6


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.head(AT_LEAST - 1), f"at least {AT_LEAST} runs.*there are {AT_LEAST - 1}"),
        (lambda t: t.assign(test_accuracy=0.5), "0.5 in all 40"),
        (lambda t: t.assign(test_accuracy=np.nan), "there are 0"),
        (lambda t: t.assign(**{"recipe.lr": 1.0, "recipe.momentum": 0.9, "model.groups": "1"}), "that varies"),
    ],
    ids=["few", "constant", "undefined", "nothing varied"],
)
def test_where_nothing_can_be_said_one_line_says_why(change, words):
    with pytest.raises(ValueError, match=words):
        parameter_importance(change(sweep_table()), list(SCALES), "test_accuracy")


@pytest.fixture
def captions(monkeypatch):
    said = []
    caption = importance_figure.page.caption
    monkeypatch.setattr(
        "analysis.figures.page.caption", lambda figure, text: said.append(text) or caption(figure, text)
    )
    return said


@pytest.mark.parametrize(("runs", "doubted"), [(12, True), (24, False)])
def test_the_importance_figure_says_its_n_and_doubts_few_runs(tmp_path, captions, runs, doubted):
    table = parameter_importance(sweep_table(runs), list(SCALES), "test_accuracy")
    checked(importance_figure.draw(table, "test_accuracy", tmp_path))
    assert f"{runs} runs" in captions[0]
    assert ("neither is reliable" in captions[0]) == doubted


def test_parallel_coordinates_draw_every_run_and_count_the_unfinished(tmp_path, captions):
    table = sweep_table(10)
    table.loc[[1, 2, 3], "state"] = ["stopped", "diverged", "failed"]
    table.loc[3, "test_accuracy"] = np.nan
    checked(parallel_coordinates.draw(table, SCALES, "test_accuracy", True, tmp_path))
    assert "7 runs that came to their end" in captions[0]
    assert "Dashed grey: 2 " in captions[0]
    assert "1 without any value" in captions[0]


@pytest.mark.parametrize("runs", [1, 2])
def test_parallel_coordinates_of_few_runs_and_long_names(tmp_path, runs):
    names = {f"measures.a_parameter_with_a_very_long_name_{k}": "category" for k in range(8)}
    table = pd.DataFrame({"state": ["done"] * runs, "test_accuracy": [0.5] * runs, **dict.fromkeys(names, "x" * 30)})
    checked(parallel_coordinates.draw(table, names, "test_accuracy", False, tmp_path))


def test_nothing_is_drawn_of_nothing(tmp_path):
    none = sweep_table(6).assign(state="failed")
    assert parallel_coordinates.draw(none, SCALES, "test_accuracy", True, tmp_path) == []
    assert importance_figure.draw(pd.DataFrame(columns=["parameter"]), "test_accuracy", tmp_path) == []
