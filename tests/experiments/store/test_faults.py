"""Faults from outside: killed, stopped, full, damaged, doubled; and still every run ends with the same bits.

The long form, with every moment and many processes, is in ``tests/soak`` (``make soak``).
"""

import ctypes
import json
import os
import random
import resource
import signal
import sys
import time

import pytest

from experiments.execution import planned_run
from experiments.measure.table import save_table
from experiments.report.study_tables import missing_table
from experiments.store import progress, stop_signal
from experiments.store.runs import Run, config_hash
from experiments.study.config import load_study
from experiments.study.plan import plan
from fault_children import (
    SMALL,
    a_run,
    assert_same,
    divided,
    fork,
    go_on,
    kill,
    left,
    run_small,
    train,
    train_until_operation,
    wait,
    work,
)

pytestmark = pytest.mark.usefixtures("one_thread")


# Killed and stopped


def test_killed_at_random_moments_it_ends_with_the_same_bits(tmp_path, reference):
    rng, run = random.Random(0), a_run(tmp_path)
    for _ in range(3):
        child = fork(train, run, slow=0.06)  # 18 steps: over a second on any machine, more than the three waits
        time.sleep(rng.uniform(0.05, 0.3))
        assert kill(child) == -signal.SIGKILL
    go_on(run)
    assert_same(run, reference)


@pytest.mark.usefixtures("save_always")
def test_killed_before_any_file_operation_it_ends_with_the_same_bits(tmp_path, reference):
    for number in range(2, 50, 12):  # of some fifty; the long form takes all
        run = a_run(tmp_path, f"run-{number}")
        assert wait(fork(train_until_operation, run, number)) == -signal.SIGKILL
        go_on(run)
        assert_same(run, reference)


def train_on_notice(run):
    stop_signal.install_handlers()
    try:
        train(run, slow=0.03)
    except KeyboardInterrupt:
        return 130
    return 0


def test_on_sigterm_the_step_is_finished_and_saved_and_it_goes_on_in_the_middle_of_the_epoch(tmp_path, reference):
    run = a_run(tmp_path)
    child = fork(train_on_notice, run)
    while len(run.metrics()) < 2:
        time.sleep(0.005)
    time.sleep(0.04)
    asked = time.monotonic()
    os.kill(child, signal.SIGTERM)
    assert wait(child) == 130
    assert time.monotonic() - asked < 5, "a grace period of seconds is enough"
    checkpoint = run.load_checkpoint()
    assert checkpoint is not None
    assert checkpoint["part"]["step"] > 0
    assert '"released": true' in next(run.folder.glob("lease-*")).read_text()
    go_on(run)
    assert_same(run, reference)


@pytest.mark.parametrize("moment", ["step", "evaluation"])
def test_a_notice_at_any_step_or_in_an_evaluation_leads_to_the_same_bits(tmp_path, reference, monkeypatch, moment):
    run, looks = a_run(tmp_path), 0
    name = "note_step" if moment == "step" else "save_if_due"
    look = getattr(progress.Progress, name)

    def noticed(self, *arguments):
        nonlocal looks
        looks += 1
        stop_signal._received = True
        look(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(progress.Progress, name, noticed)
        for _ in range(4):  # each gets one step further
            with pytest.raises(KeyboardInterrupt):
                train(run)
    assert looks == 4
    go_on(run)
    assert_same(run, reference)


def test_a_second_notice_stops_at_once():
    with stop_signal.deferred():
        stop_signal._handle(signal.SIGTERM, None)
        with pytest.raises(KeyboardInterrupt):
            stop_signal._handle(signal.SIGTERM, None)
        stop_signal._received = False
    with pytest.raises(KeyboardInterrupt):
        stop_signal._handle(signal.SIGTERM, None)


# Full and read-only


def train_with_a_full_disk(run, what):
    """The kernel lets no file grow further from the third epoch on: the write is cut short."""
    name = {"checkpoint": "save_checkpoint", "metrics": "add_metrics"}[what]
    write = getattr(Run, name)

    def limited(self, values):
        if len(values["history"] if what == "checkpoint" else self.metrics()) >= 2:
            size = 1000 if what == "checkpoint" else (self.folder / "metrics.jsonl").stat().st_size + 20
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        write(self, values)

    setattr(Run, name, limited)
    try:
        train(run)
    except OSError as error:
        return 28 if what in str(error.filename) else 3
    return 0


@pytest.mark.usefixtures("save_always")
@pytest.mark.parametrize("what", ["checkpoint", "metrics"])
def test_a_disk_that_is_full_stops_the_run_and_costs_it_nothing(tmp_path, reference, what):
    run = a_run(tmp_path)
    assert wait(fork(train_with_a_full_disk, run, what)) == 28
    checkpoint = run.load_checkpoint()
    assert checkpoint is not None
    assert len(checkpoint["history"]) >= 1
    go_on(run)
    assert_same(run, reference)


@pytest.mark.usefixtures("tiny")
def test_a_full_disk_ends_the_study_in_one_error_with_the_place(tmp_path, monkeypatch):
    def full(_descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("experiments.store.runs.os.fsync", full)
    with pytest.raises(OSError, match="No space left") as error:
        run_small(tmp_path, "--only=dense,groups-2")
    assert str(tmp_path) in error.value.filename


def without_override(folder):
    """A study in a child that heeds file modes: root does, without CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH."""
    if os.getuid() == 0:
        libc = ctypes.CDLL(None, use_errno=True)
        header, held = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
        assert libc.capget(header, held) == 0
        for word in (0, 1):  # effective, permitted
            held[word] &= ~0b110
        assert libc.capset(header, held) == 0
    return run_small(folder, "--only=dense,groups-2")


@pytest.mark.skipif(os.getuid() == 0 and sys.platform != "linux", reason="capabilities are Linux's")
@pytest.mark.usefixtures("tiny", "reference")
def test_a_read_only_run_folder_fails_its_run_in_one_line_and_no_other(tmp_path, capfd):
    study = load_study("quickstart", [*SMALL, f"--runs_root={tmp_path}", "--only=dense,groups-2"])
    dense, groups = (p.run for p in plan(study))
    dense.folder.mkdir(parents=True)
    dense.folder.chmod(0o555)
    assert wait(fork(without_override, tmp_path)) == 1
    said = capfd.readouterr()
    (line,) = (line for line in said.out.splitlines() if "dense, seed 0" in line)
    assert "Permission denied" in line
    assert str(dense.folder) in line
    assert "Traceback" not in said.err
    assert groups.result is not None
    dense.folder.chmod(0o755)
    assert run_small(tmp_path, "--only=dense,groups-2") == 0


# Doubled


def test_workers_that_are_killed_lose_and_double_nothing(tmp_path, reference):
    """Three workers on eight runs, two of them killed and replaced."""
    flags = ["--seeds=4", "--only=dense,groups-2", "--recipe.epochs=8"]
    codes, log, killed = divided(tmp_path, flags, 3, 2, (0.1, 0.5), random.Random(1))
    assert killed == 2
    assert set(codes) == {0}
    results = [json.loads(path.read_text()) for path in tmp_path.glob("runs/quickstart/*/result.json")]
    assert [r["status"] for r in results] == ["done"] * 8
    assert not [line for line in log if "DOUBLED" in line or "TWICE" in line]
    assert len(set(log)) == 8, log


def test_a_worker_elsewhere_that_dies_is_replaced_once_its_lease_has_run_out(tmp_path, reference):
    """Both take each other for processes of another machine, so that nothing but the heartbeat tells."""
    flags = ["--seeds=2", "--only=dense", "--recipe.epochs=4"]
    timing = {"beat": 0.05, "expiry": 0.5}
    (log := tmp_path / "log").touch()
    doomed = fork(hold_a_run, tmp_path / "runs", log, flags, timing)
    while not list(tmp_path.glob("runs/quickstart/*/guard")):
        time.sleep(0.005)
    other = fork(work, tmp_path / "runs", log, flags, host="b", **timing)
    time.sleep(0.7)
    assert len(list(tmp_path.glob("runs/quickstart/*/result.json"))) < 2, "the held one is left alone"
    kill(doomed)
    assert wait(other) == 0
    assert len(list(tmp_path.glob("runs/quickstart/*/result.json"))) == 2
    assert "DOUBLED" not in log.read_text()


def hold_a_run(runs_root, log, flags, timing):
    planned_run.train_run = lambda *_: time.sleep(60)
    return work(runs_root, log, flags, host="a", **timing)


# Raised


@pytest.mark.usefixtures("tiny")
def test_a_run_that_raises_is_told_and_marked_and_the_others_finish(tmp_path, monkeypatch, capsys):
    trained = planned_run.train_run

    def breaks(run, *rest):
        if run.variant == "groups-2":
            raise ZeroDivisionError("division by zero")
        return trained(run, *rest)

    flags = ["--only=dense,groups-2,groups-4"]
    with monkeypatch.context() as patch:
        patch.setattr(planned_run, "train_run", breaks)
        assert run_small(tmp_path, *flags) == 1
    out = capsys.readouterr().out
    assert "groups-2, seed 0: failed: ZeroDivisionError: division by zero" in out
    assert out.count("accuracy") == 2
    study = load_study("quickstart", [*SMALL, f"--runs_root={tmp_path}", *flags])
    planned = plan(study)
    table = missing_table(p.run for p in planned)
    assert table.values.tolist() == [
        ["groups-2", 0, "failed", "ZeroDivisionError: division by zero", config_hash(planned[1].run.config)]
    ]
    save_table(tmp_path / "missing.csv", table)
    failure = planned[1].run.failure
    assert failure is not None
    assert "in breaks" in failure["traceback"], "where it was raised is kept"
    assert run_small(tmp_path, *flags) == 0, "the next start tries it again"
    assert missing_table(p.run for p in planned).empty


# How often to save


def test_checkpoints_take_their_share_of_the_time_and_no_more(tmp_path, monkeypatch):
    """Epochs of 1 s, checkpoints of 1/16 s: at 2% one in four epochs, and the first and the last in any case."""
    clock, saved = [0.0], []
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])

    def save(_self, state):
        clock[0] += 0.0625
        saved.append(len(state["history"]))

    monkeypatch.setattr(Run, "save_checkpoint", save)

    class Nothing:
        def state(self, place):
            return {}

        def restore(self, place, state):
            raise AssertionError("there is no checkpoint")

    run = a_run(tmp_path)
    run.folder.mkdir(parents=True)
    going = progress.Progress(run, Nothing())
    for epoch in range(1, 24):
        clock[0] += 1.0
        going.begin_epoch()
        going.end_epoch({"epoch": epoch}, last=epoch == 23)
    assert saved == [1, 5, 9, 13, 17, 21, 23]


def test_a_clock_that_runs_backwards_changes_no_bit(tmp_path, reference, monkeypatch):
    now = [1.7e9]

    def backwards():
        now[0] -= 1000.0
        return now[0]

    monkeypatch.setattr(time, "time", backwards)
    train(a_run(tmp_path))
    assert_same(a_run(tmp_path), reference)
    assert left(reference)[1]["history"] == 6
