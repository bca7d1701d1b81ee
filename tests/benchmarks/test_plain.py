"""Settings of cuDNN and torch's own tuned convolution, as columns of the benchmarks of blocks and steps."""

import csv
import sys

import pytest
import torch
from torch import nn

from benchmarks import blocks, plain, steps

CPU = torch.device("cpu")


def test_every_setting_is_timed_on_a_gpu_and_one_elsewhere():
    assert plain.cudnn_names(torch.device("cuda")) == ("deterministic", "free", "benchmark")
    assert plain.cudnn_names(CPU) == ("free",)
    assert plain.cudnn_names(CPU, "benchmark,free") == ("benchmark", "free")
    with pytest.raises(ValueError, match="--cudnn=fast: write deterministic, free, benchmark"):
        plain.cudnn_names(CPU, "fast")


@pytest.mark.parametrize("name", plain.CUDNN)
def test_a_setting_holds_inside_its_context(name):
    before = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    with plain.cudnn(name):
        assert (torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark) == plain.CUDNN[name]
    assert (torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark) == before


@pytest.mark.parametrize(("partition", "equal"), [("2", True), ("log:3", False)])
def test_blocks_of_equal_groups_are_computed_by_conv2d_too(partition, equal):
    case = blocks.Case("8@4", partition, torch.float32, "training", 2, torch.device("cuda"))
    assert (plain.AUTOTUNED in case.ways) == equal
    if equal:
        model = nn.Sequential(*blocks.Case("8@4", partition, torch.float32, "training", 2, CPU).build()[0].children())
        tuned = blocks._model(model, plain.AUTOTUNED)
        x = torch.randn(2, 8, 4, 4)
        torch.testing.assert_close(tuned(x), model(x))
        assert type(tuned.get_submodule("0")) is nn.Conv2d


def run(module, monkeypatch, path, *arguments):
    monkeypatch.setattr(sys, "argv", ["benchmark", *arguments, "--batch=2", "--repeats=2", f"--csv={path}"])
    module.main()
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_steps_have_a_row_for_each_way_and_setting(tmp_path, monkeypatch):
    ways = f"--ways=loop,{plain.AUTOTUNED}"
    rows = run(steps, monkeypatch, tmp_path / "steps.csv", "--nets=small:2", ways, "--cudnn=deterministic,benchmark")
    assert [(row["cudnn"], row["way"]) for row in rows] == [
        (setting, way) for setting in ("deterministic", "benchmark") for way in ("loop", plain.AUTOTUNED)
    ]


def test_blocks_have_a_row_for_each_way_and_setting(tmp_path, monkeypatch):
    monkeypatch.setattr(blocks, "WAYS", ("modules", "block", plain.AUTOTUNED))
    given = "--layers=8@4", "--partitions=log:3", "--modes=evaluation", "--cudnn=free,benchmark"
    rows = run(blocks, monkeypatch, tmp_path / "blocks.csv", *given)
    assert [(row["cudnn"], row["way"]) for row in rows] == [
        (setting, way) for setting in ("free", "benchmark") for way in ("modules", "block")
    ]


@pytest.mark.parametrize("module", [blocks, steps])
def test_an_unknown_setting_is_one_line(module, tmp_path, monkeypatch, capsys):
    with pytest.raises(SystemExit) as stopped:
        run(module, monkeypatch, tmp_path / "x.csv", "--cudnn=fast")
    assert stopped.value.code == 2 and "--cudnn=fast: write deterministic, free, benchmark" in capsys.readouterr().err
