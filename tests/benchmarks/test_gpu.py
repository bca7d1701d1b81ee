"""The three calls of ``gpu.sh`` on a CPU, and the behaviour of its stages when something fails."""

import csv
import os
import subprocess
import sys
import tarfile
from argparse import Namespace
from pathlib import Path

import pytest
import torch

from benchmarks import gpu
from gconv.kernels import OPS, loop, table
from gconv.kernels.machine import this_machine

ROOT = Path(__file__).parents[2]


def call(part, folder, **variables):
    environment = os.environ | {"PYTHON": sys.executable, "TO": str(folder), "OMP_NUM_THREADS": "1", **variables}
    command = ["bash", "benchmarks/gpu.sh", *([part] if part else [])]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_all_three_calls_end_in_an_archive_with_every_table(tmp_path):
    for part in "123":
        done = call(part, tmp_path / "gpu", STANDIN="1")
        stages = (tmp_path / "gpu/stages.txt").read_text()
        assert done.returncode == 0, done.stdout + done.stderr + stages
    named = [line.split(":")[0] for line in stages.splitlines()]
    assert named == ["cold", "ceilings", "tests", "learn", "blocks", "steps", "training", "study"]
    with tarfile.open(tmp_path / "gpu.tar.gz") as archive:
        names = {name.removeprefix("gpu/") for name in archive.getnames()}
    tables = {f"{name}.csv" for name in ("cold", "ceilings", "kernels", "blocks", "steps", "training")}
    assert tables | {"machine.txt", "stages.txt"} <= names
    assert any(name.startswith("cache/gconv/kernels/") for name in names)
    assert not any(name.endswith(".pt") for name in names)


@pytest.mark.parametrize("part", ["", "4", "right"])
def test_an_unknown_part_is_one_line(part, tmp_path):
    done = call(part, tmp_path / "gpu")
    assert done.returncode == 2 and done.stderr.splitlines() == [
        f"error: PART={part}: write 1, 2 or 3, as in make bench-gpu PART=1"
    ]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_in_one_line(tmp_path):
    done = call("1", tmp_path / "gpu")
    (line,) = done.stderr.splitlines()
    assert done.returncode == 2 and "no CUDA device" in line and "STANDIN=1" in line


@pytest.fixture
def one_case(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(gpu, "ROUNDS", {"cpu": 2})
    device = torch.device("cpu")
    case = gpu.Case("8@4", "log:3", torch.float32, 1, device)
    yield case, gpu.Rows(tmp_path / "kernels.csv", device), tmp_path
    gpu.dispatch.forget()


def test_a_case_extends_the_table_by_what_training_uses_and_the_csv_by_both_settings(one_case):
    case, into, folder = one_case
    gpu.learn_case(case, into)
    timed = rows(folder / "kernels.csv")
    assert {row["op"] for row in timed} == {*OPS, "step"}
    ways = {row["way"] for row in timed if row["op"] == "conv2d"}
    assert {"loop", "loop benchmark", "dense", "dense benchmark", "ours"} <= ways
    known = table.read(table.own_path(this_machine(case.device)))[1]
    assert {kind.op for kind in known} == {*OPS, "step"}
    for kind, times in known.items():
        assert "loop" in times and not any("benchmark" in name or "dense" in name for name in times)
        assert ("apart" in times) == (kind.op == "step")


def test_a_way_that_is_wrong_is_not_timed_and_one_that_fails_stops_no_other(one_case, monkeypatch, capsys):
    from gconv.kernels import masked, packed

    case, _, _ = one_case
    monkeypatch.setattr(packed, "conv2d", lambda *given: loop.conv2d(*given) * 1.01)
    monkeypatch.setattr(masked, "conv2d", lambda *given: 1 / 0)
    times = dict(gpu.time_op(case, "conv2d", case.grouped()))
    assert "loop" in times and not {"packed", "masked"} & times.keys()
    said = capsys.readouterr().out
    assert "packed is not timed: it is off by" in said and "masked is not timed: division by zero" in said


def test_no_case_is_begun_when_time_is_up(tmp_path, capsys):
    given = Namespace(to=tmp_path, device=torch.device("cpu"), standin=True, dtypes="float32", until=0.0)
    gpu.learn(given)
    assert capsys.readouterr().out == "time is up before 8@4 2 float32\n"


@pytest.mark.parametrize(
    ("written", "read"), [("64@32", (64, 32, 3, 1)), ("256@14/1x1", (256, 14, 1, 1)), ("128@28/3x3/2", (128, 28, 3, 2))]
)
def test_layers_are_read_as_they_are_written(written, read):
    assert gpu.Case(written, "2", torch.float32, 1, torch.device("cpu")).window == read
