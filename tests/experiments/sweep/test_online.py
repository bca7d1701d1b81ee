"""wandb's real programs against a stand-in of its server: sweeps, agents, offline runs sent later."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.errors import UsageError
from experiments.sweep import online as sweep_online
from experiments.sweep.file import read_sweep, sweep_names, sweep_path
from wandb_standin import ENTITY, PROJECT, SentRun, Standin

ROOT = Path(__file__).parents[3]
SMALL = ["--recipe.device=cpu", "--model.width=4", "--recipe.batch_size=384", "--seeds=1"]


@pytest.fixture
def server():
    with Standin() as standin:
        yield standin


@pytest.fixture
def user(server, tmp_path, monkeypatch):
    """Be logged in to the stand-in."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    for name, value in server.environment(str(tmp_path)).items():
        if name not in ("WANDB_ENTITY", "WANDB_PROJECT"):
            monkeypatch.setenv(name, value)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def wandb(*arguments, **named):
    """One wandb program, as a user starts it."""
    command = [sys.executable, "-m", "wandb", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=110, **named)


def sweep_file(tmp_path, method="grid", more="", epochs=2):
    command = json.dumps(
        [
            "${env}",
            "${interpreter}",
            "-m",
            "${program}",
            "run",
            "quickstart",
            *SMALL,
            f"--recipe.epochs={epochs}",
            f"--runs_root={tmp_path}/runs",
            f"--data_root={ROOT}/data",
            "${args}",
        ]
    )
    path = tmp_path / "example.yaml"
    path.write_text(
        f"project: {PROJECT}\nprogram: experiments\ncommand: {command}\nmethod: {method}\n{more}"
        "metric: {name: test_accuracy, goal: maximize}\n"
        "parameters:\n  model.groups: {values: [1, 'log:3']}\n  recipe.lr: {value: 0.2}\n"
    )
    return path


@pytest.mark.usefixtures("user")
def test_the_real_wandb_sweep_takes_a_shipped_file_as_it_is(server):
    sweep = read_sweep(sweep_path("photos-bayes"))
    path = sweep_online._create(sweep)
    assert path == f"{ENTITY}/{PROJECT}/sweep0"
    assert {key: server.sweeps["sweep0"][key] for key in sweep.content} == sweep.content
    assert not server.unknown


@pytest.mark.slow
@pytest.mark.usefixtures("user")
@pytest.mark.parametrize("name", sweep_names())
def test_the_real_wandb_sweep_takes_every_shipped_file(server, name):
    sweep = read_sweep(sweep_path(name))
    assert sweep_online._create(sweep).endswith("/sweep0")
    sent = server.sweeps["sweep0"]["parameters"]
    assert {key: sent[key].get("values") for key in sent} == {k: p.get("values") for k, p in sweep.parameters.items()}


@pytest.mark.usefixtures("user")
def test_a_server_that_does_not_take_the_sweep_is_one_line(server, monkeypatch):
    monkeypatch.setattr(sweep_online, "CREATE_TIMEOUT_S", 3)
    server.trouble = "500"
    with pytest.raises(UsageError) as error:
        sweep_online._create(read_sweep(sweep_path("photos-bayes")))
    assert "--local runs the same file on this machine" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.usefixtures("user")
def test_results_of_all_machines_are_read_from_the_server(server, tmp_path):
    config = {"recipe.lr": 0.2, "model.groups": 1, "seed": 0}
    server.runs = {
        "a": SentRun(
            "x", "s", config, {"test_accuracy": 0.5, "status": "done", "epoch": 2, "seconds": 3.0}, exit_code=0
        ),
        "b": SentRun("x", "s", {**config, "model.groups": "log:3"}, {"test_accuracy": 0.3, "epoch": 1}, stopped=True),
        "c": SentRun("x", "s", config, {"status": "diverged", "reason": "the loss became nan"}, exit_code=1),
        "d": SentRun("x", "another", config, {}, exit_code=0),
    }
    points = sweep_online._points(read_sweep(sweep_file(tmp_path)), f"{ENTITY}/{PROJECT}/s")
    assert [(p.run, p.state, p.metric("test_accuracy")) for p in points] == [
        ("a", "done", 0.5),
        ("b", "stopped", 0.3),
        ("c", "diverged", None),
    ]
    assert points[1].values == {"recipe.lr": 0.2, "model.groups": "log:3"}
    assert points[2].reason == "the loss became nan"


def test_an_offline_run_is_sent_later_by_the_real_wandb_sync(server, tmp_path):
    program = f"""
from pathlib import Path
from experiments.tracking import Tracker
t = Tracker("offline", "{PROJECT}", "dense-seed0", "study", {{"recipe": {{"lr": 0.1}}}}, Path({str(tmp_path)!r}))
t.log_step(25, {{"loss": 2.0, "lr": 0.05}})
t.log({{"epoch": 1, "test_accuracy": 0.5}})
t.log({{"epoch": 2, "test_accuracy": 0.75}})
t.finish({{"status": "done", "commit": "abc"}})
"""
    environment = {**os.environ, "HOME": str(tmp_path), "WANDB_ERROR_REPORTING": "false"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.stderr == ""
    assert not server.asked, "nobody was asked while offline"
    (folder,) = tmp_path.glob("wandb/offline-run-*")
    sent = wandb("sync", str(folder), env={**environment, **server.environment(str(tmp_path))}, cwd=tmp_path)
    assert sent.returncode == 0, sent.stderr
    (run,) = server.runs.values()
    assert run.name == "dense-seed0"
    assert run.config["recipe"] == {"lr": 0.1}
    assert run.metrics("test_accuracy") == [0.5, 0.75]
    assert (run.metrics("step"), run.metrics("step_loss"), run.metrics("step_lr")) == ([25], [2.0], [0.05])
    assert (run.summary["status"], run.summary["commit"], run.summary["test_accuracy"]) == ("done", "abc", 0.75)
    assert not server.unknown


def agents_run(server, tmp_path, *flags):
    environment = {**os.environ, **server.environment(str(tmp_path)), "OMP_NUM_THREADS": "1"}
    command = [
        sys.executable,
        "-m",
        "experiments",
        "sweep",
        str(tmp_path / "example.yaml"),
        f"--runs_root={tmp_path}/runs",
    ]
    return subprocess.run([*command, *flags], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=280)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.usefixtures("user")
def test_logged_in_a_sweep_is_led_by_the_server_and_run_by_a_real_agent(server, tmp_path):
    """`wandb sweep`, `wandb agent` and the runs that it starts, all real; every grid point once."""
    sweep_file(tmp_path)
    done = agents_run(server, tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"wandb agent {ENTITY}/{PROJECT}/sweep0" in done.stdout
    runs = server._of_sweep("sweep0")
    assert [run.config["model.groups"] for run in runs.values()] == [1, "log:3"]
    for identity, run in runs.items():
        accuracies = run.metrics("test_accuracy")
        assert len(accuracies) == 2, "one value an epoch"
        assert run.summary["test_accuracy"] == accuracies[-1]
        assert run.summary["status"] == "done"
        assert run.metrics("step_loss")
        assert run.config["model"]["groups"] == run.config["model.groups"]
        assert run.exit_code == 0
        (result,) = tmp_path.glob(f"runs/sweeps/sweep0/{identity}/*/result.json")
        assert json.loads(result.read_text())["test_accuracy"] == accuracies[-1]
    folder = tmp_path / "runs/sweeps/example"
    assert "2 points by grid: 2 done" in done.stdout
    for name in ("tables/sweep.csv", "best.yaml", "figures/parallel-coordinates.png"):
        assert (folder / name).is_file()
    (results,) = [run for run in server.runs.values() if run.name == "example results"]
    assert results.metrics("figures/parallel-coordinates")
    assert results.metrics("tables/sweep")
    assert not server.unknown
    # Started again it joins the same sweep, which has nothing left.
    assert agents_run(server, tmp_path).returncode == 0
    assert list(server.sweeps) == ["sweep0"]
    assert len(server._of_sweep("sweep0")) == 2


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.usefixtures("user")
def test_an_agent_that_ends_a_run_early_finds_it_stopped_and_not_failed(server, tmp_path, monkeypatch):
    """The server's stop reaches the run as SIGTERM."""
    sweep_file(tmp_path, epochs=400)
    server.run_cap = 1
    monkeypatch.setattr(server, "_stops", lambda _sweep, alive: _stop_once_reported(server, alive))
    done = agents_run(server, tmp_path)
    assert done.returncode == 0, done.stderr
    (run,) = server._of_sweep("sweep0").values()
    assert 1 <= len(run.metrics("test_accuracy")) < 400
    (result,) = tmp_path.glob("runs/sweeps/sweep0/*/*/result.json")
    assert json.loads(result.read_text())["status"] == "stopped"
    assert "1 stopped" in done.stdout
    assert "Traceback" not in done.stderr


def _stop_once_reported(server, alive):
    reported = [run for run in alive if server.runs[run].metrics("test_accuracy")]
    for run in reported:
        server.runs[run].stopped = True
    return [{"type": "stop", "run_id": run} for run in reported]
