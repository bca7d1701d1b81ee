import numpy as np
import pandas as pd
import pytest

from analysis.effects import Metric, NotMeasuredError, Term, measure_effect


def long_table(*rows):
    """Rows of (variant, seed, layer, measure, null, value)."""
    return pd.DataFrame(rows, columns=["variant", "seed", "layer", "measure", "null", "value"])


def accuracies(**variants):
    return long_table(
        *((v.replace("_", "-"), seed, "", "accuracy", "", x) for v, xs in variants.items() for seed, x in enumerate(xs))
    )


def accuracy(*variants):
    return Term("accuracy", variants)


def effect(table, *args, **kwargs):
    return measure_effect(table, Metric(*args, **kwargs))


def test_a_difference_of_differences_is_paired_by_seed():
    table = accuracies(a=[5, 9, 2], b=[1, 1, 1], c=[3, 4, 0], d=[1, 2, 2])
    measured = effect(table, "difference", (accuracy("a"), accuracy("d")), (accuracy("b"), accuracy("c")))
    assert measured.values.tolist() == [5 + 1 - 1 - 3, 9 + 2 - 1 - 4, 2 + 2 - 1 - 0]
    assert (measured.low, measured.high, measured.note) == (None, None, "")


def test_several_variants_of_a_term_are_averaged():
    measured = effect(accuracies(a=[4, 8], b=[2, 2], c=[1, 1]), "difference", (accuracy("a", "b"),), (accuracy("c"),))
    assert measured.values.tolist() == [2, 4]


def test_layers_are_paired_by_name_and_those_of_one_side_alone_are_left_out():
    rows = [("grouped", s, layer, "between", "", x + s) for s in (0, 1) for layer, x in (("conv2", 1), ("conv3", 2))]
    rows += [
        ("dense", s, layer, "mean", "", x) for s in (0, 1) for layer, x in (("conv1", 100), ("conv2", 3), ("conv3", 8))
    ]
    of, minus = (Term(m, (v,), "each") for m, v in (("between", "grouped"), ("mean", "dense")))
    measured = effect(long_table(*rows), "difference", (of,), (minus,))
    assert measured.values.tolist() == [(-2 - 6) / 2, (-1 - 5) / 2]


def test_the_null_is_another_row():
    table = long_table(("a", 0, "conv1", "m", "", 5), ("a", 0, "conv1", "m", "untrained", 3))
    trained, untrained = Term("m", ("a",), "conv1"), Term("m", ("a",), "conv1", "untrained")
    assert effect(table, "difference", (trained,), (untrained,)).values.tolist() == [2]


def test_a_layer_that_one_seed_lacks_is_left_out_of_all():
    rows = [("a", 0, "conv1", "m", "", 1), ("a", 0, "conv2", "m", "", 9), ("a", 1, "conv1", "m", "", 2)]
    rows += [("a", 1, "conv2", "m", "", np.nan)]
    assert effect(long_table(*rows), "difference", (Term("m", ("a",), "each"),)).values.tolist() == [1, 2]


def test_a_trained_seed_without_a_value_is_lost_and_one_not_yet_trained_is_not():
    measured = effect(accuracies(a=[5, np.nan, 7], b=[1, 1, 1]), "difference", (accuracy("a"),), (accuracy("b"),))
    assert (measured.values.tolist(), measured.lost) == ([4, 6], 1)
    assert measured.note == "1 of 3 seeds lost (value undefined in 1)"
    begun = effect(accuracies(a=[5, 6, 7], b=[1, 1]), "difference", (accuracy("a"),), (accuracy("b"),))
    assert (begun.values.tolist(), begun.lost) == ([4, 5], 0)
    assert begun.note == "seeds not yet trained in every variant: 1"


def test_a_lost_run_is_counted_with_its_reason():
    of, minus = (accuracy("a"),), (accuracy("b"),)
    table = accuracies(a=[5, 6, 7], b=[1, 1])
    metric = Metric("difference", of, minus)
    measured = measure_effect(table, metric, {("b", 2): "diverged", ("c", 0): "diverged"})
    assert (measured.values.tolist(), measured.lost) == ([4, 5], 1)
    assert measured.note == "1 of 3 seeds lost (b diverged)"
    timed = accuracies(b=[1]).assign(measure="latency", seed=np.nan)
    for left in (accuracies(a=[5, 6]), pd.concat([accuracies(a=[5, 6]), timed])):
        with pytest.raises(NotMeasuredError, match="no run of b is evidence: seed 0 diverged"):
            measure_effect(left, metric, {("b", 0): "diverged", ("b", 1): "diverged"})


def test_a_slope_is_that_of_least_squares():
    rng = np.random.default_rng(0)
    y = rng.normal(size=(4, 3))
    table = accuracies(**{f"v{k}": row for k, row in enumerate(y)})
    at = {"v0": 0.0, "v1": 1.0, "v2": 2.0, "v3": 5.0}
    measured = effect(table, "slope", (accuracy("{}"),), over=at)
    np.testing.assert_allclose(measured.values, np.polyfit(list(at.values()), y, 1)[0])


def test_a_slope_in_logarithms_is_the_exponent_of_a_power_law():
    table = accuracies(w2=[4 * 3, 4 * 5], w4=[16 * 3, 16 * 5], w8=[64 * 3, 64 * 5])
    measured = effect(table, "slope", (accuracy("{}"),), over={"w2": 2, "w4": 4, "w8": 8}, log=True)
    np.testing.assert_allclose(measured.values, [2, 2])
    with pytest.raises(NotMeasuredError, match="above 0"):
        effect(accuracies(w2=[0], w4=[1]), "slope", (accuracy("{}"),), over={"w2": 2, "w4": 4}, log=True)


def test_a_seed_whose_effect_is_undefined_is_lost():
    of, over = (accuracy("{}"),), {"w2": 2, "w4": 4}
    measured = effect(accuracies(w2=[12, 0, 20], w4=[48, 1, 80]), "slope", of, over=over, log=True)
    np.testing.assert_allclose(measured.values, [2, 2])
    assert (measured.lost, measured.note) == (1, "1 of 3 seeds lost (value undefined in 1)")
    table = accuracies(a=[6, 1, 0, 8], b=[3, 0, 0, 2])
    measured = effect(table, "ratio", (accuracy("a"),), (accuracy("b"),))
    assert measured.values.tolist() == [2, 4]
    assert (measured.lost, measured.note) == (2, "2 of 4 seeds lost (value undefined in 2)")
    for per_seed in (True, False):
        with pytest.raises(NotMeasuredError, match="no seed with a defined value of"):
            effect(accuracies(a=[1], b=[0]), "ratio", (accuracy("a"),), (accuracy("b"),), per_seed=per_seed)


def test_the_slot_is_part_of_a_name():
    table = accuracies(g2_on=[5], g2_off=[4], g8_on=[9], g8_off=[5])
    of, minus = (accuracy("{}-on"),), (accuracy("{}-off"),)
    assert effect(table, "slope", of, minus, over={"g2": 1, "g8": 3}).values.tolist() == [1.5]


def test_a_share_is_of_zeros_and_ones():
    assert effect(accuracies(a=[1, 0, 1, 0]), "share", (accuracy("a"),)).values.tolist() == [1, 0, 1, 0]
    with pytest.raises(ValueError, match=r"share of seeds with accuracy\(a\): each seed must have 0 or 1, not 0.05"):
        effect(accuracies(a=[0.05, 1]), "share", (accuracy("a"),))


def test_a_count_is_its_own_interval():
    table = accuracies(a=[30, 30], b=[90, 90])
    measured = effect(table, "ratio", (accuracy("a"),), (accuracy("b"),), per_seed=False)
    assert (measured.values.tolist(), measured.low, measured.high) == ([1 / 3], 1 / 3, 1 / 3)


def test_a_timing_has_the_quartiles_of_its_repeats_in_their_worst_combination():
    rows = [
        (v, np.nan, "", m, "", x)
        for v, values in (("dense", (7, 8, 10)), ("grouped", (3, 4, 5)))
        for m, x in zip(("time_lower", "time", "time_upper"), values, strict=True)
    ]
    of, minus = (Term("time", (v,)) for v in ("grouped", "dense"))
    measured = effect(long_table(*rows), "ratio", (of,), (minus,), per_seed=False)
    assert (measured.values.tolist(), measured.low, measured.high) == ([0.5], 3 / 10, 5 / 7)


def test_a_saving_that_wholly_becomes_time_has_the_exponent_one():
    rows = [(f"g{g}", np.nan, "", "time", "", 60 / g) for g in (1, 2, 4)]
    rows += [(f"g{g}", seed, "", "macs", "", 1000 / g) for g in (1, 2, 4) for seed in (0, 1)]
    over = dict.fromkeys(("g1", "g2", "g4"), np.nan)
    measured = effect(
        long_table(*rows), "slope", (Term("time", ("{}",)),), over=over, by="macs", log=True, per_seed=False
    )
    assert measured.low == pytest.approx(1)


def test_families_are_compared_at_equal_cost():
    table = accuracies(a1=[1.0], a4=[3.0], b2=[1.5])
    costs = long_table(*((v, 0, "", "macs", "", c) for v, c in (("a1", 1), ("a4", 4), ("b2", 2))))
    measured = effect(pd.concat([table, costs]), "equal_cost", (accuracy("a1", "a4"),), (accuracy("b2"),), by="macs")
    assert measured.values.tolist() == [pytest.approx(2.0 - 1.5)]  # half way between 1 and 4 in the logarithm


@pytest.mark.parametrize(
    ("metric", "words"),
    [
        (Metric("difference", (accuracy("z"),)), "no variant z"),
        (Metric("difference", (Term("lesion", ("a",)),)), r"no lesion\(a\)"),
        (Metric("difference", (Term("accuracy", ("a",), "conv1", "untrained"),)), r"no accuracy\(a, conv1, untrained"),
        (Metric("difference", (accuracy("a"),), (accuracy("late"),)), "no seed"),
        (Metric("equal_cost", (accuracy("a"),), (accuracy("b"),), by="macs"), "no seed in which both"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_was_not_measured_is_named(metric, words):
    late = long_table(("late", 7, "", "accuracy", "", 1.0))
    costs = long_table(*((v, 0, "", "macs", "", c) for v, c in (("a", 1), ("b", 2))))
    with pytest.raises(NotMeasuredError, match=words):
        measure_effect(pd.concat([accuracies(a=[1, 2], b=[1, 2]), late, costs]), metric)
