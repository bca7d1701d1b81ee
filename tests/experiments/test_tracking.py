"""wandb can never stop a training."""

import sys
import threading
import types

import pytest

from experiments.tracking import Tracker


class Recorder:
    """Stands in for the wandb package and notes what it is asked."""

    def __init__(self, breaks=()):
        self.asked, self.breaks = [], set(breaks)
        self.summary = self

    def __getattr__(self, asked):
        def call(*arguments, **named):
            if asked in self.breaks:
                raise RuntimeError(f"{asked} broke\nwith a second line")
            self.asked.append((asked, arguments, named))
            return self

        return call


def track(monkeypatch, tmp_path, mode="auto", breaks=(), key=None):
    recorder = Recorder(breaks)
    package = types.ModuleType("wandb")
    package.init = recorder.init
    package.Settings = recorder.Settings
    monkeypatch.setitem(sys.modules, "wandb", package)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("NETRC", raising=False)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    if key:
        monkeypatch.setenv("WANDB_API_KEY", key)
    tracker = Tracker(mode, "project", "name", "group", {"lr": 1}, tmp_path)
    tracker.log({"epoch": 1})
    tracker.finish({"status": "done"})
    return recorder.asked


@pytest.mark.parametrize(
    ("mode", "key", "expected"),
    [("auto", None, "offline"), ("auto", "k", "online"), ("online", None, "online"), ("offline", "k", "offline")],
)
def test_online_when_logged_in_else_offline(monkeypatch, tmp_path, mode, key, expected):
    asked = track(monkeypatch, tmp_path, mode, key=key)
    init = next(named for name, _, named in asked if name == "init")
    assert init["mode"] == expected
    assert [name for name, _, _ in asked if name != "Settings"] == ["init", "log", "update", "finish"]


def test_a_hanging_upload_does_not_hold_up_the_next_run(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("experiments.tracking.PATIENCE", 0.05)
    release = threading.Event()
    monkeypatch.setattr(Recorder, "finish", lambda *_, **__: release.wait(20), raising=False)
    track(monkeypatch, tmp_path)
    release.set()
    assert "did not finish" in capsys.readouterr().err


def test_off_never_touches_wandb(monkeypatch, tmp_path):
    assert track(monkeypatch, tmp_path, "off") == []


@pytest.mark.parametrize("part", ["init", "log", "update", "finish"])
def test_a_failure_is_told_once_and_stops_nothing(monkeypatch, tmp_path, capsys, part):
    track(monkeypatch, tmp_path, breaks=[part])
    said = capsys.readouterr().err
    assert said.count("warning") == 1
    assert f"{part} broke" in said
    assert "metrics.jsonl" in said


def test_without_the_package_everything_works(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "wandb", None)
    for mode in ("auto", "offline"):
        tracker = Tracker(mode, "project", "name", "group", {}, tmp_path)
        tracker.log({"epoch": 1})
        tracker.finish({})
    assert capsys.readouterr().err.count("not installed") == 1


def test_real_wandb_writes_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    tracker = Tracker("offline", "project", "name", "group", {"lr": 1}, tmp_path)
    tracker.log({"loss": 0.5})
    tracker.finish({"status": "done"})
    assert list(tmp_path.rglob("*.wandb"))
