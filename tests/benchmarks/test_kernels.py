"""The kernel benchmark: its output, kernels that it refuses to time, and the use of its measurements."""

import sys

import pandas as pd
import pytest
import torch

from benchmarks import kernels
from gconv.kernels import OPS, find

SMALL = ["--layers=16@6", "--partitions=2,log:3", "--dtypes=float32", "--batch=2", "--repeats=2"]


@pytest.fixture(autouse=True)
def small(no_own_table, monkeypatch):
    monkeypatch.setattr(kernels, "SHORT", 0.0)
    monkeypatch.setattr(kernels, "choose_device", lambda name: torch.device("cpu"))


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["kernels", *arguments])
    kernels.main()


def test_one_long_csv_and_a_figure(tmp_path, monkeypatch):
    run(monkeypatch, *SMALL, f"--to={tmp_path}")
    rows = pd.read_csv(tmp_path / "kernels.csv")
    assert {"dense", "loop", "packed", "masked", "ours"} <= set(rows["kernel"])
    assert set(rows["op"]) == {*OPS, "step"}
    uniform, uneven = (rows[rows["partition"] == cut] for cut in ("2", "log:3"))
    assert "native" in set(uniform["kernel"])
    assert "nested" in set(uneven["kernel"])
    assert (rows["lower"] <= rows["median"]).all()
    assert (rows["median"] <= rows["upper"]).all()
    assert set(uneven["ideal"]) == {(8 * 8 + 2 * 4 * 4) / 16**2}
    assert set(uneven[uneven["op"] == "step"]["macs"]) == {3 * 2 * 36 * 9 * (8 * 8 + 2 * 4 * 4)}
    assert {"torch", "device", "threads", "commit", "family", "floor"} <= set(rows.columns)
    assert {path.name for path in tmp_path.iterdir()} >= {"speed.pdf", "speed.png"}


def test_a_kernel_that_computes_wrongly_is_not_timed(tmp_path, monkeypatch, capsys):
    packed = find("packed")
    right = packed.conv2d
    monkeypatch.setattr(packed, "conv2d", lambda *arguments: right(*arguments) * 1.001)
    case = kernels.Case("16@6", "log:3", torch.float32, True, 2, torch.device("cpu"))
    timed = [name for name, *_ in kernels.time_op(case, "conv2d", 1, with_ours=False)]
    assert "packed" not in timed
    assert "loop" in timed
    assert "packed is off by" in capsys.readouterr().err


def test_a_kernel_that_puts_out_nan_is_not_timed(monkeypatch):
    packed = find("packed")
    monkeypatch.setattr(packed, "input_gradient", lambda dy, *rest: torch.full_like(dy, float("nan")))
    case = kernels.Case("16@6", "log:3", torch.float32, True, 2, torch.device("cpu"))
    assert "packed" not in [name for name, *_ in kernels.time_op(case, "input_gradient", 1)]


@pytest.mark.parametrize(
    ("text", "means"),
    [("64@32", (64, 32, 3, 1)), ("256@14/1x1", (256, 14, 1, 1)), ("128@28/3x3/2", (128, 28, 3, 2))],
)
def test_layers_are_read(text, means):
    assert kernels.parse_layer(text) == means
