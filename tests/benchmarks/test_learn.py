"""The kernel that the benchmark learns is the one that is chosen, within the time that it is given."""

import os
import re
import sys

import pytest
import torch

from benchmarks import learn
from gconv import GroupedConv2d
from gconv.kernels import OPS, choose, table
from gconv.kernels.machine import this_machine

CPU = torch.device("cpu")
SMALL = ["--layers=16@6", "--partitions=2,log:3", "--dtypes=float32", "--batches=2"]


@pytest.fixture(autouse=True)
def small(no_own_table, monkeypatch):
    monkeypatch.setattr(learn, "choose_device", lambda name: CPU)


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["learn", *arguments])
    learn.main()


def test_what_is_learned_is_what_is_chosen(monkeypatch, capsys):
    run(monkeypatch, *SMALL, "--cpu-time")
    printed = capsys.readouterr().out
    assert re.match(r"16 kinds of op measured in \d+ s; ", printed)  # 2 layers, 2 layouts, 3 ops and a step
    assert str(table.own_path(this_machine(CPU))) in printed
    layer = GroupedConv2d(16, 16, 3, padding=1, groups="log:3")
    for op in OPS:
        chosen = choose.choose(op, layer.geometry, torch.float32, CPU, True, choose.pixel_bits(2, 6, 6))
        seconds = dict(chosen.seconds)
        assert {"loop", "merged", "packed"} <= set(seconds)
        assert seconds[chosen.kernel] <= choose.EQUAL_TIME_RATIO * min(seconds.values())


def test_nothing_is_begun_when_time_is_up(monkeypatch, capsys):
    run(monkeypatch, *SMALL, "--seconds=0")
    assert capsys.readouterr().out.startswith("0 kinds of op measured in 0 s, 16 left when time was up; ")


def test_nothing_is_measured_that_cannot_be_kept(monkeypatch):
    monkeypatch.setattr(learn, "measure", lambda *_: pytest.fail("measured"))
    monkeypatch.setenv("XDG_CACHE_HOME", os.devnull)
    path = re.escape(str(table.own_path(this_machine(CPU))))
    with pytest.raises(SystemExit, match=rf"^kernel table {path} cannot be written: \w[^\n]*; nothing is measured$"):
        run(monkeypatch, *SMALL)


def test_times_that_could_not_be_kept_are_not_reported_as_kept(tmp_path, monkeypatch):
    (tmp_path / "file").touch()

    def measure_without_a_folder(use, *_):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
        table.extend(this_machine(CPU), [(use.kind, {"loop": 1.0})])

    monkeypatch.setattr(learn, "measure", measure_without_a_folder)
    with (
        pytest.warns(UserWarning, match="cannot be written"),
        pytest.raises(SystemExit, match=r"; the times are lost$"),
    ):
        run(monkeypatch, *SMALL)
