"""Holders of a folder: exactly one, whoever dies, stalls or turns a clock back."""

import json
import os
import signal
import time

import pytest

from experiments.store import leases
from experiments.store.leases import LeaseLostError, claim, holder, wait_for_lease
from fault_children import fork, kill, wait


@pytest.fixture
def fast(monkeypatch):
    """Leases that beat every 20 ms and run out after 0.3 s."""
    monkeypatch.setattr(leases, "HEARTBEAT_INTERVAL_S", 0.02)
    monkeypatch.setattr(leases, "EXPIRY_S", 0.3)
    monkeypatch.setattr(leases, "_seen", {})


def hold(folder, ready, machine=None):
    """A child that holds a folder until it is killed."""
    if machine:
        leases.machine = lambda: machine
    assert claim(folder) is not None
    ready.touch()
    time.sleep(60)


def begin_holding(folder, tmp_path, machine=None):
    child = fork(hold, folder, tmp_path / "ready", machine)
    while not (tmp_path / "ready").exists():
        time.sleep(0.005)
    return child


def race(folder, place, start):
    """A child that claims a folder at a given moment, tells by its exit code, and keeps what it got."""
    time.sleep(max(0.0, start - time.monotonic()))  # a clock that all processes share
    won = claim(folder) is not None
    (place / str(os.getpid())).touch()
    while not (place / "over").exists():
        time.sleep(0.005)
    return int(won)


def winners(folder, tmp_path, children=3):
    """Return how many of several processes that claim a folder at once get it."""
    place = tmp_path / f"race-{time.monotonic_ns()}"
    place.mkdir()
    start = time.monotonic() + 0.1
    runners = [fork(race, folder, place, start) for _ in range(children)]
    while len(list(place.iterdir())) < children:
        time.sleep(0.005)
    (place / "over").touch()
    return sum(wait(child) for child in runners)


def test_one_holds_and_the_next_holds_what_was_given_back(tmp_path):
    first = claim(tmp_path / "run")
    assert first is not None
    assert claim(tmp_path / "run") is None
    first.check()
    first.release()
    assert holder(tmp_path / "run") is None
    second = claim(tmp_path / "run")
    assert second is not None
    assert len(list((tmp_path / "run").iterdir())) == 1, "no old leases pile up"
    second.release(remove=True)
    assert not list((tmp_path / "run").iterdir())


def test_it_says_who_holds_what_since_when(tmp_path):
    lease = claim(tmp_path)
    owner = holder(tmp_path)
    assert owner is not None and lease is not None
    assert owner.pid == os.getpid()
    assert owner.alive() is True
    assert owner.since.startswith("20")
    lease.release()


def test_of_those_who_start_at_once_one_gets_it(tmp_path):
    for k in range(3):
        assert winners(tmp_path / f"free-{k}", tmp_path) == 1
        claimed = fork(claim, tmp_path / f"dead-{k}")  # dies with the lease in its hands
        wait(claimed)
        assert winners(tmp_path / f"dead-{k}", tmp_path) == 1


def test_what_a_killed_process_held_is_free_at_once_on_its_machine(tmp_path):
    child = begin_holding(tmp_path / "run", tmp_path)
    assert claim(tmp_path / "run") is None
    assert kill(child) == -signal.SIGKILL
    assert holder(tmp_path / "run") is None
    assert claim(tmp_path / "run") is not None


def test_a_process_number_that_is_used_again_is_not_taken_for_the_holder(tmp_path):
    lease = claim(tmp_path)
    assert lease is not None
    lease.release()
    content = json.loads(lease.path.read_text())
    lease.path.write_text(json.dumps({**content, "released": False, "born": content["born"] - 1}))
    assert holder(tmp_path) is None
    assert claim(tmp_path) is not None


@pytest.mark.usefixtures("fast")
def test_on_another_machine_a_lease_runs_out_when_its_heart_stops_and_not_before(tmp_path):
    child = begin_holding(tmp_path / "run", tmp_path, machine="elsewhere")
    for _ in range(25):
        assert claim(tmp_path / "run") is None
        time.sleep(0.02)
    kill(child)
    died = time.monotonic()
    while claim(tmp_path / "run") is None:
        assert time.monotonic() - died < 5
        time.sleep(0.01)
    assert time.monotonic() - died > 0.1  # its last beat may lie a while before its death


@pytest.mark.usefixtures("fast")
def test_who_stood_still_for_long_has_lost_and_learns_it_before_writing(tmp_path, monkeypatch):
    monkeypatch.setattr(leases, "HEARTBEAT_INTERVAL_S", 60)  # the heart of this process has stopped
    lease = claim(tmp_path)
    assert lease is not None
    monkeypatch.setattr(leases, "machine", lambda: "elsewhere")
    assert claim(tmp_path) is None
    lease.check()
    time.sleep(0.35)
    other = claim(tmp_path)
    assert other is not None
    other.check()
    with pytest.raises(LeaseLostError, match="taken the run over"):
        lease.check()
    lease.release()  # does not take the other's
    other.check()
    monkeypatch.undo()
    assert holder(tmp_path) is not None


def test_who_claims_by_an_old_view_gets_nothing_though_its_number_is_free_again(tmp_path, monkeypatch):
    """It has listed lease-1. Before it creates lease-2, one process has had lease-2, and another holds lease-3."""
    first = claim(tmp_path)
    assert first is not None
    first.release()
    open_file, others = os.open, []

    def late(path, flags, *mode):
        if flags & os.O_EXCL and not others:
            others.append(None)
            second = claim(tmp_path)
            assert second is not None
            second.release()
            others.append(claim(tmp_path))
        return open_file(path, flags, *mode)

    monkeypatch.setattr(leases.os, "open", late)
    assert claim(tmp_path) is None
    others[1].check()
    assert [p.name for p in tmp_path.iterdir()] == ["lease-3.json"]


def test_a_lease_is_lost_to_any_higher_number(tmp_path):
    lease = claim(tmp_path)
    assert lease is not None
    (tmp_path / "lease-3.json").touch()  # whoever had lease-2 has been and gone
    with pytest.raises(LeaseLostError, match="taken the run over"):
        lease.check()


@pytest.mark.usefixtures("fast")
@pytest.mark.parametrize("hours", [-1000, 1000])
def test_a_clock_that_is_set_changes_nothing(tmp_path, monkeypatch, hours):
    child = begin_holding(tmp_path / "run", tmp_path, machine="elsewhere")
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + hours * 3600)
    for _ in range(20):
        (path,) = (tmp_path / "run").iterdir()
        os.utime(path, (now() + hours * 3600,) * 2)
        assert claim(tmp_path / "run") is None
        time.sleep(0.02)
    kill(child)
    time.sleep(0.05)
    assert claim(tmp_path / "run") is None, "0.05 s are not 0.3 s, whatever the clock says"
    time.sleep(0.35)
    assert claim(tmp_path / "run") is not None


@pytest.mark.usefixtures("fast")
@pytest.mark.parametrize("content", [b"", b'{"host": "a", "pi', b"[1]", b'{"cmd": "rm"}', b"\xff\x00"], ids=repr)
def test_a_lease_that_cannot_be_read_runs_out(tmp_path, content):
    (tmp_path / "lease-7.json").write_bytes(content)
    assert claim(tmp_path) is None
    time.sleep(0.35)
    lease = claim(tmp_path)
    assert lease is not None
    assert [p.name for p in tmp_path.iterdir()] == ["lease-8.json"]


def test_who_waits_gets_it_after_those_before(tmp_path):
    child = begin_holding(tmp_path / "tables", tmp_path)
    os.kill(child, signal.SIGKILL)
    with wait_for_lease(tmp_path / "tables", poll=0.01):
        assert claim(tmp_path / "tables") is None
    wait(child)
    assert claim(tmp_path / "tables") is not None


def test_a_full_disk_leaves_no_lease(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(leases.os, "write", full)
    with pytest.raises(OSError, match="No space") as error:
        claim(tmp_path)
    assert "lease-1.json" in str(error.value.filename)
    assert not list(tmp_path.iterdir())
