"""Names and marks that stay distinct, and the figures of filters, matrices, cost and learning at paper width."""

from itertools import pairwise

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from analysis.figures import correlation, curves, equal_cost, filters, matrices, page, speed, tradeoff
from analysis.figures.matrices import Matrix
from analysis.figures.saved import Saved
from analysis.tradeoff import front_table
from figure_checks import checked, long_names


@pytest.fixture(autouse=True)
def style():
    page.apply_style()


def arrays(groups, filters=12, layers=("conv1",)):
    rng = np.random.default_rng(0)
    saved_arrays = {
        "filters": rng.normal(size=(filters, 3, 5, 5)),
        "colour_index": rng.uniform(size=filters),
        "learned": rng.uniform(size=filters) < 0.7,
    }
    saved_arrays |= {f"correlation {layer}": np.corrcoef(rng.normal(size=(filters, 50))) for layer in layers}
    if groups > 1:
        labels = np.arange(filters) % groups
        saved_arrays |= {"filter_groups": labels} | {f"groups {layer} read": labels for layer in layers}
    return saved_arrays


@given(st.lists(st.text("abc-.", min_size=1, max_size=40), unique=True, max_size=20), st.integers(8, 30))
def test_short_names_fit_and_stay_apart(names, length):
    short = page.short_names(names, length)
    assert list(short) == names
    assert len(set(short.values())) == len(names)
    assert all(len(text) <= length for text in short.values())
    if all(len(name) <= length for name in names):
        assert short == {name: name for name in names}


def test_long_names_lose_their_middle():
    assert page.short_names(["abcdefghij"], 7) == {"abcdefghij": "abc…hij"}
    assert page.short_names(["abcXefgh", "abcYefgh"], 7) == {"abcXefgh": "abc…fgh", "abcYefgh": "ab…gh#2"}


def test_names_break_after_dots_hyphens_and_spaces():
    assert page.wrapped("stage2.3.reduce.0", 9) == "stage2.3.\nreduce.0"
    assert page.wrapped("conv2, computed", 15) == "conv2, computed"
    assert page.wrapped("conv2, computed", 10) == "conv2,\ncomputed"
    assert page.wrapped("uniform-4-no-shortcut", 10, 3) == "uniform-4-\nno-\nshortcut"
    assert page.wrapped("features.10.conv", 9) == "features.\n10.conv"
    assert page.wrapped("index 0.29 (3), 0.35 (6)", 17) == "index 0.29 (3),\n0.35 (6)", "numbers stay whole"
    assert page.wrapped("a.bb.cc", 3) == "a.\nb…c", "what does not fit into the last line is left out"


def test_variants_differ_by_marker_or_line_where_colours_repeat():
    styles = list(page.variant_styles([str(k) for k in range(98)]).values())
    assert len({(s.colour, s.marker) for s in styles}) == 98
    assert len({(s.colour, s.line) for s in styles[:14]}) == 14, "distinct without markers too"
    assert len({s.colour for s in styles[:7]}) == 7


@pytest.mark.parametrize("names", [["a", "b"], long_names(14)], ids=["short", "long"])
def test_a_legend_stays_within_the_page(names):
    figure, panel = plt.subplots(figsize=(page.WIDTH, 2), layout="constrained")
    page.legend(figure, [panel.plot([])[0] for _ in names], names)
    figure.draw_without_rendering()
    box = figure.legends[0].get_window_extent()
    assert 0 <= box.x0 < box.x1 <= page.WIDTH * figure.dpi
    assert len({text.get_text() for text in figure.legends[0].get_texts()}) == len(names)
    plt.close(figure)


def test_filters_and_matrices_are_drawn(tmp_path):
    both = {"dense": arrays(1), "log-3": arrays(3)}
    checked(filters.draw(Saved(arrays=both), tmp_path))
    checked(correlation.draw(Saved(arrays=both), tmp_path))


def test_without_rgb_filters_there_is_no_figure(tmp_path):
    assert filters.draw(Saved(arrays={"dense": {}}), tmp_path) == []
    assert correlation.draw(Saved(arrays={"dense": {}}), tmp_path) == []


def test_titles_of_groups_by_hand():
    """At 6 points a character takes 0.0522 inches."""
    means, counts = [0.66, np.nan], [(3, 8), (0, 8)]
    assert filters.titles([0, 1.5, 3], means, counts) == ["group 1: 0.66 (3 of 8)", "group 2: – (0 of 8)"]
    assert filters.titles([0, 0.8, 1.6], means, counts) == ["1: 0.66 (3)", "2: – (0)"], "short forms"
    assert filters.titles([0, 0.45, 0.9], means, counts) == ["1: 0.66", "2: –"]
    assert filters.titles([0, 0.25, 0.5], means, counts) == ["0.66", "–"]
    assert filters.titles([0, 0.1, 0.5], [0.66, 0.5], counts) == ["", "0.50"], "none beyond what fits"
    assert filters.titles([0, 0.4], [0.5], [(3, 8)]) == ["all: 0.50 (3 of 8)"]
    assert filters.titles([0, 0.4], [1.0], [(8, 8)]) == ["all: 1.00 (8 of 8)"]


@pytest.mark.parametrize("groups", [8, 16])
def test_titles_of_many_groups_do_not_meet(tmp_path, monkeypatch, groups):
    boxes = []

    def measure(figure, text):
        figure.draw_without_rendering()
        boxes.extend(text.get_window_extent() for text in figure.axes[0].texts if text.get_text())

    monkeypatch.setattr(filters.page, "caption", measure)
    checked(filters.draw(Saved(arrays={"groups": arrays(groups, 96)}), tmp_path))
    assert len(boxes) == groups
    assert all(left.x1 < right.x0 for left, right in pairwise(boxes))


def test_a_mosaic_places_filters_column_by_column_on_grey():
    weights = np.zeros((3, 3, 2, 2))
    weights[1] = 1.0
    image = filters._mosaic(weights, rows=2)
    assert image.shape == (5, 5, 3)
    assert image[0, 0].tolist() == [0.5] * 3  # zero is grey
    assert image[3, 0].tolist() == [1.0] * 3  # the second filter, below the first, at its largest weight
    assert image[2].tolist() == [[1.0] * 3] * 5  # a white line between


def test_a_matrix_is_sorted_by_group_with_lines_between():
    values = np.arange(12.0).reshape(3, 4)
    matrix, down, across = matrices.in_blocks(Matrix(values, np.array([1, 0, 1]), np.array([0, 1, 0, 2])))
    assert matrix.tolist() == [[4, 6, 5, 7], [0, 2, 1, 3], [8, 10, 9, 11]]
    assert down.tolist() == [0.5], "one row of the first group"
    assert across.tolist() == [1.5, 2.5]
    matrix, down, across = matrices.in_blocks(Matrix(values))
    assert matrix.tolist() == values.tolist()
    assert down.size == across.size == 0


@given(st.integers(1, 40), st.integers(1, 12), st.integers(0, 3))
def test_matrices_fit_on_their_pages(variants, columns, parts):
    layout = matrices.lay_out(variants, [f"stage{k}.3.reduce.0" for k in range(columns)], [("on blocks 0.50",) * parts])
    assert matrices.NAMES + matrices.BAR + columns * (layout.side + matrices.GAP) <= page.WIDTH + 1e-9
    assert matrices.TOP + layout.heading + layout.rows * layout.pitch <= page.HEIGHT + 1e-9
    assert layout.side >= min(matrices.LEAST, layout.broad) - 1e-9, "rather another page than panels too small"
    assert layout.lines <= parts
    assert 1 <= layout.rows <= variants


def test_groups_are_named_once_where_all_variants_have_the_same(tmp_path, monkeypatch):
    drawn = {}
    monkeypatch.setattr(
        matrices, "draw", lambda variants, columns, matrix_of, *rest: drawn.update(c=columns, m=matrix_of)
    )
    computed = {**arrays(2), "groups conv1 computed": np.arange(12) % 2}
    correlation.draw(Saved(arrays={"dense": arrays(1), "a": arrays(2)}), tmp_path)
    assert drawn["c"] == ["conv1, read"]
    assert {m.title for m in drawn["m"].values()} == {()}
    correlation.draw(Saved(arrays={"dense": arrays(1), "a": arrays(2), "b": computed}), tmp_path)
    assert drawn["c"] == ["conv1"]
    assert [m.title for m in drawn["m"].values()] == [(), ("read",), ("computed",)]


@pytest.mark.parametrize("seeds", [1, 3])
def test_accuracy_against_cost_and_curves_are_drawn(tmp_path, seeds):
    checked(tradeoff.draw(with_fronts(study(("dense", "groups-2"), seeds)), tmp_path))
    checked(curves.draw(Saved(curves=history(("dense", "groups-2"), seeds)), tmp_path))


def study(variants, seeds, **more):
    measures = {"test_accuracy": 0.8, "macs": 1e6, "parameters": 5e4, "latency": 0.3, **more}
    return pd.DataFrame(
        {"variant": v, "seed": s, "layer": "", "measure": m, "value": value * (1 + 0.01 * s + 0.02 * k)}
        for k, v in enumerate(variants)
        for s in range(seeds)
        for m, value in measures.items()
    )


def with_fronts(rows):
    return Saved(rows, fronts=front_table(rows))


def history(variants, seeds):
    return pd.DataFrame(
        {"variant": v, "seed": s, "epoch": e, "train_loss": s + 1 / e, "test_accuracy": np.nan if e == 1 else 0.5}
        for v in variants
        for s in range(seeds)
        for e in (1, 2, 3)
    )


def paired(groups, sizes, families):
    """Return a study of variants ``v0``, ``v1``, … whose accuracy rises by .01 from one to the next, in two seeds."""
    rows = [
        row
        for k, (cut, size) in enumerate(zip(groups, sizes, strict=True))
        for seed in (0, 1)
        for row in (
            (f"v{k}", seed, "", "test_accuracy", "", 0.5 + 0.01 * k + 0.2 * seed),
            (f"v{k}", seed, "", "parameters", "", size),
            (f"v{k}", seed, "conv2", "dead_filters", cut, 0.0),
        )
    ]
    table = pd.DataFrame(rows, columns=["variant", "seed", "layer", "measure", "groups", "value"])
    runs = pd.DataFrame({"variant": [f"v{k}" for k in range(len(groups))], "family": families})
    return Saved(table.assign(null="", unit=""), runs=runs)


def test_pairs_are_logarithmic_less_uniform_of_one_family():
    # v3 is uniform as far as whole channels allow; v4 and v5 are neither; v6 is of another family.
    groups = ["4", "log:4", "1", "9,8,8,8", "5,3,2", "7,1,1,1", "4"]
    saved = paired(groups, [100, 200, 300, 202, 400, 200, 200], [*["a"] * 6, "b"])
    pairs = equal_cost.logarithmic_against_uniform(saved.measures, dict(saved.runs.values))
    assert list(zip(pairs["equal"], pairs["pair"], strict=True)) == [
        ("groups", "v1 − v0"),
        ("groups", "v1 − v3"),
        ("parameters", "v1 − v3"),
    ]
    np.testing.assert_allclose(pairs["mean"], [0.01, -0.02, -0.02])
    np.testing.assert_allclose(pairs["seeds"].iloc[0], [0.01, 0.01])


def test_variants_of_unknown_families_are_not_compared(tmp_path):
    unknown = paired(["4", "log:4"], [1, 1], [np.nan, np.nan])
    assert equal_cost.draw(unknown, tmp_path) == []


def test_ticks_that_are_close_have_digits_in_which_they_differ(tmp_path, monkeypatch):
    labels = []
    save = page.save

    def read(figure, *where):
        figure.draw_without_rendering()
        labels.extend(label.get_text() for label in figure.axes[0].get_xticklabels())
        return save(figure, *where)

    monkeypatch.setattr(page, "save", read)
    rows = study(["a", "b"], 2)
    rows.loc[rows["measure"] == "parameters", "value"] = np.where(
        rows.loc[rows["measure"] == "parameters", "variant"] == "a", 21_500_000, 21_600_000
    )
    tradeoff.draw(with_fronts(rows), tmp_path)
    assert len(labels) >= 3
    assert len(set(labels)) == len(labels)
    assert all(label.endswith("M") for label in labels)


def test_without_a_cost_nothing_is_drawn(tmp_path):
    rows = study(["a", "b"], 2)
    assert tradeoff.draw(with_fronts(rows[rows["measure"] == "test_accuracy"]), tmp_path) == []


def test_pairs_at_equal_cost_fit_on_a_page(tmp_path):
    count = 12
    many = paired([["4", "log:4"][k % 2] for k in range(count)], [100] * count, ["a"] * count)
    checked(equal_cost.draw(many, tmp_path))
    assert equal_cost.draw(paired(["4", "log:4"], [1, 1], ["a", "b"]), tmp_path) == []


def test_many_variants_with_long_names_stay_on_the_page(tmp_path):
    names = long_names(14)
    checked(tradeoff.draw(with_fronts(study(names, 2, peak_memory=5e7, energy=1e-3)), tmp_path))
    checked(curves.draw(Saved(curves=history(names, 2)), tmp_path))
    many = {name: arrays(k % 5 + 1, 24, ["stage1.3.reduce.0"]) for k, name in enumerate(names)}
    checked(filters.draw(Saved(arrays=many), tmp_path))
    assert len(checked(correlation.draw(Saved(arrays=many), tmp_path))) == 4, "two pages"
    deep = arrays(4, 24, [f"stage{j}.3.reduce.0" for j in range(20)])
    checked(correlation.draw(Saved(arrays={names[0]: deep}), tmp_path))


def test_costs_are_shown_where_they_were_measured():
    summary = tradeoff.tradeoff_table(study(("a", "b"), 1, energy=2.0))
    assert tradeoff.costs_shown(summary) == ["parameters", "macs", "latency", "energy"]
    assert tradeoff.costs_shown(summary.assign(latency=0.0, energy=np.nan)) == ["parameters", "macs"]


def test_the_front_is_ringed_and_dotted_where_it_is_not_sure():
    figure, panel = plt.subplots()
    rows = [(1.0, 0.5, True, 0.75), (2.0, 0.4, False, 0.25), (3.0, 0.3, False, 0.01), (4.0, 0.2, False, np.nan)]
    columns = ["at", "value", "on_front", "probability"]
    assert tradeoff._draw_front(panel, pd.DataFrame(rows, columns=columns))
    drawn = panel.collections
    assert [c.get_offsets().tolist() for c in drawn] == [[[1.0, 0.5]], [[2.0, 0.4]]], "hardly ever: no ring"
    assert [len(c.get_facecolor()) for c in drawn] == [0, 0], "nothing lies under a mark"
    assert [c.get_linestyle()[0][1] is None for c in drawn] == [True, False]
    assert not tradeoff._draw_front(panel, pd.DataFrame(rows[:1], columns=columns))
    plt.close(figure)


def test_bytes_are_shown_in_megabytes(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(page, "save", lambda figure, *_: drawn.append(figure) or [])
    tradeoff.draw(with_fronts(study(("dense", "groups-2"), 1, peak_memory=5e7)), tmp_path)
    panel = drawn[0].axes[3]
    assert panel.get_xlabel() == "memory of a training step (MB)"
    assert panel.xaxis.get_major_formatter()(5e7, 0) == "50"
    plt.close("all")


def test_layers_of_the_kernels_are_spelt_out():
    assert speed.in_words("64@32") == "64 channels, 32×32"
    assert speed.in_words("128@28/3x3/2") == "128 channels, 28×28, kernel 3×3, stride 2"


def test_native_is_seen_where_another_way_takes_as_long(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(page, "save", lambda figure, *_: drawn.append(figure) or [])
    rows = [("64@32", "2", "float32", "step", kernel, 1.0, 0.9, 1.1, 0.5) for kernel in ("dense", "native", "ours")]
    columns = ["layer", "partition", "dtype", "op", "kernel", "median", "lower", "upper", "ideal"]
    speed.draw(pd.DataFrame(rows, columns=columns), tmp_path)
    native, ours = (container[0] for container in drawn[0].axes[0].containers)
    assert native.get_markersize() > 1.5 * ours.get_markersize() and native.get_markerfacecolor() == "none"
    assert native.get_zorder() > ours.get_zorder()
    plt.close("all")


def test_a_curve_is_the_mean_and_the_range_over_seeds():
    table = history(("a", "b"), 3).assign(test_accuracy=lambda t: t["test_accuracy"] + t["seed"] / 10)
    assert curves.by_epoch(table, "a", "train_loss").loc[2].tolist() == [1.5, 0.5, 2.5]
    by_epoch = curves.by_epoch(table, "a", "test_accuracy")
    assert by_epoch.index.tolist() == [2, 3], "epochs without evaluation are left out"
    assert by_epoch.loc[2].tolist() == pytest.approx([0.6, 0.5, 0.7])


def test_a_bare_figure_is_as_wide_as_asked_and_has_its_text_in_a_file(tmp_path, monkeypatch):
    for name in ("FORMATS", "WIDTH", "BARE"):
        monkeypatch.setattr(page, name, getattr(page, name))
    page.set_output(("svg", "png"), 3.25, True)
    paths = tradeoff.draw(with_fronts(study(("dense", "groups-2"), 1)), tmp_path)
    assert [path.name for path in paths] == ["tradeoff.svg", "tradeoff.png", "tradeoff.txt"]
    with Image.open(paths[1]) as image:
        assert image.width == pytest.approx(3.25 * 200, abs=2)
    assert paths[2].read_text().startswith("Accuracy against cost (1 seed, no interval). Ringed: on the Pareto front")
    assert "Pareto" not in paths[0].read_text(), "no caption inside"


@pytest.mark.parametrize("width", [3.25, 5.5])
def test_no_figure_of_a_study_runs_over_a_column(tmp_path, monkeypatch, width):
    for name in ("FORMATS", "WIDTH", "BARE"):
        monkeypatch.setattr(page, name, getattr(page, name))
    page.set_output(("png",), width, True)
    both = {"dense": arrays(1), "log-3": arrays(3)}
    drawn = [*filters.draw(Saved(arrays=both), tmp_path), *correlation.draw(Saved(arrays=both), tmp_path)]
    drawn += curves.draw(Saved(curves=history(("dense", "groups-2"), 2)), tmp_path)
    for path in [path for path in drawn if path.suffix == ".png"]:
        with Image.open(path) as image:
            assert image.width == pytest.approx(width * 200, abs=2)
