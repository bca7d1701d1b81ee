"""The comparison with what a user would write: what is computed, what is written, what is refused."""

import sys
from collections import Counter
from itertools import pairwise, permutations

import pandas as pd
import pytest
import torch

from benchmarks import by_hand
from gconv import GroupedConv2d
from gconv.kernels import CANDIDATES, table

CPU = torch.device("cpu")
SMALL = ["--layers=16@6", "--partitions=log:3,4,depthwise", "--dtypes=float32", "--batches=1,2", "--repeats=2"]


@pytest.fixture(autouse=True)
def small(no_own_table, monkeypatch):
    monkeypatch.setattr(by_hand, "SHORT", 0.0)
    monkeypatch.setattr(by_hand, "choose_device", lambda name: CPU)


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["by_hand", *arguments])
    by_hand.main()


def test_case_by_case_into_a_file_and_a_summary_with_both_goals(tmp_path, monkeypatch, capsys):
    path = tmp_path / "by_hand.csv"
    run(monkeypatch, *SMALL, "--choices=shipped,rule", f"--to={path}")
    rows = pd.read_csv(path)
    assert len(rows) == 3 * 2 * 2 * 2  # partitions, batches, ops, choices
    assert (rows[["of_best_by_hand", "of_ceiling", "seconds_ours", "seconds_dense"]] > 0).all(axis=None)
    assert (rows["of_best_by_hand_lower"] <= rows["of_best_by_hand_upper"]).all()
    assert rows[rows["partition"] == "log:3"]["seconds_native"].isna().all()
    assert {"commit", "device", "threads", "clock", "family", "torch"} <= set(rows.columns)
    printed = capsys.readouterr().out
    assert "of_best_by_hand (goal 0.97" in printed
    assert "of_ceiling (goal 0.8" in printed
    run(monkeypatch, *SMALL, "--choices=shipped,rule", f"--to={path}")
    assert len(pd.read_csv(path)) == len(rows), "what is known is not measured again"


def test_ratios_are_those_of_the_times_and_the_best_is_chosen_in_other_rounds(monkeypatch):
    """With a clock by which every way takes its own seconds; the best takes more when it counts than when chosen."""
    seconds = {"native": 1.5, "loop": 2.2, "packed": 3.0, "masked": 9.0}
    seconds |= {"ours": 2.0, "best": 1.6, "again": 2.0, "dense": 12.0}
    monkeypatch.setattr(by_hand, "_rounds", lambda calls, *_: {name: [seconds[name]] * 3 for name in calls})
    row = by_hand.measure(by_hand.Case("16@6", "4", 1, "float32", "forward", "rule"), CPU, 3)
    assert (row["best_by_hand"], row["of_best_by_hand"], row["again_of_best"]) == ("native", 0.8, 0.8)
    assert (row["seconds_native"], row["seconds_best"]) == (1.5, 1.6)
    assert row["of_ceiling"] == pytest.approx(12 / 4 / 2)
    row = by_hand.measure(by_hand.Case("16@6", "log:3", 1, "float32", "step", "rule"), CPU, 3)
    assert row["best_by_hand"] == "loop"
    assert row["of_ceiling"] == pytest.approx(12 * 0.375 / 2)


def test_each_way_follows_each_other_equally_often():
    called = []
    calls = {name: lambda name=name: called.append(name) for name in ("best", "again", "ours", "dense")}
    by_hand._rounds(calls, CPU, 6, iter(range(10_000)).__next__)
    rounds = called[3 * 4 :]  # after two calls of all, and a timed one
    groups = [name for i, name in enumerate(rounds) if i == 0 or rounds[i - 1] != name]
    before = Counter(pairwise(["dense", *groups]))
    judged = ("best", "again", "ours")
    assert Counter(groups) == dict.fromkeys(calls, 6)
    assert {before[pair] for pair in permutations(judged, 2)} == {2}
    assert {before["dense", name] for name in judged} == {before[name, "dense"] for name in judged} == {2}


def test_the_loop_by_hand_computes_what_the_layer_does():
    layer = GroupedConv2d(16, 16, 3, padding=1, groups="log:3", bias=False)
    loop = by_hand.Loop(layer)
    for convolution, weight in zip(loop.convolutions, layer.group_weights(), strict=True):
        convolution.weight.data.copy_(weight)  # type: ignore[union-attr]
    x = torch.randn(2, 16, 6, 6)
    torch.testing.assert_close(loop(x), layer(x))


def test_tuned_times_are_forgotten_again(tmp_path, monkeypatch):
    row = by_hand.measure(by_hand.Case("16@6", "log:3", 1, "float32", "forward", "tuned"), CPU, 2)
    assert row["kernel"] in CANDIDATES
    assert not (tmp_path / "cache").exists()
    assert not table.is_pinned()


@pytest.mark.parametrize(
    ("argument", "says"),
    [("--ops=backward", "forward,step"), ("--choices=best", "shipped,rule,tuned"), ("--partitions=5", "cannot be cut")],
)
def test_arguments_that_cannot_work_are_named(monkeypatch, capsys, argument, says):
    with pytest.raises(SystemExit) as stopped:
        run(monkeypatch, *SMALL, argument)
    assert stopped.value.code == 2
    assert says in capsys.readouterr().err
