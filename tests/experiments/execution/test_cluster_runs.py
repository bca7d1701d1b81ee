"""Studies and sweeps on a Ray cluster of several nodes on this machine, whose nodes are killed."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from experiments import __main__ as command_line
from experiments.errors import UsageError
from experiments.execution import cluster as nodes
from experiments.study.config import load_study

HELPER = Path(__file__).parents[2] / "cluster_nodes.py"
NODE = {"CPU": 2.0, "memory": 1.0}
GPU_NODE = {"CPU": 3.0, "GPU": 2.0}

needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed (pip install 'ray>=2.40')")


# What a run needs


@pytest.mark.parametrize(
    ("resources", "cpus", "device", "needs", "room"),
    [
        pytest.param([NODE, NODE], 1, "auto", (1, 0), 4, id="a CPU each"),
        pytest.param([NODE, NODE, {"CPU": 3.0}], 2, "cpu", (2, 0), 3, id="two CPUs, one is left over"),
        pytest.param([NODE, GPU_NODE], 1, "auto", (1, 1), 2, id="GPUs where there are some"),
        pytest.param([NODE, GPU_NODE], 2, "cuda", (2, 1), 1, id="as few as its CPUs allow"),
        pytest.param([NODE, GPU_NODE], 1, "cpu", (1, 0), 5, id="the CPU was asked for"),
    ],
)
def test_a_run_gets_a_gpu_or_its_cpus(resources, cpus, device, needs, room):
    assert nodes._resources(resources, cpus, device) == ({"num_cpus": needs[0], "num_gpus": needs[1]}, room)


@pytest.mark.parametrize(
    ("cpus", "device", "message"),
    [
        (3, "auto", "cpus_per_run=3, recipe.device=auto: no node of the cluster has 3 CPUs; the largest has 2"),
        (1, "cuda", "cpus_per_run=1, recipe.device=cuda: no node of the cluster has 1 CPUs and a GPU"),
    ],
)
def test_what_no_node_has_is_told_and_not_waited_for(cpus, device, message):
    with pytest.raises(UsageError) as error:
        nodes._resources([NODE, NODE], cpus, device)
    assert str(error.value) == message


def test_where_a_study_is_trained_is_no_part_of_it():
    here, there = (load_study("quickstart", flags) for flags in ([], ["--on=ray", "--cpus_per_run=2"]))
    assert (there.execution.on, there.execution.cpus_per_run) == ("ray", 2)
    assert there.overrides == here.overrides == {}
    assert [v.run_config("data", 0) for v in there.variants] == [v.run_config("data", 0) for v in here.variants]


# What cannot work


def error_line(capsys, *arguments):
    """Return the one line that the command line prints for an error."""
    sys.argv = ["experiments", *arguments]
    assert command_line.entry() == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.fixture
def arguments(monkeypatch):
    """``sys.argv`` and the handlers of signals are put back."""
    monkeypatch.setattr(sys, "argv", [])
    monkeypatch.setattr(command_line, "install_handlers", lambda: None)


COMMANDS = [("run", "quickstart"), ("sweep", "photos-bayes")]


@pytest.mark.usefixtures("arguments")
@pytest.mark.parametrize("command", COMMANDS, ids=["run", "sweep"])
def test_ray_that_is_missing_is_told_in_a_line(command, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setitem(sys.modules, "ray._private.services", None)
    line = error_line(capsys, *command, "--on=ray")
    assert line == "error: on=ray: Ray is not installed here; pip install 'ray>=2.40' installs it"


@needs_ray
@pytest.mark.usefixtures("arguments")
@pytest.mark.parametrize("command", COMMANDS, ids=["run", "sweep"])
def test_an_address_at_which_nobody_answers_is_told_at_once(command, monkeypatch, capsys):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
        monkeypatch.setenv("RAY_ADDRESS", address)
        start = time.monotonic()
        line = error_line(capsys, *command, "--on=ray")
    assert time.monotonic() - start < 10
    assert line.startswith(
        f"error: RAY_ADDRESS={address}: no Ray cluster answers there (connection refused); `ray start"
    )


@needs_ray
@pytest.mark.usefixtures("arguments")
def test_without_a_cluster_the_commands_that_start_one_are_told(monkeypatch, capsys, tmp_path):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.setattr("ray._private.utils.read_ray_address", lambda *_: None)
    monkeypatch.setattr("ray._private.services.find_gcs_addresses", lambda: set())
    line = error_line(capsys, "run", "quickstart", "--on=ray")
    assert line.startswith("error: on=ray: no Ray cluster is running here; `ray start --head` starts one")


@needs_ray
@pytest.mark.usefixtures("arguments")
@pytest.mark.parametrize("address", ["nonsense", "ray://there:10001"])
def test_an_address_that_is_none_is_told_with_what_would_be_right(address, monkeypatch, capsys):
    monkeypatch.setenv("RAY_ADDRESS", address)
    line = error_line(capsys, "run", "quickstart", "--on=ray")
    assert line.startswith(f"error: RAY_ADDRESS={address}: must be HOST:PORT")


def test_a_node_that_sees_another_folder_or_runs_other_code_is_named(tmp_path):
    host = socket.gethostname()
    nodes.check_versions(nodes.versions())
    with pytest.raises(UsageError, match=rf"node {host}: commit .+, here 0123456789; all nodes need the same"):
        nodes.check_versions({**nodes.versions(), "commit": "0123456789"})
    same = nodes.Rendezvous(tmp_path / ".cluster-1", Path.cwd())
    same.token.touch()
    same.join()
    same.token.unlink()
    with pytest.raises(UsageError, match=rf"node {host}: {tmp_path}: not the folder seen here"):
        same.join()
    elsewhere = nodes.Rendezvous(same.token, tmp_path / "nowhere")
    with pytest.raises(UsageError, match=rf"node {host}: {tmp_path}/nowhere: no such file or directory"):
        elsewhere.join()


# On nodes that are killed


class Nodes:
    """The cluster that ``cluster_nodes.py`` holds."""

    def __init__(self, count):
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
        self.environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{HELPER.parents[1]}:{HELPER.parent}"}
        self._process = subprocess.Popen(
            [sys.executable, HELPER, "nodes", str(count)],
            env=self.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.environment["RAY_ADDRESS"] = self._answer()

    def say(self, word):
        """``kill`` or ``add``."""
        self._process.stdin.write(f"{word}\n")
        self._process.stdin.flush()
        assert self._answer() == word

    def lead(self, log, *flags):
        """A process that leads a study on the nodes."""
        return self.begin(HELPER, "lead", log, "--on=ray", *flags)

    def begin(self, *arguments):
        """A Python process of this environment."""
        return subprocess.Popen(
            [sys.executable, *map(str, arguments)],
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def end(self):
        self._process.communicate(timeout=60)

    def _answer(self):
        for line in self._process.stdout:
            if line.startswith("answer "):
                return line.split()[1]
        raise AssertionError("the cluster has ended")


@pytest.fixture(scope="module")
def cluster():
    running_nodes = Nodes(3)
    yield running_nodes
    running_nodes.end()


@pytest.fixture
def flags(image_folder, tmp_path):
    small = ["--recipe.batch_size=4", "--recipe.device=cpu", "--wandb=off", "--model.width=4", "--data.image_size=16"]
    small += ["--data.crop_size=16", "--only=dense,groups-2", f"--dataset=folder:{image_folder}"]
    return [*small, f"--data_root={tmp_path}/data", f"--runs_root={tmp_path}/runs"]


def results(folder):
    return [json.loads(path.read_text()) for path in folder.glob("runs/quickstart/*/result.json")]


def wait_until(there, leader, seconds=100):
    deadline = time.monotonic() + seconds
    while not there():
        assert leader.poll() is None, leader.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def begun(log):
    return [line for line in log.read_text().splitlines() if line.startswith("begun")] if log.exists() else []


@needs_ray
@pytest.mark.slow
@pytest.mark.timeout(400)
def test_forty_runs_on_three_nodes_of_which_one_is_killed_twice(cluster, flags, tmp_path):
    """Forty results, none doubled; the runs that were lost end with the bits of a process that nothing happens to."""
    log, start = tmp_path / "log", time.monotonic()
    leader = cluster.lead(log, *flags, "--seeds=20", "--recipe.epochs=200")
    for done in (6, 16):
        # Every node is at work on a run, so that one is lost.
        wait_until(lambda done=done: len(begun(log)) - 3 >= len(results(tmp_path)) >= done, leader)
        cluster.say("kill")
        cluster.say("add")
    out, err = leader.communicate(timeout=300)
    assert leader.returncode == 0, err
    assert [r["status"] for r in results(tmp_path)] == ["done"] * 40
    assert len({(r["seed"], r["config_hash"]) for r in results(tmp_path)}) == 40
    noted = log.read_text().splitlines()
    assert not [line for line in noted if "DOUBLED" in line or "TWICE" in line]
    assert len([line for line in noted if line.startswith("trained")]) == 40
    lines = out.splitlines()
    assert len([line for line in lines if "accuracy" in line and "(on node " in line]) == 40
    lost = [line for line in lines if line.endswith("it goes on elsewhere")]
    assert lost
    assert len(lines) == 40 + len(lost), out
    assert err == ""
    again = {line.split()[1] for line in noted if line.startswith("begun") and noted.count(line) > 1}
    print(f"\n40 of 40 runs in {time.monotonic() - start:.0f} s, 2 nodes killed, {len(again)} runs begun again")
    assert again
    seeds = 1 + max(int(name.split("-seed")[1].split("-")[0]) for name in again)
    alone = [*flags[:-1], f"--runs_root={tmp_path}/alone", f"--seeds={seeds}", "--recipe.epochs=200"]
    assert cluster.begin(HELPER, "lead", tmp_path / "other", *alone).wait(200) == 0
    for name in again:
        ours, theirs = (
            torch.load(tmp_path / root / "quickstart" / name / "checkpoint.pt", weights_only=True)["model"]
            for root in ("runs", "alone")
        )
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours), name


@needs_ray
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_ctrl_c_has_every_run_at_work_saved_and_given_back(cluster, flags, tmp_path):
    log = tmp_path / "log"
    flags = [*flags, "--seeds=2", "--recipe.epochs=3000"]
    leader = cluster.lead(log, *flags)
    wait_until(lambda: len(begun(log)) == 3, leader)
    time.sleep(2)
    leader.send_signal(signal.SIGINT)
    _, err = leader.communicate(timeout=60)
    assert leader.returncode == 130, err
    held = list(tmp_path.glob("runs/quickstart/*/checkpoint.pt"))
    assert len(held) == 3
    state = torch.load(held[0], weights_only=True)
    assert state["part"] is not None or state["history"]
    leases = [json.loads(path.read_text()) for path in tmp_path.glob("runs/quickstart/*/lease-*.json")]
    assert [lease["released"] for lease in leases] == [True] * len(leases)
    assert not list(tmp_path.glob("runs/.cluster-*"))


SWEEP = """\
program: experiments
command: ["${env}", "${interpreter}", -m, "${program}", run, quickstart, FLAGS, --seeds=1, "${args}"]
metric: {name: test_accuracy, goal: maximize}
method: grid
parameters:
  model.groups: {values: [1, 2]}
  recipe.lr: {values: [0.05, 0.1, 0.2]}
"""


@needs_ray
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_sweep_goes_on_when_a_node_is_killed_and_fails_no_point(cluster, flags, tmp_path):
    small = [flag for flag in flags if not flag.startswith(("--only", "--runs_root"))]
    path, folder = tmp_path / "example.yaml", tmp_path / "runs/sweeps/example"
    path.write_text(SWEEP.replace("FLAGS", ", ".join(f'"{flag}"' for flag in [*small, "--recipe.epochs=100"])))
    leader = cluster.begin("-m", "experiments", "sweep", path, "--on=ray", f"--runs_root={tmp_path}/runs")
    wait_until(lambda: len(list(folder.glob("*/metrics.jsonl"))) >= 3, leader)
    cluster.say("kill")
    cluster.say("add")
    out, err = leader.communicate(timeout=200)
    assert leader.returncode == 0, err
    points = json.loads((folder / "points.json").read_text())
    assert [p["state"] for p in points] == ["done"] * 6
    assert [len(p["history"]) for p in points] == [100] * 6
    assert len({p["run"] for p in points}) == len(list(folder.glob("*/result.json"))) == 6
    assert "6 points by grid: 6 done" in out
