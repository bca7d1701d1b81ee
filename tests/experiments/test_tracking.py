"""wandb can never stop a training, and what it is sent is enough for a workspace by itself."""

import json
import os
import subprocess
import sys
import threading
import time
import types
from pathlib import Path

import pytest

from experiments import tracking
from experiments.tracking import Tracker, listening, log_results
from wandb_standin import PROJECT, Standin

ROOT = Path(__file__).parent.parent.parent


class Recorder:
    """Stands in for the wandb package and notes what it is asked."""

    def __init__(self, breaks=()):
        self.asked, self.breaks = [], set(breaks)
        self.summary = self

    def __getattr__(self, asked):
        def call(*arguments, **named):
            if asked in self.breaks or (asked == "init" and f"{named['mode']} init" in self.breaks):
                raise RuntimeError(f"{asked} broke\nwith a second line")
            self.asked.append((asked, arguments, named))
            return self

        return call


@pytest.fixture(autouse=True)
def fresh(monkeypatch, tmp_path):
    """Nobody is logged in, no agent calls, and no server has failed before."""
    monkeypatch.setattr(tracking, "_kept_offline", threading.Event())
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))


def recorded(monkeypatch, breaks=()):
    recorder = Recorder(breaks)
    package = types.ModuleType("wandb")
    for name in ("init", "Settings", "setup"):
        setattr(package, name, getattr(recorder, name))
    monkeypatch.setitem(sys.modules, "wandb", package)
    return recorder


def track(monkeypatch, tmp_path, mode="auto", breaks=(), key=None):
    recorder = recorded(monkeypatch, breaks)
    if key:
        monkeypatch.setenv("WANDB_API_KEY", key)
    tracker = Tracker(mode, "project", "name", "group", {"lr": 1}, tmp_path)
    tracker.log_step(3, {"loss": 2.0})
    tracker.log({"epoch": 1})
    tracker.finish({"status": "done"})
    return recorder.asked


def asked_for(asked, name):
    return [(arguments, named) for called, arguments, named in asked if called == name]


@pytest.mark.parametrize(
    ("mode", "key", "expected"),
    [("auto", None, "offline"), ("auto", "k", "online"), ("online", None, "online"), ("offline", "k", "offline")],
)
def test_online_when_logged_in_else_offline(monkeypatch, tmp_path, mode, key, expected):
    asked = track(monkeypatch, tmp_path, mode, key=key)
    ((_, init),) = asked_for(asked, "init")
    assert init["mode"] == expected
    logged = [arguments[0] for arguments, _ in asked_for(asked, "log")]
    assert logged == [{"step": 3, "step_loss": 2.0}, {"epoch": 1}]
    assert [name for name, _, _ in asked][-2:] == ["update", "finish"]


def test_logged_in_is_whoever_has_the_servers_line_in_netrc(monkeypatch, tmp_path):
    (tmp_path / ".netrc").write_text("machine wandb.example.org\n  login user\n  password k\n")
    assert not tracking.online("auto")
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org:8080")
    assert tracking.online("auto")
    assert not tracking.online("offline")
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert not tracking.online("auto")


def test_epochs_and_steps_have_axes_of_their_own(monkeypatch, tmp_path):
    asked = track(monkeypatch, tmp_path)
    axes = {arguments[0]: named["step_metric"] for arguments, named in asked_for(asked, "define_metric")}
    assert axes["test_*"] == axes["train_*"] == "epoch"
    assert axes["step_*"] == "step"


def test_under_an_agent_run_and_project_are_the_agents(monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_SWEEP_ID", "s")
    monkeypatch.setenv("WANDB_RUN_ID", "r")
    ((_, init),) = asked_for(track(monkeypatch, tmp_path, key="k"), "init")
    assert init["mode"] == "online"
    assert not {"project", "id"} & init.keys()


def test_a_listener_hears_every_epoch_and_can_end_the_run(tmp_path):
    heard = []

    def listener(metrics):
        heard.append(metrics)
        if metrics["epoch"] == 2:
            raise KeyboardInterrupt

    tracker = Tracker("off", "project", "name", "group", {}, tmp_path)
    with listening(listener):
        tracker.log({"epoch": 1})
        with pytest.raises(KeyboardInterrupt):
            tracker.log({"epoch": 2})
    tracker.log({"epoch": 3})
    assert heard == [{"epoch": 1}, {"epoch": 2}]


def test_a_server_that_does_not_take_a_run_is_asked_once_and_the_runs_are_kept_offline(monkeypatch, tmp_path, capsys):
    recorder = recorded(monkeypatch, ["online init"])
    for name in ("first", "second"):
        tracker = Tracker("online", "project", name, "group", {}, tmp_path)
        tracker.log({"epoch": 1})
        tracker.finish({})
    assert [(named["mode"], named["name"]) for _, named in asked_for(recorder.asked, "init")] == [
        ("offline", "first"),
        ("offline", "second"),
    ]
    assert len(asked_for(recorder.asked, "log")) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "kept offline, `wandb sync` sends it later" in said


def test_a_hanging_upload_does_not_hold_up_the_next_run(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("experiments.tracking.FINISH_TIMEOUT_S", 0.05)
    release = threading.Event()

    def hang(*_arguments, **_named):
        release.wait(20)
        raise RuntimeError("the process ends")

    monkeypatch.setattr(Recorder, "finish", hang, raising=False)
    track(monkeypatch, tmp_path)
    release.set()
    time.sleep(0.05)
    said = capsys.readouterr().err
    assert "did not finish" in said
    assert said.count("\n") == 1, "what wandb raises afterwards is not reported"


def test_off_never_touches_wandb(monkeypatch, tmp_path):
    assert track(monkeypatch, tmp_path, "off") == []


@pytest.mark.parametrize("part", ["init", "define_metric", "log", "update", "finish"])
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


def test_real_wandb_writes_offline(tmp_path):
    pytest.importorskip("wandb")
    tracker = Tracker("offline", "project", "name", "group", {"lr": 1}, tmp_path)
    tracker.log({"loss": 0.5})
    tracker.finish({"status": "done"})
    assert list(tmp_path.rglob("*.wandb"))


def result_files(tmp_path):
    from PIL import Image

    table = tmp_path / "tables" / "measures.csv"
    table.parent.mkdir()
    table.write_text("variant,seed,value\ndense,0,0.5\nlog-4,,\n")
    Image.new("RGB", (4, 4)).save(tmp_path / "curves.png")
    return [table], [tmp_path / "curves.png", tmp_path / "curves.pdf"]


PROGRAM = """
import sys, time
from pathlib import Path
from experiments import tracking
tracking.START_TIMEOUT_S, tracking.FINISH_TIMEOUT_S = 2, 2
folder = Path(sys.argv[1])
begun = time.monotonic()
for name in ("first", "second"):
    tracker = tracking.Tracker("auto", "grouped-convolution", name, "study", {"recipe": {"lr": 0.1}}, folder)
    for epoch in (1, 2):
        tracker.log({"epoch": epoch, "test_accuracy": epoch / 4})
        if name == "first" and epoch == 1 and len(sys.argv) > 2:
            time.sleep(1)
            Path(sys.argv[2]).touch()  # the server may break now
            while Path(sys.argv[2]).exists():
                time.sleep(0.01)
    tracker.finish({"status": "done"})
print(time.monotonic() - begun)
"""


def program(server, tmp_path, *more):
    environment = {**os.environ, **server.environment(str(tmp_path))}
    arguments = [sys.executable, "-c", PROGRAM, str(tmp_path), *more]
    pipe = subprocess.PIPE
    return subprocess.Popen(arguments, env=environment, cwd=ROOT, stdout=pipe, stderr=pipe, text=True)


SERVERS = ["gone", *(pytest.param(trouble, marks=pytest.mark.slow) for trouble in ("slow", "500", "wrong key"))]


@pytest.mark.parametrize("trouble", SERVERS)
def test_a_broken_server_costs_one_line_and_nothing_is_lost(tmp_path, trouble):
    with Standin() as server:
        server.trouble = trouble
        if trouble == "gone":
            server.close()
        out, err = program(server, tmp_path).communicate(timeout=60)
    assert float(out) < 20, "2 s of patience once, and not for the second run"
    assert err.count("\n") == 1, err
    assert "wandb's server did not take the run" in err
    offline = list(tmp_path.glob("wandb/offline-run-*/*.wandb"))
    assert len(offline) == 2, "both runs can be sent later"


@pytest.mark.slow
@pytest.mark.parametrize("trouble", ["gone", "slow", "500"])
def test_a_server_that_breaks_in_the_middle_costs_one_line_and_the_process_ends(tmp_path, trouble):
    with Standin() as server:
        process = program(server, tmp_path, str(tmp_path / "break"))
        while not (tmp_path / "break").exists():
            assert process.poll() is None, process.communicate()
            time.sleep(0.02)
        server.trouble = trouble
        if trouble == "gone":
            server.close()
        (tmp_path / "break").unlink()
        out, err = process.communicate(timeout=60)
    assert float(out) < 15
    assert process.returncode == 0
    assert err.count("\n") == 1, err
    assert "the run is kept" in err


def test_results_are_a_run_with_every_table_and_figure_and_are_sent_once(tmp_path):
    tables, figures = result_files(tmp_path)
    program = f"""
from pathlib import Path
from experiments.tracking import log_results
tables, figures = {[str(t) for t in tables]!r}, {[str(f) for f in figures]!r}
for _ in range(2):
    log_results("auto", "quickstart", Path({str(tmp_path)!r}), list(map(Path, tables)), list(map(Path, figures)),
                {{"question": "What?", "commit": "abc"}})
"""
    with Standin() as server:
        environment = {**os.environ, **server.environment(str(tmp_path))}
        done = subprocess.run(
            [sys.executable, "-c", program], env=environment, cwd=ROOT, capture_output=True, text=True
        )
    assert done.stderr == ""
    assert not server.unknown
    (run,) = [sent for sent in server.runs.values() if sent.name]
    assert run.name == "quickstart results"
    assert run.config["commit"] == "abc"
    assert run.metrics("figures/curves")[0]["_type"] == "image-file"
    assert run.metrics("tables/measures")[0]["_type"] == "table-file"
    (table,) = [json.loads(content) for name, content in run.files.items() if name.endswith(".table.json")]
    assert table == {"columns": ["variant", "seed", "value"], "data": [["dense", 0, 0.5], ["log-4", None, None]]}
    assert [name for name in run.files if name.endswith(".png")]
    assert server.asked.count("RunResumeStatus") == 1, "the second call begins no run"


def test_without_wandb_no_results_are_sent(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    tables, figures = result_files(tmp_path)
    log_results("auto", "quickstart", tmp_path, tables, figures, {})
    assert not (tmp_path / "wandb").exists()
    assert PROJECT == tracking.PROJECT


def test_results_of_a_disabled_wandb_do_not_count_as_sent(monkeypatch, tmp_path):
    table = tmp_path / "runs.csv"
    table.write_text("a,b\n1,2\n")
    recorder = recorded(monkeypatch)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    log_results("auto", "study", tmp_path, [table], [], {})
    assert not recorder.asked
    assert not (tmp_path / "wandb" / "results-sent").exists()


@pytest.mark.parametrize("command", ["disabled", "offline"])
def test_what_the_commands_of_wandb_set_holds_until_they_unset_it(monkeypatch, tmp_path, command):
    """The commands of wandb itself write the settings."""
    pytest.importorskip("wandb")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.setenv("WANDB_API_KEY", "k")
    assert tracking.online("auto")
    wandb = [sys.executable, "-m", "wandb"]
    subprocess.run([*wandb, command], check=True, capture_output=True)
    asked = track(monkeypatch, tmp_path / "runs")
    assert [named["mode"] for _, named in asked_for(asked, "init")] == ([] if command == "disabled" else ["offline"])
    assert not tracking.online("auto")
    assert tracking.online("online"), "a flag counts before the settings"
    monkeypatch.setenv("WANDB_MODE", "online")
    assert tracking.online("auto"), "as does the variable"
    monkeypatch.delenv("WANDB_MODE")
    subprocess.run([*wandb, {"disabled": "enabled", "offline": "online"}[command]], check=True, capture_output=True)
    assert tracking.online("auto")


@pytest.mark.parametrize(
    "content", ["", "mode = disabled", "[default]\nmode", "[default]\nmode = \udcff", "[client]\n"]
)
def test_settings_of_wandb_that_cannot_be_read_count_as_none(monkeypatch, tmp_path, content):
    (tmp_path / "settings").write_bytes(content.encode(errors="surrogateescape"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_API_KEY", "k")
    assert tracking.online("auto")


@pytest.mark.parametrize(("said", "mode"), [("dryrun", "offline"), ("run", "online")])
def test_older_names_of_the_modes_are_known(monkeypatch, tmp_path, said, mode):
    monkeypatch.setenv("WANDB_MODE", said)
    ((_, init),) = asked_for(track(monkeypatch, tmp_path), "init")
    assert init["mode"] == mode


@pytest.mark.parametrize("server", ["none is asked", "refuses"])
def test_results_kept_offline_do_not_count_as_sent(monkeypatch, tmp_path, server):
    recorder = recorded(monkeypatch, ["online init"] if server == "refuses" else [])
    monkeypatch.setattr(Tracker, "show", lambda *_: None)
    table = tmp_path / "runs.csv"
    table.write_text("a,b\n1,2\n", encoding="utf-8")

    def send(mode):
        monkeypatch.setattr(tracking, "_kept_offline", threading.Event())  # as in another process
        before = len(asked_for(recorder.asked, "init"))
        log_results(mode, "study", tmp_path, [table], [], {})
        return [named["mode"] for _, named in asked_for(recorder.asked, "init")[before:]]

    assert send("online" if server == "refuses" else "offline") == ["offline"]
    assert send("offline") == [], "kept once"
    recorder.breaks.clear()
    assert send("online") == ["online"]
    assert send("online") == send("offline") == [], "sent once"
