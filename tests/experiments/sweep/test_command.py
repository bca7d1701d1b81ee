"""Sweeps on this machine: the engine's suggestions are trained, stopped, resumed and summed up."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import nullcontext
from dataclasses import replace
from multiprocessing import Pipe

import pytest

from experiments.errors import UsageError
from experiments.sweep import command as sweep
from experiments.sweep import engine as sweep_engine
from experiments.sweep import worker as sweep_worker
from experiments.sweep.engine import LocalSweep, Point, Worker, read_points, suggest, to_stop
from experiments.sweep.file import read_sweep
from experiments.sweep.worker import SweepContext
from tiny_images import tiny_dataset

HEAD = """\
program: experiments
command: ["${env}", "${interpreter}", -m, "${program}", run, quickstart, --recipe.device=cpu, --model.width=4,
          --recipe.batch_size=12, --recipe.epochs=EPOCHS, --seeds=1, "${args}"]
metric: {name: METRIC, goal: maximize}
"""
GRID = """\
method: grid
parameters:
  model.groups: {values: [1, 2, "log:2"]}
  recipe.lr: {values: [0.1, 0.2]}
"""
RANDOM = """\
method: random
run_cap: 4
parameters:
  recipe.lr: {distribution: log_uniform_values, min: 0.01, max: 1.0}
  model.groups: {values: [1, 2]}
"""


def file(tmp_path, body, epochs=1, metric="test_accuracy"):
    path = tmp_path / "example.yaml"
    path.write_text(HEAD.replace("EPOCHS", str(epochs)).replace("METRIC", metric) + body)
    return path


class ThreadProcess:
    """In the place of a worker process: the same loop in a thread, which spares the test a start of torch."""

    exitcode = 1

    def __init__(self, work):
        self._thread = threading.Thread(target=work, daemon=True)
        self._thread.start()

    def join(self, timeout=None):
        self._thread.join(timeout)

    def is_alive(self):
        return self._thread.is_alive()

    def terminate(self):
        pass

    kill = terminate


@pytest.fixture
def threads(monkeypatch):
    """Workers are threads of this process, and every dataset is the tiny one."""
    monkeypatch.setattr("experiments.data.datasets.load", lambda _spec, size, *_rest: tiny_dataset(size))
    monkeypatch.setattr(sweep_worker, "_set_up_process", lambda _log: None)
    monkeypatch.setattr("analysis.importance.CUTS", 1)  # a forest takes longer than these runs
    monkeypatch.setattr("analysis.importance.TREES", 5)

    def new_worker(self):
        link, theirs = Pipe()
        process = ThreadProcess(lambda: sweep_worker.work(theirs, self.place, self.folder / "log", 1))
        self._workers.append(Worker(process, link))
        return self._workers[-1]

    monkeypatch.setattr(LocalSweep, "_new_worker", new_worker)


@pytest.fixture
def no_figures(monkeypatch):
    """Drawing takes most of the time of a small sweep."""
    monkeypatch.setattr("experiments.sweep.report.draw_figures", lambda _folder: [])


def run(path, tmp_path, *flags):
    return sweep.run_sweep(str(path), ["--local", f"--runs_root={tmp_path}/runs", *flags])


def points(tmp_path):
    return read_points(tmp_path / "runs/sweeps/example")


@pytest.mark.usefixtures("threads")
def test_a_grid_is_trained_whole_and_ends_with_table_best_and_figures(tmp_path, capsys, monkeypatch):
    assert run(file(tmp_path, GRID), tmp_path) == 0
    sweep_points = points(tmp_path)
    assert [p.state for p in sweep_points] == ["done"] * 6
    wanted = {(groups, lr) for groups in (1, 2, "log:2") for lr in (0.1, 0.2)}
    assert {(p.values["model.groups"], p.values["recipe.lr"]) for p in sweep_points} == wanted
    folder = tmp_path / "runs/sweeps/example"
    for p in sweep_points:
        result = json.loads((folder / p.run / "result.json").read_text())
        assert result["test_accuracy"] == p.metric("test_accuracy")
        config = json.loads((folder / p.run / "config.json").read_text())
        assert (config["model"]["groups"], config["recipe"]["lr"]) == tuple(p.values[k] for k in sorted(p.values))
    for name in ("tables/sweep.csv", "best.yaml", "figures/parallel-coordinates.png", "figures/importance.pdf"):
        assert (folder / name).is_file(), name
    out = capsys.readouterr().out
    assert "6 points by grid: 6 done" in out
    # Started again it has nothing to do and shows the same.
    before = (folder / "points.json").read_bytes()
    monkeypatch.setattr("experiments.sweep.report.draw_figures", lambda _folder: [])
    assert run(file(tmp_path, GRID), tmp_path) == 0
    assert (folder / "points.json").read_bytes() == before


@pytest.mark.usefixtures("threads", "no_figures")
def test_the_best_configuration_runs_as_a_study_of_its_own(tmp_path, capsys, monkeypatch):
    from experiments import __main__ as command_line

    run(file(tmp_path, RANDOM), tmp_path)
    best = max(points(tmp_path), key=lambda p: (p.metric("test_accuracy"), -p.number))
    path = tmp_path / "runs/sweeps/example/best.yaml"
    monkeypatch.setattr("experiments.report.summary.draw_figures", lambda _folder: [])
    monkeypatch.setattr("experiments.measure.first_layer.CROPS", 2)
    monkeypatch.setattr("experiments.measure.speed.LATENCY_BATCH", 2)
    monkeypatch.setattr("experiments.measure.speed.LATENCY_REPEATS", 1)
    flags = ["--seeds=1", "--wandb=off", "--measures.images=8", "--measures.permutations=99", "--measures.draws=0"]
    flags += ["--measures.lesion_images=0", f"--runs_root={tmp_path}/again"]
    assert command_line.main(["run", str(path), *flags]) == 0
    (folder,) = (tmp_path / "again" / "example-best").glob("*-seed0-*")
    result = json.loads((folder / "result.json").read_text())
    assert result["test_accuracy"] == best.metric("test_accuracy")
    config = json.loads((folder / "config.json").read_text())
    assert config["recipe"]["lr"] == best.values["recipe.lr"]


@pytest.mark.usefixtures("threads", "no_figures")
def test_an_interrupted_sweep_goes_on_and_suggests_what_it_would_have(tmp_path, monkeypatch):
    path = file(tmp_path, RANDOM, epochs=2)
    whole = tmp_path / "whole"
    whole.mkdir()
    run(path, whole)
    end = LocalSweep._end

    def interrupted(self, point, state, reason):
        end(self, point, state, reason)
        if point.number == 1:
            self.points.append(Point(2, suggest(self.sweep, self.points)))  # suggested, and the power went
            self._save()
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(LocalSweep, "_end", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(path, tmp_path)
    assert [p.state for p in points(tmp_path)] == ["done", "done", "running"]
    trained = []
    train = sweep_worker.train_one
    monkeypatch.setattr(sweep_worker, "train_one", lambda s, p: trained.append(p.run.folder.name) or train(s, p))
    assert run(path, tmp_path) == 0
    assert len(trained) == 2

    def outcome(root):
        return [(p.values, p.state, p.metric("test_accuracy"), p.run) for p in points(root)]

    assert outcome(tmp_path) == outcome(whole)


@pytest.mark.usefixtures("threads", "no_figures")
def test_hyperband_stops_a_run_in_the_middle_and_it_is_recorded(tmp_path, capsys, monkeypatch):
    """Each run is made worse than the one before; with eta 2 hyperband lets the better half past the second epoch."""
    from experiments.training import loop

    evaluate, worse = loop.evaluate, iter(k / 100 for k in range(100))

    def graded(*arguments, **named):
        return {**evaluate(*arguments, **named), "test_accuracy": 1 - next(worse)}

    monkeypatch.setattr(loop, "evaluate", graded)
    body = RANDOM + "early_terminate: {type: hyperband, min_iter: 1, eta: 2}\n"
    assert run(file(tmp_path, body, epochs=3), tmp_path) == 0
    first, second, *later = points(tmp_path)
    assert [(p.state, len(p.history)) for p in (first, second)] == [("done", 3)] * 2
    assert [(p.state, len(p.history)) for p in later] == [("stopped", 2)] * 2
    for p in later:
        result = json.loads((tmp_path / "runs/sweeps/example" / p.run / "result.json").read_text())
        assert result["status"] == "stopped"
        assert result["reason"] == "stopped early after epoch 2"
    assert "4 points by random: 2 done, 2 stopped" in capsys.readouterr().out


def test_stops_are_those_of_hyperband_by_hand(tmp_path):
    """With min_iter 1 and eta 2 the first look is at the second value; of three runs the two better ones pass it."""
    body = RANDOM + "early_terminate: {type: hyperband, min_iter: 1, eta: 2}\n"
    sweep = read_sweep(file(tmp_path, body))

    def point(number, state, *values):
        return Point(
            number,
            {"recipe.lr": 0.1, "model.groups": 1},
            state,
            history=[{"epoch": k + 1, "test_accuracy": v} for k, v in enumerate(values)],
        )

    ended = [point(0, "done", 0.1, 0.8, 0.9), point(1, "stopped", 0.1, 0.2)]
    assert to_stop(sweep, [*ended, point(2, "running", 0.1, 0.15)]) == {2}
    assert to_stop(sweep, [*ended, point(2, "running", 0.1, 0.3)]) == set()
    assert to_stop(sweep, [*ended, point(2, "running", 0.25, 0.15)]) == set(), "its best so far counts"
    assert to_stop(sweep, [*ended, point(2, "running", 0.1)]) == set(), "too early to tell"


@pytest.mark.slow
@pytest.mark.usefixtures("threads", "no_figures")
def test_several_workers_train_each_point_once(tmp_path, monkeypatch):
    """Threads of one process cannot listen or trace separately: nothing is reported, and one works at a time."""
    monkeypatch.setattr("experiments.tracking.listening", lambda _listener: nullcontext())
    alone = threading.Lock()

    def exclusive(call):
        def locked(*arguments):
            with alone:
                return call(*arguments)

        return locked

    for name in ("plan_one", "train_one"):
        monkeypatch.setattr(sweep_worker, name, exclusive(getattr(sweep_worker, name)))
    assert run(file(tmp_path, GRID), tmp_path, "--workers=3") == 0
    sweep_points = points(tmp_path)
    assert sorted(p.number for p in sweep_points) == list(range(6))
    assert len({p.run for p in sweep_points}) == 6
    assert {p.state for p in sweep_points} == {"done"}


@pytest.mark.usefixtures("threads", "no_figures")
def test_a_target_ends_the_sweep(tmp_path):
    path = file(tmp_path, GRID)
    path.write_text(path.read_text().replace("goal: maximize", "goal: maximize, target: 0.0"))
    run(path, tmp_path)
    assert [p.state for p in points(tmp_path)] == ["done"]


@pytest.mark.usefixtures("threads", "no_figures")
def test_a_point_that_cannot_be_built_fails_alone_and_the_exit_code_tells(tmp_path, capsys):
    body = GRID.replace('[1, 2, "log:2"]', "[1, 3]")
    assert run(file(tmp_path, body), tmp_path) == 2
    states = {(p.values["model.groups"], p.state) for p in points(tmp_path)}
    assert states == {(1, "done"), (3, "failed")}
    assert "failed: " in (out := capsys.readouterr().out)
    assert "3 equal groups" in out


@pytest.mark.usefixtures("threads", "no_figures")
def test_a_sweep_of_which_nothing_works_ends_early(tmp_path, monkeypatch, capsys):
    def broken(_study, _planned):
        raise RuntimeError("no luck")

    monkeypatch.setattr(sweep_worker, "train_one", broken)
    assert run(file(tmp_path, RANDOM), tmp_path, "--runs=50") == sweep_engine.MAX_FIRST_FAILURES
    assert "RuntimeError: no luck" in (out := capsys.readouterr().out)
    assert "no run came to its end" in out


@pytest.mark.parametrize(
    ("parameters", "blamed"),
    [
        ("recipe.lr: {values: [0.1]}\n  recipe.wd: {values: [0.01]}", "recipe.wd: unknown key recipe.wd"),
        ("recipe.wd: {values: [0.01]}\n  recipe.lr: {values: [0.1]}", "recipe.wd: unknown key recipe.wd"),
        ("recipe.epochs: {values: [1]}\n  recipe.lr: {values: [0.1, -1]}", "recipe.lr: "),
        ("model.depth: {values: [1]}\n  recipe.wd: {values: [0.01]}", "model.depth: unknown key model.depth"),
    ],
)
def test_a_parameter_that_no_run_takes_is_named(tmp_path, parameters, blamed):
    path = file(tmp_path, f"method: grid\nparameters:\n  {parameters}\n")
    with pytest.raises(UsageError) as error:
        sweep.run_sweep(str(path), ["--local", f"--runs_root={tmp_path}/runs"])
    assert str(error.value).startswith(f"{path}: parameters.{blamed}")


@pytest.mark.usefixtures("threads", "no_figures")
def test_another_file_does_not_go_on_with_these_points(tmp_path):
    run(file(tmp_path, GRID), tmp_path)
    with pytest.raises(UsageError, match="was begun with other parameters"):
        run(file(tmp_path, GRID.replace("0.2]", "0.3]")), tmp_path)
    with pytest.raises(UsageError, match="was begun with other flags"):
        run(file(tmp_path, GRID), tmp_path, "--recipe.momentum=0.5")


@pytest.mark.usefixtures("threads", "no_figures")
def test_a_sweep_in_other_hands_is_left_to_them(tmp_path):
    from experiments.store.leases import claim

    lease = claim(tmp_path / "runs/sweeps/example")
    with pytest.raises(UsageError, match=rf"being run by process {os.getpid()}"):
        run(file(tmp_path, GRID), tmp_path)
    lease.release()


def test_bayes_learns_from_runs_and_seeds_make_it_repeatable(tmp_path):
    body = "method: bayes\nparameters:\n  recipe.lr: {min: 0.0, max: 1.0}\n".replace("0.0", "0.01")
    sweep = read_sweep(file(tmp_path, body))
    history = []
    for number in range(12):
        values = suggest(sweep, history)
        assert values == suggest(sweep, history)
        reached = 1 - (values["recipe.lr"] - 0.7) ** 2  # best at 0.7
        history.append(Point(number, values, "done", history=[{"epoch": 1, "test_accuracy": reached}]))
    assert type(values["recipe.lr"]) is float
    best = max(history, key=lambda p: p.metric("test_accuracy"))
    assert abs(best.values["recipe.lr"] - 0.7) < 0.05


def test_a_worker_that_dies_takes_one_point_with_it(tmp_path, capsys):
    """The leading process notes the failure and gives the next point to a new worker."""
    sweep = read_sweep(file(tmp_path, RANDOM))
    local = LocalSweep(sweep, SweepContext("example", "quickstart", tmp_path), [], 4, 1)
    link, theirs = Pipe()
    worker = Worker(ThreadProcess(lambda: None), link, Point(0, {"recipe.lr": 0.1, "model.groups": 1}))
    local.points, local._workers = [worker.point], [worker]
    theirs.close()
    local._listen(worker)
    assert local._workers == []
    assert (local.points[0].state, local.points[0].reason) == ("failed", "its process ended with 1")


def test_a_worker_that_dies_after_its_message_of_an_epoch_takes_one_point_with_it(tmp_path):
    sweep = read_sweep(file(tmp_path, RANDOM))
    local = LocalSweep(sweep, SweepContext("example", "quickstart", tmp_path), [], 4, 1)
    link, theirs = Pipe()
    worker = Worker(ThreadProcess(lambda: None), link, Point(0, {"recipe.lr": 0.1, "model.groups": 1}))
    local.points, local._workers = [worker.point], [worker]
    theirs.send(("epoch", {"epoch": 1, "test_accuracy": 0.5, "seconds": 2.0}))
    theirs.close()
    local._listen(worker)
    assert local._workers == []
    (point,) = read_points(tmp_path / "example")
    assert (point.state, point.reason, point.seconds) == ("failed", "its process ended with 1", 2.0)


def lost_worker():
    link, theirs = Pipe()
    theirs.close()
    return ThreadProcess(lambda: None), link


def test_the_point_of_a_worker_that_died_while_idle_goes_to_a_new_one(tmp_path):
    received = []

    def begin(*_):
        link, theirs = Pipe()

        def train():
            while True:
                try:
                    received.append(theirs.recv())
                except EOFError:
                    return
                theirs.send(("ended", ({"status": "done"}, [{"epoch": 1, "test_accuracy": 0.5}])))

        return ThreadProcess(train), link

    sweep = read_sweep(file(tmp_path, RANDOM))
    local = LocalSweep(sweep, SweepContext("example", "quickstart", tmp_path), [], 3, 1, begin)
    local._workers = [Worker(*lost_worker())]
    local.run()
    assert [point.state for point in local.points] == ["done"] * 3
    assert len(received) == 3
    for point, flags in zip(local.points, received, strict=True):
        assert f"--recipe.lr={point.values['recipe.lr']}" in flags


def test_workers_that_die_at_once_end_the_sweep_without_a_loop(tmp_path):
    sweep = read_sweep(file(tmp_path, RANDOM))
    local = LocalSweep(
        sweep, SweepContext("example", "quickstart", tmp_path), [], 50, 1, begin=lambda *_: lost_worker()
    )
    local.run()
    assert [point.state for point in local.points] == ["failed"] * sweep_engine.MAX_FIRST_FAILURES
    assert {point.reason for point in local.points} == {"its process ended with 1"}


def command(path, tmp_path, *flags):
    return [sys.executable, "-m", "experiments", "sweep", str(path), "--local", f"--runs_root={tmp_path}/runs", *flags]


@pytest.mark.slow
def test_processes_survive_kill_and_leave_nothing_behind(tmp_path):
    """The real command with two worker processes: killed with -9 in the middle, and started again."""
    path = file(tmp_path, RANDOM.replace("run_cap: 4", "run_cap: 5"), epochs=3)
    path.write_text(path.read_text().replace("--recipe.batch_size=12", "--recipe.batch_size=192"))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command(path, tmp_path, "--workers=2"), env=environment, stdout=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 100
    while not any(p.state == "done" for p in points(tmp_path)) and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = points(tmp_path)
    again = subprocess.run(command(path, tmp_path, "--workers=2"), env=environment, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    after = points(tmp_path)
    assert [p.values for p in after[: len(before)]] == [p.values for p in before]
    assert [p.state for p in after] == ["done"] * 5
    assert len(list((tmp_path / "runs/sweeps/example").glob("*/result.json"))) == 5
    assert "begun before" in again.stdout


def test_a_point_notes_an_epoch_that_is_trained_again_once():
    point = Point(0, {})
    for epoch in (1, 2, 3, 2, 3):
        point.note({"epoch": epoch, "test_accuracy": epoch / 10})
    assert [e["epoch"] for e in point.history] == [1, 2, 3]
    assert replace(point, history=[{"epoch": 1, "test_loss": float("nan")}]).metric("test_loss") is None
