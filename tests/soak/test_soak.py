"""The long form of the faults, run by `make soak`: every moment, many processes, a disk that is really full."""

import errno
import json
import os
import random
import signal
import subprocess
import time
from itertools import count
from pathlib import Path

import pytest
import torch

from experiments.store import progress, stop_signal
from fault_children import a_run, assert_same, divided, fork, kill, left, train, train_until_operation, wait, work

pytestmark = [pytest.mark.soak, pytest.mark.timeout(1200)]

EPOCHS = 12
KILLS = 20


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """The order of a sum depends on the number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """A run that nothing happened to; and how long it takes."""
    train(a_run(tmp_path_factory.mktemp("warm"), epochs=EPOCHS), EPOCHS)
    run = a_run(tmp_path_factory.mktemp("reference"), epochs=EPOCHS)
    start = time.monotonic()
    assert wait(fork(train, run, EPOCHS, slow=0.01)) == 0
    return run, time.monotonic() - start


@pytest.mark.parametrize("saving", ["at 2% of the time", "every epoch"])
def test_twenty_kills_at_random_moments_of_twenty_runs(tmp_path, reference, monkeypatch, saving):
    """Each run is killed at a moment anywhere from its first to its last, then goes on to the end."""
    if saving == "every epoch":
        monkeypatch.setattr(progress, "MAX_CHECKPOINT_SHARE", 1e9)
    (whole, seconds), rng, recovered, epochs = reference, random.Random(20), 0, []
    while recovered < KILLS:
        run = a_run(tmp_path, f"run-{recovered}", EPOCHS)
        child = fork(train, run, EPOCHS, slow=0.01)
        time.sleep(rng.uniform(0, seconds))
        if kill(child) == -signal.SIGKILL:
            epochs.append(len(run.metrics()))
            assert wait(fork(train, run, EPOCHS)) == 0
            assert_same(run, whole)
            recovered += 1
        else:  # it was quicker
            (run.folder / "result.json").unlink()
            run.folder.rename(tmp_path / f"quick-{time.monotonic_ns()}")
    print(f"\n{recovered}/{KILLS} recovered bit for bit; killed in epochs {sorted(epochs)}")


def test_one_run_killed_twenty_times(tmp_path, reference):
    (whole, _), rng, run, kills = reference, random.Random(3), a_run(tmp_path, epochs=EPOCHS), 0
    while kills < KILLS and run.result is None:
        child = fork(train, run, EPOCHS, slow=0.02)
        time.sleep(rng.uniform(0.02, 0.25))
        kills += kill(child) == -signal.SIGKILL
    assert wait(fork(train, run, EPOCHS)) == 0
    assert_same(run, whole)
    print(f"\n{kills} kills of one run, recovered bit for bit")


def test_killed_before_each_file_operation(tmp_path, reference, monkeypatch):
    monkeypatch.setattr(progress, "MAX_CHECKPOINT_SHARE", 1e9)
    for number in count(1):
        run = a_run(tmp_path, f"run-{number}")
        code = wait(fork(train_until_operation, run, number))
        if code == 0:
            break
        assert code == -signal.SIGKILL
        assert wait(fork(train, run)) == 0
        assert run.result is not None
        if number == 1:
            whole = run
        assert_same(run, whole)
    assert number > 30
    print(f"\n{number - 1} of {number - 1} kills, one before each file operation, recovered bit for bit")


def train_on_notice(run):
    stop_signal.install_handlers()
    try:
        train(run, EPOCHS, slow=0.01)
    except KeyboardInterrupt:
        return 130
    return 0


def test_terminated_again_and_again(tmp_path, reference):
    (whole, _), rng, run, asked = reference, random.Random(5), a_run(tmp_path, epochs=EPOCHS), 0
    while run.result is None:
        child = fork(train_on_notice, run)
        time.sleep(rng.uniform(0.02, 0.3))
        os.kill(child, signal.SIGTERM)
        assert wait(child, 10) in (0, 130, 1, -signal.SIGTERM)  # the last where the child had not even begun
        asked += 1
    assert_same(run, whole)
    print(f"\n{asked} SIGTERMs on the way to the end")


def test_four_workers_forty_runs_ten_kills(tmp_path, reference):
    """No run is lost, none is doubled, and each ends as it does in a process that is alone."""
    flags = ["--seeds=10", "--recipe.epochs=24", "--model.width=8"]  # so long that ten kills come before its end
    codes, log, killed = divided(tmp_path, flags, 4, 10, (0.1, 0.5), random.Random(40))
    assert killed == 10
    assert set(codes) == {0}
    folders = sorted(path.parent for path in tmp_path.glob("runs/quickstart/*/result.json"))
    assert len(folders) == 40
    assert {json.loads((folder / "result.json").read_text())["status"] for folder in folders} == {"done"}
    assert not [line for line in log if "DOUBLED" in line or "TWICE" in line]
    assert {line.split()[1] for line in log} == {folder.name for folder in folders}
    (alone := tmp_path / "alone").mkdir()
    assert wait(fork(work, alone / "runs", alone / "log", flags), 300) == 0
    for folder in folders:
        ours, theirs = (
            torch.load(place / "checkpoint.pt", weights_only=True)
            for place in (folder, alone / "runs" / "quickstart" / folder.name)
        )
        for name, value in ours["model"].items():
            assert torch.equal(value, theirs["model"][name]), (folder.name, name)
    print(f"\n{len(folders)} of 40 runs after {killed} kills, none in two hands at once, none with two results")


def fill(place):
    """A child that trains on a disk of one megabyte until it is full."""
    run = a_run(place)
    try:
        train(run)
    except OSError as error:
        return 28 if error.errno == errno.ENOSPC else 3
    return 0


@pytest.mark.parametrize("room", [0, 3_000, 30_000, 60_000])
def test_a_disk_that_is_really_full(tmp_path, monkeypatch, room):
    """A tmpfs with so many bytes left: training stops, and with room it goes on to the same bits."""
    monkeypatch.setattr(progress, "MAX_CHECKPOINT_SHARE", 1e9)
    assert wait(fork(train, a_run(tmp_path, "whole"))) == 0
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", disk], capture_output=True).returncode:
        pytest.skip("no right to mount a file system")
    try:
        free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
        (disk / "ballast").write_bytes(bytes(free - room))
        code = wait(fork(fill, disk))
        assert code == 28
        (disk / "ballast").unlink()
        assert wait(fork(train, a_run(disk))) == 0
        assert_same(a_run(disk), a_run(tmp_path, "whole"))
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def test_what_is_compared_is_not_nothing(reference):
    tensors, values = left(reference[0])
    assert len(tensors) > 20
    assert len(values["metrics"]) == EPOCHS
    assert Path(reference[0].folder).is_dir()
