"""A study whose runs are trained by several ranks, led by rank 0."""

import json
import os
import signal
import time
from functools import partial

import pytest

from experiments import launch
from experiments.errors import RunFailedError, UsageError
from experiments.execution import planned_run, study_runs
from experiments.study.config import resolve
from experiments.study.plan import plan
from experiments.training.distributed import DistributedProcessGroup, ProcessGroupLostError, backend_for
from experiments.training.process_group import SINGLE_PROCESS
from fault_children import wait
from small_training import LOST, begin, on_ranks

pytestmark = pytest.mark.usefixtures("one_thread")


STUDY = {
    "model": {"name": "small", "width": 4},
    "data": {"image_size": 16, "crop_size": 16},
    "recipe": {"epochs": 2, "batch_size": 8, "device": "cpu"},
    "seeds": 1,
    "variants": {"wild": {"recipe.lr": 1e30}, "calm": {"recipe.lr": 0.05}},
    "wandb": "off",
}


def of_study(process_group, folder, *flags, slow=0.0):
    """Run a study as each rank does."""
    study = resolve("tiny", STUDY, "here", [f"--runs_root={folder}", *flags])
    planned = plan(study)
    if slow:
        trained = launch.train_run

        def slowly(run, net, *rest):
            net.register_forward_hook(lambda *_: time.sleep(slow))
            return trained(run, net, *rest)

        launch.train_run = planned_run.train_run = slowly
    return (
        study_runs.train_all(study, planned, process_group)
        if process_group.rank == 0
        else follow(planned, process_group)
    )


def follow(planned, process_group):
    for name in process_group.announced_runs():
        with process_group.training(name):
            launch._train_as_other_rank({p.run.folder.name: p for p in planned}[name], process_group)


@pytest.mark.usefixtures("tiny")
def test_a_run_that_diverges_is_recorded_once_and_all_go_on_to_the_next(tmp_path, capfd):
    on_ranks(tmp_path, 2, of_study, tmp_path / "runs")
    results = {path.parent.name[:4]: json.loads(path.read_text()) for path in tmp_path.glob("runs/tiny/*/result.json")}
    assert results["wild"]["status"] == "diverged"
    assert results["calm"]["status"] == "done"
    assert results["calm"]["device"].startswith("2 ranks, each ")
    out = capfd.readouterr().out
    assert out.count("diverged") == 1
    assert out.count("accuracy") == 1


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("victim", [0, 1])
def test_a_rank_that_is_killed_ends_the_others_and_frees_the_run_which_then_goes_on(tmp_path, victim):
    flags = ["--only=calm", "--recipe.epochs=60"]
    ranks = begin(tmp_path, 2, partial(of_study, slow=0.02), tmp_path / "runs", *flags)
    metrics = tmp_path / "runs"
    while not any(path.read_text() for path in metrics.glob("tiny/*/metrics.jsonl")):
        time.sleep(0.01)
    os.kill(ranks[victim], signal.SIGKILL)
    assert wait(ranks[victim]) == -signal.SIGKILL
    assert wait(ranks[1 - victim], 10) == LOST
    (folder,) = (tmp_path / "runs" / "tiny").iterdir()
    assert not (folder / "failure.json").exists()
    if victim == 1:
        assert '"released": true' in next(folder.glob("lease-*")).read_text()
    assert of_study(SINGLE_PROCESS, tmp_path / "runs", "--only=calm", "--recipe.epochs=60") == 0


@pytest.mark.usefixtures("tiny")
def test_rank_0_lets_the_others_go_if_it_fails_before_it_trains(tmp_path):
    def fail_or_follow(process_group):
        if process_group.rank == 0:
            raise UsageError("not now")
        assert list(process_group.announced_runs()) == []

    first, second = begin(tmp_path, 2, fail_or_follow)
    assert (wait(first), wait(second, 10)) == (1, 0)


def test_a_failure_of_its_own_breaks_the_group_and_one_that_all_see_does_not():
    process_group = DistributedProcessGroup(1, 2, "gloo", 1.0)
    with pytest.raises(RunFailedError), process_group.training("a run"):
        raise RunFailedError("diverged")
    with pytest.raises(RunFailedError), process_group.training("the next"):
        raise RunFailedError("out of memory", lasting=False)
    with pytest.raises(ProcessGroupLostError), process_group.training("the one after"):
        pytest.fail("nothing can be trained any more")


def test_backends_are_named_by_the_kinds_of_devices():
    assert backend_for(["cpu", "cpu"]) == "gloo"
    assert backend_for(["cuda"]) == "nccl"
    assert backend_for(["cuda", "cpu"]) == "cpu:gloo,cuda:nccl"
