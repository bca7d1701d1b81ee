"""Figures of measures and their nulls: values set by hand, and a page with as much as fits."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from analysis.figures import (
    forest,
    interlayer,
    lesions,
    matrices,
    nulls,
    page,
    probes,
    separation,
    similarity,
)
from analysis.figures.saved import Saved
from analysis.nulls import without_cut
from figure_checks import checked, long_names

COLUMNS = ["variant", "seed", "layer", "measure", "null", "groups", "value", "unit"]


@pytest.fixture(autouse=True)
def style():
    page.apply_style()


def table(*rows):
    """Rows of variant, seed, layer, measure, null, value, as the long table has them."""
    full = [(v, s, layer, measure, null, "2", value, "") for v, s, layer, measure, null, value in rows]
    return pd.DataFrame(full, columns=pd.Index(COLUMNS))


def values(frame, *by):
    return dict(zip(frame[list(by)].itertuples(index=False, name=None), frame["mean"].round(12), strict=True))


def gap_rows(variant, seed, layer, side, null, within, between):
    return [(variant, seed, layer, f"{k}_{side}", null, x) for k, x in (("within", within), ("between", between))]


GAPS = table(
    *gap_rows("dense", 0, "conv1", "computed", "arbitrary partition", 0.25, 0.25),
    *gap_rows("dense", 0, "conv2", "computed", "spectral partition", 0.5, 0.2),
    *gap_rows("g2", 0, "conv1", "read", "", 0.4, 0.3),
    *gap_rows("g2", 0, "conv2", "computed", "", 0.6, 0.2),
    *gap_rows("g2", 1, "conv2", "computed", "", 0.7, 0.1),
    *gap_rows("g2", 0, "conv2", "computed", "untrained", 0.3, 0.2),
    *gap_rows("g2", 1, "conv2", "computed", "untrained", 0.5, 0.3),
    *gap_rows("g2", 2, "conv2", "computed", "", 0.5, 0.3),
    *gap_rows("g2", 0, "conv3", "computed", "random filters", 0.5, 0.1)[:1],
)


def test_the_gap_is_within_minus_between_and_its_rise_is_paired_by_seed():
    gap_table = nulls.gaps(GAPS)
    keys = ["variant", "seed", "layer", "side", "null"]
    gaps = dict(zip(gap_table[keys].itertuples(index=False, name=None), gap_table["value"].round(12), strict=True))
    assert gaps == {
        ("dense", 0, "conv2", "computed", "spectral partition"): 0.3,
        ("dense", 0, "conv1", "computed", "arbitrary partition"): 0,
        ("g2", 0, "conv1", "read", ""): 0.1,
        ("g2", 0, "conv2", "computed", ""): 0.4,
        ("g2", 1, "conv2", "computed", ""): 0.6,
        ("g2", 0, "conv2", "computed", "untrained"): 0.1,
        ("g2", 1, "conv2", "computed", "untrained"): 0.2,
        ("g2", 2, "conv2", "computed", ""): 0.2,
    }, "a layer without between has no gap"
    rises = nulls.rises(gap_table)
    assert dict(zip(rises["seed"], rises["value"].round(12), strict=True)) == {0: 0.3, 1: 0.4}, "seed 2 has no null"


def test_partitions_of_a_dense_layer_stand_with_the_groups_of_the_others():
    gap_table = nulls.gaps(GAPS)
    by_variant = set(zip(gap_table["variant"], nulls.columns_of(gap_table), strict=True))
    assert by_variant == {
        ("dense", "conv2, computed"),
        ("dense", "conv1, read"),
        ("g2", "conv1, read"),
        ("g2", "conv2, computed"),
    }
    alone = gap_table[gap_table["variant"] == "dense"]
    assert set(nulls.columns_of(alone)) == {"conv1, arbitrary groups", "conv2, arbitrary groups"}


def test_partitions_into_several_numbers_of_parts_are_one_null_with_a_mark_each(tmp_path, monkeypatch):
    cells = []
    monkeypatch.setattr(forest, "draw", lambda cells_drawn, *rest: cells.append(cells_drawn))
    cuts = {"arbitrary partition": "2", "arbitrary partition, 4 groups": "4", "arbitrary partition, log:4": "log:4"}
    parts = [
        table(*gap_rows("dense", s, "conv1", "computed", null, 0.5 + s, 0.5)).assign(groups=groups)
        for null, groups in cuts.items()
        for s in (0, 1)
    ]
    nulls.draw(Saved(pd.concat(parts)), tmp_path)
    assert cells[0]["null"].tolist() == ["arbitrary partition"] * 3
    assert cells[0]["n"].tolist() == [2, 2, 2], "cuts are no seeds"
    assert without_cut("spectral partition, sizes kept, log:4") == "spectral partition, sizes kept"


def test_gaps_and_rises_are_what_is_drawn(tmp_path, monkeypatch):
    drawn = {}

    def keep(cells, quantities, columns, title, caption, *rest):
        drawn.update(cells=cells, columns=columns, caption=caption)
        return []

    monkeypatch.setattr(forest, "draw", keep)
    nulls.draw(Saved(GAPS), tmp_path)
    assert drawn["columns"] == ["conv1, read", "conv2, computed"]
    cells = drawn["cells"]
    trained = cells[(cells["column"] == "conv2, computed") & (cells["null"] == "") & (cells["variant"] == "g2")]
    assert values(trained, "quantity") == {(nulls.GAP.name,): 0.4, (nulls.RISE.name,): 0.35}
    assert trained["n"].tolist() == [3, 2]
    assert "fewer than 6 have no interval" in drawn["caption"]
    assert nulls.draw(Saved(GAPS.iloc[:0]), tmp_path) == []


def test_similarities_keep_their_nulls_apart(tmp_path):
    rows = table(
        ("g2", 0, "conv2", "cka_between", "", 0.2),
        ("g2", 1, "conv2", "cka_between", "", 0.4),
        ("g2", 0, "conv2", "cka_between", "untrained", 0.5),
        ("dense", 0, "conv2", "procrustes_between", "arbitrary partition", 0.7),
        ("g2", 0, "conv2", "cka_other", "", 9.0),
    )
    assert values(similarity.similarities(rows), "variant", "quantity", "null") == {
        ("g2", "CKA", ""): 0.3,
        ("g2", "CKA", "untrained"): 0.5,
        ("dense", "Procrustes", "arbitrary partition"): 0.7,
    }
    checked(similarity.draw(Saved(rows), tmp_path))
    assert similarity.draw(Saved(rows.iloc[-1:]), tmp_path) == []


def test_nothing_is_drawn_for_what_was_not_measured(tmp_path, monkeypatch):
    """The dense network has no gap to its untrained self, and no frequency that groups split."""
    drawn = {}
    monkeypatch.setattr(page, "save", lambda figure, folder, name: drawn.update({name: figure}) or [])
    nulls.draw(Saved(GAPS), tmp_path)
    ticks = [[t.get_text() for t in panel.get_yticklabels()] for panel in drawn["nulls"].axes]
    assert ticks[0] == ["dense", "g2"]
    assert ticks[len(ticks) // 2] == ["g2"]
    of_filters = {"colour_index": np.full(4, 0.5), "learned": np.ones(4, bool)}
    rows = table(
        ("dense", 0, "conv1", "separation_colour_auc", "spectral partition", 0.7),
        *[("g2", 0, "conv1", f"separation_{a}_auc", "", 0.2) for a in separation.TESTED],
    )
    arrays = {"dense": of_filters, "g2": {**of_filters, "filter_groups": np.array([0, 0, 1, 1])}}
    separation.draw(Saved(rows, arrays), tmp_path)
    panels = drawn["separation"].axes
    assert [t.get_text() for t in panels[1].get_yticklabels()] == ["colour"]
    assert [t.get_text() for t in panels[3].get_yticklabels()] == list(separation.TESTED)
    assert panels[3].get_xlim()[0] < 0.2
    plt.close("all")


def test_the_share_on_the_blocks_is_in_the_column_of_the_first_layer():
    """conv1's filters are sorted by the group that reads them, conv2's by the one that computes and reads them."""
    rows = table(
        ("g2", 0, "conv1-conv2", "on_block_share", "", 0.3),
        ("g2", 0, "conv2-conv3", "on_block_share", "rotated filters", 0.4),
        ("g2", 0, "conv3-conv4", "on_block_share", "", 0.5),
        ("g2", 0, "conv1-conv2", "on_block_energy", "", 0.6),
    )
    shares = nulls.block_shares(rows, ["conv1, read", "conv1, computed", "conv2, computed"])
    assert shares[["column", "null", "value"]].values.tolist() == [
        ["conv1, read", "", 0.3],
        ["conv2, computed", "rotated filters", 0.4],
    ]


def test_a_dot_has_the_colour_of_one_end_of_the_learned_axis():
    """Angle 0 is red against green, (1, −1, 0); 90 is yellow against blue, (1, 1, −2); NaN is a grey filter."""
    colours = separation.axis_colours(np.array([0.0, 90.0, np.nan]))
    assert colours == pytest.approx(np.array([[0.95, 0.05, 0.5], [0.725, 0.725, 0.05], [0.3, 0.3, 0.3]]))


def test_energy_on_the_blocks_is_named_with_its_nulls():
    rows = table(
        ("g2", 0, "conv1-conv2", "on_block_energy", "", 0.6),
        ("g2", 1, "conv1-conv2", "on_block_energy", "", 0.8),
        ("g2", 0, "conv1-conv2", "on_block_energy", "block areas", 0.5),
        ("g2", 0, "conv1-conv2", "on_block_energy_p", "labels permuted", 0.01),
    )
    energy = interlayer.energies(rows)
    assert interlayer._title(energy, "g2", "conv1-conv2") == ("on blocks 0.70", "chance 0.50")
    assert interlayer._title(energy, "g4", "conv1-conv2") == ()


def test_matrices_between_layers_are_sorted_by_the_groups_of_either_side(tmp_path, monkeypatch):
    a = {
        "whitened block-1-block-2": np.array([[1.0, -2.0], [3.0, np.nan]]),
        "whitened block-1-block-2 rows": np.array([1, 0]),
        "whitened block-1-block-2 columns": np.array([0, 1]),
    }
    checked(interlayer.draw(Saved(GAPS, {"g2": a}), tmp_path))
    assert interlayer.draw(Saved(GAPS, {"g2": {}}), tmp_path) == []
    drawn = {}
    monkeypatch.setattr(matrices, "draw", lambda variants, columns, matrix_of, *rest: drawn.update(matrix_of))
    interlayer.draw(Saved(GAPS, {"g2": a}), tmp_path)
    assert list(drawn) == [("g2", "block-1-block-2")], "labels are no matrices"
    np.testing.assert_array_equal(matrices.in_blocks(drawn["g2", "block-1-block-2"])[0], [[3, np.nan], [1, 2]])


FILTERS = {
    "dense": {"colour_index": [0.1, 0.5], "learned": np.array([True, True])},
    "g2": {
        "colour_index": np.array([0.2, 0.4, 0.9, np.nan]),
        "learned": np.array([True, True, False, True]),
        "filter_groups": np.array([0, 0, 1, 1]),
    },
}


def test_noise_filters_are_drawn_but_not_counted():
    points = separation.filter_points(FILTERS)
    assert points.loc[points["variant"] == "g2", "value"].tolist() == [0.2, 0.4, 0.9], "undefined ones are left out"
    assert separation.group_means(points).round(12).to_dict() == {
        ("dense", "colour_index", 1): 0.3,
        ("g2", "colour_index", 1): 0.3,
    }, "no filter of the second group is learned"
    assert separation.draw(Saved(GAPS, {"dense": FILTERS["dense"]}), "unused") == []


def test_dots_of_one_value_stand_beside_each_other():
    places = separation.spread(np.array([0.5, 0.0, 0.5, 1.0, 0.5]), 0.8)
    assert places.tolist() == pytest.approx([-0.11, 0, 0, 0, 0.11])
    crowd = separation.spread(np.ones(100), 0.8)
    assert np.ptp(crowd) < 0.8
    assert len(set(crowd)) == 100


def test_verdicts_give_the_p_of_one_seed_and_the_count_of_several():
    name = "colour_difference"
    one = [("g2", 0, "conv1", name, "", 0.25), ("g2", 0, "conv1", f"{name}_p", "labels permuted", 0.0125)]
    more = [("g2", 1, "conv1", name, "", 0.75), ("g2", 1, "conv1", f"{name}_p", "labels permuted", 0.5)]
    assert separation.verdicts(table(*one)) == {("g2", "colour"): "Δ 0.25, p 0.013"}
    assert separation.verdicts(table(*one, *more)) == {("g2", "colour"): "Δ 0.5, 1/2 split"}
    assert separation.verdicts(table(one[0])) == {("g2", "colour"): "Δ 0.25"}
    areas = separation.areas(table(("g2", 0, "conv1", "separation_colour_auc", "labels permuted", 0.6)))
    assert values(areas, "attribute", "null") == {("colour", "labels permuted"): 0.6}


def test_lesions_are_read_from_the_names_of_their_measures():
    rows = table(
        ("g2", 0, "conv1", "lesion_zero_group_2_on_colour", "", 0.25),
        ("g2", 1, "conv1", "lesion_zero_group_2_on_colour", "", 0.75),
        ("g2", 0, "conv1", "lesion_zero_group_2_on_colour", "random sets", 0.125),
        ("g2", 0, "conv1", "lesion_mean_group_11_on_grey", "", -0.5),
        ("g2", 0, "", "lesion_colour_group_on_grey", "", 9.0),
    )
    rows.index = [7] * len(rows)  # tables are joined without a fresh index
    drops = lesions.drops(rows)
    assert values(drops, "replacement", "group", "series") == {
        ("zero", 2, "group, colour images"): 0.5,
        ("zero", 2, "random sets, colour images"): 0.125,
        ("mean", 11, "group, grey images"): -0.5,
    }
    looks = lesions.styles(drops["series"])
    assert list(looks) == ["group, colour images", "random sets, colour images", "group, grey images"]
    assert [mark.hollow for mark in looks.values()] == [False, True, False]
    assert lesions.draw(Saved(rows.iloc[-1:], {}), "unused") == []


def test_the_panels_of_a_row_of_lesions_show_all_of_both(tmp_path, monkeypatch):
    limits = []
    monkeypatch.setattr(lesions.page, "save", lambda figure, *_: limits.extend(a.get_ylim() for a in figure.axes[:2]))
    rows = [("g2", 0, "conv1", f"lesion_{r}_group_1_on_grey", "", x) for r, x in (("zero", 0.1), ("mean", 0.9))]
    lesions.draw(Saved(table(*rows), {"g2": {"lesion mean classes": np.eye(2)}}), tmp_path)
    assert limits[0] == limits[1]
    assert limits[0][1] > 0.9
    plt.close("all")


def test_probes_are_read_from_the_names_of_their_measures():
    rows = table(
        ("g2", 0, "conv1", "probe_hue_group_1", "", 0.5),
        ("g2", 0, "conv1", "probe_hue_group_1", "random sets", 0.25),
        ("g2", 0, "conv1", "probe_class_group_2", "chance", 0.1),
    )
    assert values(probes.scores(rows), "target", "group", "series") == {
        ("hue", 1, ""): 0.5,
        ("hue", 1, "random sets"): 0.25,
        ("class", 2, "chance"): 0.1,
    }
    assert probes.draw(Saved(rows.iloc[:0]), "unused") == []


def full(variants, groups=2):
    """Every measure that is drawn, of every variant, from two seeds."""
    rows = []
    for v in variants:
        for s in (0, 1):
            x = 0.3 + 0.1 * s
            for null in ("", "untrained", "random filters", "arbitrary partition", "spectral partition"):
                rows += gap_rows(v, s, "stage1.3.reduce.0", "computed", null, x, 0.2)
            for null in ("", "untrained", "arbitrary partition"):
                rows += [(v, s, "conv2", measure, null, x) for measure in similarity.SIMILARITIES]
            for g in range(1, groups + 1):
                for null in ("", "random sets"):
                    rows += [(v, s, "conv1", f"lesion_{r}_group_{g}_on_grey", null, x) for r in ("zero", "mean")]
                    rows.append((v, s, "conv1", f"probe_orientation_group_{g}", null, x))
            for null in ("", "labels permuted"):
                rows += [(v, s, "conv1", f"separation_{a}_auc", null, 0.5 + x) for a in separation.TESTED]
            rows += [(v, s, "conv1", f"{a}_difference", "", 0.123456) for a in separation.TESTED]
            rows += [(v, s, "conv1", f"{a}_difference_p", "labels permuted", x) for a in separation.TESTED]
            rows += [(v, s, "a-b", "on_block_energy", null, x) for null in ("", "block areas", "untrained")]
    return table(*rows)


SLOW = [pytest.param(figure, marks=pytest.mark.slow) for figure in ("lesions", "separation")]


@pytest.mark.parametrize("figure", ["nulls", "similarity", "probes", "interlayer", *SLOW])
def test_many_variants_with_long_names_stay_on_the_page(tmp_path, figure):
    names = long_names(14 if figure in ("nulls", "similarity", "interlayer") else 9)
    labels, rng = np.arange(16) % 16, np.random.default_rng(0)
    a = {
        "whitened a-b": rng.normal(size=(16, 16)),
        **dict.fromkeys(["whitened a-b rows", "whitened a-b columns", "filter_groups"], labels),
        **dict.fromkeys(["colour_index", "frequency"], rng.uniform(size=16)),
        "learned": labels > 3,
        "lesion mean classes": rng.normal(size=(16, 100)),
    }
    arrays = dict.fromkeys(names, a)
    rows = full(names)
    paths = {
        "nulls": lambda: nulls.draw(Saved(rows), tmp_path),
        "similarity": lambda: similarity.draw(Saved(rows), tmp_path),
        "probes": lambda: probes.draw(Saved(rows), tmp_path),
        "lesions": lambda: lesions.draw(Saved(rows, arrays), tmp_path),
        "separation": lambda: separation.draw(Saved(rows, arrays), tmp_path),
        "interlayer": lambda: interlayer.draw(Saved(rows, arrays), tmp_path),
    }[figure]()
    checked(paths)
    assert len(paths) == (4 if figure == "interlayer" else 2)


def test_sixteen_groups_of_one_variant_are_drawn(tmp_path):
    rows = full(["groups-16"], 16)
    checked(lesions.draw(Saved(rows, {}), tmp_path))
    checked(probes.draw(Saved(rows), tmp_path))
