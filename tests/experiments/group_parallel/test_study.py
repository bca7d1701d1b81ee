"""Networks whose groups are spread over real processes, and the study that measures them."""

import json
import os
import shutil
import socket
import time

import pandas as pd
import pytest
import torch
from torch import nn

import parallel_checks
from experiments import __main__ as command_line
from experiments.commands.status import status_of
from experiments.errors import RunFailedError, UsageError
from experiments.group_parallel import config
from experiments.group_parallel import study as group_parallel
from experiments.group_parallel import tables as group_parallel_tables
from experiments.group_parallel.one_step import Case
from experiments.group_parallel.rank_network import Redistribution, rank_network, rank_values
from experiments.report.records import RESULTS
from experiments.report.tables import read_table
from experiments.store import leases
from experiments.study.catalogue import CONFIGS, GROUP_PARALLEL, study_names, trained_studies
from experiments.study.strict_yaml import read_yaml
from experiments.training.ranks import device_for, run_on_ranks
from gconv.placement import plan

SINGLE, DOUBLE = torch.float32, torch.float64
LOG = {"groups": "log:4", "width": 16, "size": 32}
CASES = {
    "alexnet, dense head and dropout": ("alexnet", {"groups": 2, "norm": "batch", "classes": 8, "size": 67}, 2, SINGLE),
    "alexnet, towers on towers": (
        "alexnet",
        {"groups": 4, "norm": "batch", "head": "average", "classes": 8, "size": 67},
        2,
        SINGLE,
    ),
    "alexnet, normalised across channels": (
        "alexnet",
        {"groups": 4, "norm": "local", "head": "average", "classes": 8, "size": 67},
        2,
        SINGLE,
    ),
    "small": ("small", {"groups": 4, "size": 16}, 4, SINGLE),
    "lognet on 2": ("lognet", LOG, 2, SINGLE),
    "lognet on 4": ("lognet", LOG, 4, SINGLE),
    "lognet on 3, in double precision": ("lognet", {**LOG, "size": 16}, 3, DOUBLE),
    "sums, concatenations, uneven groups": ("branches", {"groups": "12,6,3,3"}, 2, SINGLE),
    "sums, concatenations, plain torch": ("branches", {"groups": 4}, 4, DOUBLE),
    "nin": ("nin", {"variant": "root-8", "size": 16}, 4, SINGLE),
}


@pytest.fixture(scope="module")
def seen():
    """Observations of each rank in each case, all in one group of processes."""
    of_ranks = run_on_ranks(parallel_checks.compare, 4, list(CASES.values()), device="cpu", timeout=60)
    return {name: [rank[k] for rank in of_ranks if rank[k] is not None] for k, name in enumerate(CASES)}


@pytest.mark.parametrize("name", CASES)
def test_parts_on_ranks_are_the_network_on_one_device(seen, name):
    """Outputs, gradients, running statistics: to 1e-5 in single precision, far beyond it in double precision."""
    _, _, ranks, dtype = CASES[name]
    tolerance = 1e-5 if dtype == SINGLE else 1e-12
    assert len(seen[name]) == ranks
    for of_rank in seen[name]:
        assert of_rank["names"]
        for what in ("outputs", "gradients", "evaluated"):
            assert of_rank[what] <= tolerance, what
        assert of_rank["buffers"] <= 1e-5


@pytest.mark.parametrize("name", CASES)
def test_no_parameter_is_on_two_ranks(seen, name):
    own, whole = zip(*(of_rank["parameters"] for of_rank in seen[name]), strict=True)
    assert sum(own) == whole[0]


@pytest.mark.parametrize("name", CASES)
def test_what_is_sent_is_what_the_formula_says_on_every_rank(seen, name):
    for of_rank in seen[name]:
        assert of_rank["sent"] == of_rank["formula"] > 0
        assert of_rank["sent_forwards"] == of_rank["formula_forwards"] < of_rank["sent"]


def test_bytes_of_alexnet_by_hand(seen):
    """67 pixels leave 15, 7, 3 and 1 after conv1 and its pools: conv3 reads 256 × 3 × 3, the head 256 features."""
    ranks = seen["alexnet, towers on towers"]
    assert sum(of_rank["sent"] for of_rank in ranks) == 6 * 4 * (2 * (256 * 9 + 256) + 8)
    assert ranks[0]["in_all"] == {"conv3": 6 * 4 * 2 * 2304, "classify": 6 * 4 * 2 * 256, "output": 6 * 4 * 8}


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("killed", "rank 1 of 3 was killed by signal 9 (SIGKILL)"),
        ("error", "rank 1 of 3 failed with ValueError: its own fault"),
        ("silent", "rank 1 of 3 did not answer for 1.5 s"),
    ],
)
def test_a_lost_rank_stops_the_others_and_is_named(how, words):
    start = time.monotonic()
    with pytest.raises(RunFailedError) as error:
        run_on_ranks(parallel_checks.lose_a_rank, 3, how, device="cpu", timeout=1.5)
    assert str(error.value) == f"{words}; the others were stopped"
    assert time.monotonic() - start < 12


def test_the_code_of_a_part_shows_where_it_gathers():
    model, _ = parallel_checks.net("branches", {"groups": 4})
    how = plan(model, (3, 12, 12), 2)
    part = rank_network(model, how, 1)
    moved = {name: str(module) for name, module in part.named_modules() if isinstance(module, Redistribution)}
    assert moved["relu_for_right"] == "Redistribution(24 gathered)"
    assert moved["max_pool2d_for_last"] == "Redistribution(40 gathered)"
    assert set(how.sent(1)) == {"right", "last", "head", "output"}


def test_the_own_values_of_all_ranks_are_all_values():
    model = nn.Sequential(nn.Conv2d(3, 8, 1, groups=1), nn.Conv2d(8, 8, 3, groups=4), nn.BatchNorm2d(8))
    how = plan(model, (3, 5, 5), 4)
    parts = [rank_values(model, how, model.state_dict(), rank) for rank in range(4)]
    for name, value in model.state_dict().items():
        if value.dim():
            assert torch.equal(torch.cat([part[name] for part in parts]), value)


def study(*flags, **changes):
    content = read_yaml(CONFIGS / "group-parallel.yaml")
    return config.resolve("group-parallel", {**content, **changes}, "configs/group-parallel.yaml", list(flags))


def test_the_study_is_one_of_the_studies_and_none_that_trains():
    assert GROUP_PARALLEL in study_names()
    assert set(study_names()) - set(trained_studies()) == {GROUP_PARALLEL}
    head = (CONFIGS / "group-parallel.yaml").read_text().split("\nquestion:")[0]
    for part in ("# Question:", "# Command:", "# Time:", "# Result:", "make experiment NAME=group-parallel"):
        assert part in head


@pytest.mark.parametrize(
    ("flags", "changes", "words"),
    [
        (["--model.groups=2"], {}, ["variants.devices-4", "4 ranks are more than the 2 groups of conv2"]),
        (["--model.name=shufflenet", "--input_size=64"], {}, ["variants.devices-2", "stage2", "mixes"]),
        (["--model.groups=1"], {}, ["variants.devices-2", "no convolution has groups"]),
        (["--model.classes=3"], {}, ["variants.devices-4", "3 outputs of classify"]),
        (["--input_size=30"], {}, ["input_size=30"]),
        (["--batch_size=3"], {}, ["variants.ddp-4", "batch_size=3", "4 devices"]),
        (["--repeats=0"], {}, ["repeats=0", "at least 1"]),
        (["--device=tpu"], {}, ["device=tpu", "cuda"]),
        (["--device=cuda"], {}, ["device=cuda", "4 ranks", "there are 0"]),
        (["--modle.groups=2"], {}, ["modle.groups", "did you mean model.groups"]),
        (["--only=device-2"], {}, ["--only=device-2", "devices-2"]),
        (["--way=rows"], {}, ["way", "rows", "groups"]),
        ([], {"variants": {}}, ["variants", "devices: 2"]),
        ([], {"model": {"groups": 2}}, ["model.name is missing"]),
        ([], {"variants": {"a": {"devices": 0}}}, ["variants.a", "devices=0"]),
        ([], {"variants": {"a": {"device_count": 2}}}, ["variants.a", "device_count"]),
    ],
    ids=str,
)
def test_what_cannot_work_is_one_line_before_any_process_is_started(monkeypatch, flags, changes, words):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(group_parallel_tables, "run_on_ranks", lambda *_, **__: pytest.fail("a process was started"))
    with pytest.raises(UsageError) as error:
        study(*flags, **changes)
    for word in words:
        assert word in str(error.value)
    assert "\n" not in str(error.value)


def test_cuda_is_taken_where_every_rank_has_a_device(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [device_for("auto", ranks) for ranks in (1, 2, 4)] == ["cuda", "cuda", "cpu"]
    assert device_for("cuda", 2) == "cuda"
    with pytest.raises(UsageError, match="4 ranks need a CUDA device each, and there are 2"):
        device_for("cuda", 4)


SMALL = ["--model.name=small", "--model.groups=4", "--model.classes=8", "--input_size=16", "--batch_size=4"]
SMALL += ["--repeats=2", "--only=devices-1,devices-2,devices-4,ddp-2", "--device=cpu", "--timeout=60"]


def test_the_study_is_measured_once_and_gives_the_verdict_on_claim_26(tmp_path, capsys, monkeypatch):
    """By hand: small with 4 groups sends its 64 features and gets their gradients, and 8 class scores, R − 1 times."""
    assert command_line.main(["run", GROUP_PARALLEL, *SMALL, f"--runs_root={tmp_path}"]) == 0
    out = capsys.readouterr().out
    assert "26 supported" in out
    tables = tmp_path / GROUP_PARALLEL / "tables"
    table = read_table(tables / "measures.csv")
    assert table["value"].notna().all()
    whole = table[table["layer"] == ""].set_index(["variant", "measure", "null"])["value"]
    for devices in (2, 4):
        of = whole[f"devices-{devices}"]
        assert of["sent", ""] == of["sent", "formula"] == (devices - 1) * 4 * 4 * (2 * 64 + 8)
        assert of["sent_into_grouped", ""] == 0
        assert of["gradient_difference", "float64"] < 1e-12
        assert of["step_time_lower", ""] <= of["step_time", ""] <= of["step_time_upper", ""]
    memory = [whole[f"devices-{devices}", "memory_per_device", ""] for devices in (1, 2, 4)]
    assert memory[0] > 1.5 * memory[1] > 2 * memory[2] > 0
    parameters = whole["devices-1", "parameters_per_device", ""]
    assert whole["devices-1", "memory_per_device", ""] > 3 * 4 * parameters, "values, gradients and momentum at least"
    assert whole["ddp-2", "sent", ""] == whole["ddp-2", "sent", "formula"] == 2 * 4 * parameters
    assert whole["ddp-2", "parameters_per_device", ""] == parameters
    assert whole["devices-4", "parameters_per_device", ""] < 0.3 * parameters
    assert set(pd.read_csv(tables / "runs.csv")["variant"]) == {"devices-1", "devices-2", "devices-4", "ddp-2"}
    about = json.loads((tables / "study.json").read_text())
    assert about["question"] and about["overrides"] == SMALL
    of_these_flags = status_of(GROUP_PARALLEL, [*SMALL, f"--runs_root={tmp_path}"])
    assert of_these_flags["counts"] == {"done": 4, "running": 0, "failed": 0, "to do": 0}
    of_the_file = status_of(GROUP_PARALLEL, [f"--runs_root={tmp_path}"])
    assert (of_the_file["counts"]["done"], of_the_file["others"]) == (0, 1)
    monkeypatch.setattr(group_parallel_tables, "run_on_ranks", lambda *_, **__: pytest.fail("measured again"))
    monkeypatch.setattr(group_parallel.figure, "draw", lambda _table, folder: sorted(folder.iterdir()))
    assert command_line.main(["run", GROUP_PARALLEL, *SMALL, f"--runs_root={tmp_path}"]) == 0
    capsys.readouterr()
    assert command_line.main(["figures", GROUP_PARALLEL, f"--runs_root={tmp_path}"]) == 0
    assert "group-parallel.png" in capsys.readouterr().out
    kept = group_parallel.write_record(tmp_path / GROUP_PARALLEL, tmp_path)
    names = {"measures.csv", "notes.csv", "runs.csv", "study.json", "summary.txt"}
    assert {path.name for path in kept} == names | {"group-parallel.pdf", "group-parallel.png"}
    assert group_parallel.verify(GROUP_PARALLEL, tmp_path, None)[0] == []
    record = tmp_path / "results" / GROUP_PARALLEL / "measures.csv"
    rows = record.read_text().splitlines()
    number = next(k for k, row in enumerate(rows) if ",ddp-2," in row and ",sent,formula," in row)
    rows[number] = rows[number].replace(f"{2 * 4 * parameters:.1f}", "777.0")
    record.write_text("\n".join(rows) + "\n")
    place = f"{record}: line {number + 1}, ddp-2, sent (formula)"
    lines, _ = group_parallel.verify(GROUP_PARALLEL, tmp_path, None)
    assert any(line.startswith(f"{place}: 777; it is {8 * parameters:.0f}") for line in lines)

    def lost(*_, **__):
        raise RunFailedError("rank 1 of 4 ended")

    monkeypatch.setattr(group_parallel_tables, "run_on_ranks", lost)
    lines, _ = group_parallel.verify(GROUP_PARALLEL, tmp_path, [])
    assert lines[-1] == f"{record.parent}: measured again: failed: rank 1 of 4 ended"


@pytest.fixture(scope="module")
def plans():
    """The plan of each case of the study, made once."""
    return {}


@pytest.fixture
def recorded(tmp_path, plans, monkeypatch):
    """A copy of the record of the study."""
    make = Case.plan

    def plan_once(case, model):
        if repr(case) not in plans:
            plans[repr(case)] = make(case, model)
        return plans[repr(case)]

    monkeypatch.setattr(Case, "plan", plan_once)
    shutil.copytree(RESULTS / GROUP_PARALLEL, tmp_path / "results" / GROUP_PARALLEL)
    return tmp_path / "results" / GROUP_PARALLEL


CONV99 = "group-parallel,devices-2,,conv99,sent,,,5.0,bytes per step"


@pytest.mark.parametrize(
    ("name", "old", "new", "words"),
    [
        ("measures.csv", "", f"{CONV99}\n", "devices-2, sent of conv99: no value of the study"),
        (
            "measures.csv",
            "",
            "group-parallel,conv99,,,devices,,,2.0,devices\n",
            "conv99, devices: no value of the study",
        ),
        ("measures.csv", "", "group-parallel,log-4,,,devices,,,4.0,devices\n", "log-4, devices: a second row"),
        (
            "measures.csv",
            ",devices-2,,,memory_per_device,,,198610776.0",
            ",devices-2,,,memory_per_device,,,1.0",
            "1; it is",
        ),
        ("measures.csv", ",devices-1,,,memory_of_device_1,,,3", ",devices-1,,,memory_of_device_1,,,-3", "memory"),
        ("measures.csv", ",devices-2,,,sent,,,4125696.0", ",devices-2,,,sent,,,4125697.0", "4125697; it is 4125696"),
        ("measures.csv", "parameters_per_device,,,26705608.0", "parameters_per_device,,,1.0", "1; it is 26705608"),
        (
            "measures.csv",
            ",devices-1,,,step_time,,,0.3",
            ",devices-1,,,step_times,,,0.3",
            "step_time is missing for devices-1",
        ),
        ("measures.csv", ",32.0,images", ",32.0,cats", "images_per_device: unit cats; it is images"),
        (
            "measures.csv",
            "group-parallel,devices-1,,,devices",
            "other,devices-1,,,devices",
            "study other; it is group-parallel",
        ),
        ("measures.csv", "group-parallel,devices-1,,,devices", "group-parallel,devices-1,3,,devices", "seed 3"),
        ("runs.csv", "ddp-2,done", "ddp-2,dead", "line 5, status: dead; the runs give done"),
        ("runs.csv", '"lognet, noise', '"alexnet, noise', "dataset: alexnet, noise of 32 pixels; the runs give lognet"),
        ("runs.csv", "log-4,done", "log-5,done", "variant: log-5; the runs give log-4"),
        ("runs.csv", "", "conv99,done,x,float32,,,,,,,\n", "has 12 rows, and the runs give 11"),
        ("notes.csv", "", "garbage,,,,,\n", "has 8 rows, and the runs give 7"),
        ("notes.csv", "one device sends nothing", "garbage", "note: garbage; the runs give one device sends nothing"),
        ("notes.csv", "ddp-4,,,step_time,4 processes", "ddp-4,,,step_time,9 processes", "the runs give 4 processes"),
        ("study.json", '"key": "1aad06ab"', '"key": "00000000"', "key 00000000; the study has 1aad06ab"),
        ("study.json", "Do groups", "Do cats", "question Do cats allow"),
        ("study.json", '"overrides": []', '"overrides": 4', "damaged: overrides 4: not a list of flags"),
        ("study.json", '"overrides": []', '"overrides": ["--only=x"]', "there is no variant x"),
    ],
)
def test_what_was_edited_in_the_record_is_named(recorded, name, old, new, words):
    path = recorded / name
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1) if old else text + new)
    lines, _ = group_parallel.verify(GROUP_PARALLEL, recorded.parent.parent, None)
    assert any(words in line for line in lines), lines
    assert all(line.startswith(str(recorded)) or "--only=x" in line for line in lines)


@pytest.mark.parametrize("quantity", ["memory_per_device", "devices", "step_time_upper"])
def test_a_record_without_a_quantity_is_one_line_with_the_file(recorded, quantity):
    path = recorded / "measures.csv"
    rows = path.read_text().splitlines()
    path.write_text("\n".join(row for row in rows if f",,,{quantity}," not in row) + "\n")
    (line,), _ = group_parallel.verify(GROUP_PARALLEL, recorded.parent.parent, None)
    names = "ddp-2, ddp-4, devices-1, devices-2, devices-4, log-1, log-2, log-4, uniform-1, uniform-2, uniform-4"
    assert line == f"{path}: {quantity} is missing for {names}"


def test_the_summary_of_a_table_without_a_quantity_has_a_dash(recorded):
    table = read_table(recorded / "measures.csv")
    lines = group_parallel_tables.summary(table[table["measure"] != "memory_per_device"]).splitlines()
    assert all(line.split()[2:4] == ["-", "MB"] for line in lines[3:])


def test_a_lost_rank_ends_the_study_with_one_line_and_nothing_half_measured(tmp_path, capsys, monkeypatch):
    def lost(*_, **__):
        raise RunFailedError("rank 2 of 4 was killed by signal 9 (SIGKILL); the others were stopped", lasting=False)

    monkeypatch.setattr(group_parallel_tables, "run_on_ranks", lost)
    assert command_line.main(["run", GROUP_PARALLEL, *SMALL, f"--runs_root={tmp_path}"]) == 1
    assert "failed: rank 2 of 4 was killed by signal 9" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / GROUP_PARALLEL).rglob("*.*")] == ["lease-1.json"]


def test_the_second_of_two_processes_waits_and_takes_the_tables_of_the_first(tmp_path, capsys, monkeypatch):
    tables, ended = tmp_path / GROUP_PARALLEL / "tables", []
    other = leases.claim(tables)
    assert other is not None

    def the_other_ends(_seconds):
        other.release()
        ended.append(other)

    def draw(_folder):
        assert leases.claim(tables) is None, "nobody else writes now"
        return []

    monkeypatch.setattr("experiments.store.leases.time.sleep", the_other_ends)
    monkeypatch.setattr(group_parallel, "measure", lambda _study: pytest.fail("measured beside the other"))
    monkeypatch.setattr(group_parallel, "_is_measured", lambda _study: bool(ended))
    monkeypatch.setattr(group_parallel, "draw", draw)
    monkeypatch.setattr(group_parallel, "read_measures", lambda _folder: None)
    monkeypatch.setattr(group_parallel, "summary", lambda _table: "")
    monkeypatch.setattr(group_parallel, "study_verdicts", lambda *_: "")
    assert command_line.main(["run", GROUP_PARALLEL, *SMALL, f"--runs_root={tmp_path}"]) == 0
    line = f"in measurement by another process ({os.getpid()} on {socket.gethostname()}); waiting for it"
    assert capsys.readouterr().out.splitlines()[0] == line
    assert leases.holder(tables) is None


def test_measuring_and_writing_the_tables_is_done_under_the_lease(tmp_path, monkeypatch):
    tables = tmp_path / GROUP_PARALLEL / "tables"

    def lost(_study):
        assert leases.claim(tables) is None
        raise RunFailedError("rank 1 of 4 ended")

    monkeypatch.setattr(group_parallel, "measure", lost)
    assert command_line.main(["run", GROUP_PARALLEL, *SMALL, f"--runs_root={tmp_path}"]) == 1
    assert leases.holder(tables) is None, "given back"
