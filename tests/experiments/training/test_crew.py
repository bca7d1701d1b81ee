"""Several processes that train one network: what one process gives, whatever happens to them."""

import json
import os
import signal
import time
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from experiments import launch
from experiments.data.augment import Views, training_batch
from experiments.errors import RunFailedError, UsageError
from experiments.execution import planned_run, study_runs
from experiments.models import build_model
from experiments.store import progress, stop_signal
from experiments.store.runs import Run
from experiments.study.config import load_study, resolve
from experiments.study.plan import plan
from experiments.training import data_parallel
from experiments.training.batches import EpochBatches
from experiments.training.distributed import DistributedProcessGroup, ProcessGroupLostError, backend_for
from experiments.training.evaluation import evaluate
from experiments.training.learner import Learner
from experiments.training.process_group import SINGLE_PROCESS, ProcessGroup
from experiments.training.recipe import Recipe
from experiments.training.run import train_run
from experiments.training.run_context import RunContext
from experiments.training.sync_batch_norm import SyncBatchNorm2d
from fault_children import SILENT, fork, wait
from tiny_images import tiny_dataset

VIEWS = Views(image_size=12, crop_size=10, padding=1, cutout=3)
LOST = 7  # exit code of a rank in these tests that has lost another
NOTICED = 130

pytestmark = pytest.mark.usefixtures("one_thread")
meetings = count()


def begin(folder, size, job, *arguments, timeout=20.0):
    """Fork the ranks of a process group; each calls ``job(process group, *arguments)``. Their process numbers."""
    meeting = f"file://{folder}/meeting-{next(meetings)}"

    def work(rank):
        process_group = DistributedProcessGroup(rank, size, "gloo", timeout, meeting)
        try:
            with process_group.joined():
                job(process_group, *arguments)
        except ProcessGroupLostError:
            return LOST
        except KeyboardInterrupt:
            return NOTICED
        return 0

    return [fork(work, rank) for rank in range(size)]


def on_ranks(folder, size, job, *arguments):
    """Run a job on the ranks of a process group, and see that all end well."""
    assert [wait(child) for child in begin(folder, size, job, *arguments)] == [0] * size


def context(train=24, test=12, **recipe):
    recipe = {"epochs": 3, "batch_size": 8, "lr": 0.05, "device": "cpu", "precision": "fp32", **recipe}
    return RunContext.of(tiny_dataset(12, train, test), VIEWS, Recipe(**recipe))


def model():
    torch.manual_seed(0)
    return build_model("small", classes=2, groups=2, width=4)


def a_run(folder, name="run"):
    return Run.of(Path(folder) / name, "tiny", {"seed": 0, "data": "tiny"})


def as_process_group(process_group, run, given, net=model):
    """Train a run as one of a process group; a rank that does not lead has another folder, which must stay empty."""
    own = run if process_group.rank == 0 else replace(run, folder=run.folder.parent / f"of-rank-{process_group.rank}")
    train_run(own, net(), given, SILENT, process_group)


def assert_close(found, expected, tolerance):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        difference = (found[name].double() - value.double()).abs().max()
        assert difference <= tolerance * max(1.0, value.abs().max().item()), name


# What is learned


def nudged(seed):
    """The network with each number moved by about the rounding of its last bits."""
    net, generator = model(), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(1 + torch.randn(parameter.shape, generator=generator) * 2**-22)
    return net


def fifty_steps(process_group, given, path, net=model):
    """Losses and accuracies of fifty steps, and the network after them."""
    learner = (
        Learner(net(), given, 50)
        if process_group is SINGLE_PROCESS
        else data_parallel.DataParallelLearner(net(), given, 50, process_group, seed=0)
    )
    seen = []
    for epoch in count():
        stream = EpochBatches(given, 0, epoch)
        learner.begin_epoch()
        for step in range(1, len(stream) + 1):
            if len(seen) == 50:
                torch.save(
                    (torch.cat(seen), learner.state(0)["model"]), path / f"{process_group.rank}-of-{process_group.size}"
                )
                return
            seen.append(learner.step([stream.batch(step, process_group)]))


@pytest.mark.parametrize("batch_size", [16, 17])
def test_two_processes_have_the_losses_of_one_over_fifty_steps(tmp_path, batch_size):
    """To 1e-4 of the loss, or to what rounding alone does to one process, where training amplifies it on this machine.

    The weights, the running statistics and the other process likewise.
    """
    given = context(train=100, batch_size=batch_size)
    fifty_steps(SINGLE_PROCESS, given, tmp_path)
    on_ranks(tmp_path, 2, fifty_steps, given, tmp_path)
    alone, first, second = (torch.load(tmp_path / name) for name in ("0-of-1", "0-of-2", "1-of-2"))
    assert alone[0].shape == (50, 2)
    assert alone[0][-5:, 0].mean() < 0.8 * alone[0][:5, 0].mean(), "something was learned"

    def distance(other):
        return ((other[0] - alone[0])[:, 0] / alone[0][:, 0]).abs().max()

    by_rounding = []
    for seed in range(3):
        fifty_steps(SINGLE_PROCESS, given, tmp_path, partial(nudged, seed))
        by_rounding.append(distance(torch.load(tmp_path / "0-of-1")))
    allowed = max(1e-4, 10 * max(by_rounding))
    assert allowed < 1e-2, "training amplifies rounding too much for this comparison"
    assert distance(first) <= allowed
    assert ((first[0] - alone[0])[:, 1]).abs().max() < 1e-6
    assert_close(first[1], alone[1], 10 * allowed)
    assert torch.equal(first[0], second[0])
    for name, value in first[1].items():
        assert torch.equal(value, second[1][name]), name


def test_in_double_precision_nothing_but_rounding_is_left_even_where_training_amplifies_it(tmp_path, monkeypatch):
    """At a rate at which a network nudged by 1e-7 is soon another one, the losses stay the same to ten digits."""
    monkeypatch.setattr(RunContext, "autocast", lambda _: nullcontext())
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)  # losses are not rounded either
    given = replace(context(train=100, batch_size=17, lr=0.4), dtype=torch.float64)
    double = partial(fifty_steps, net=lambda: model().double())
    double(SINGLE_PROCESS, given, tmp_path)
    on_ranks(tmp_path, 2, double, given, tmp_path)
    alone, first = (torch.load(tmp_path / name)[0][:, 0] for name in ("0-of-1", "0-of-2"))
    assert alone.dtype == torch.float64
    assert ((first - alone) / alone).abs().max() < 1e-10


def normalised(process_group, path):
    """A batch normalisation on this rank's share of seven images, in double precision."""
    torch.manual_seed(5)
    x, weights = torch.randn(2, 7, 3, 4, 5, dtype=torch.float64) + 1000
    norm = nn.BatchNorm2d(3, dtype=torch.float64)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    if process_group is not SINGLE_PROCESS:
        norm = SyncBatchNorm2d(norm, process_group)
    share = process_group.share(7)
    own = x[share].clone().requires_grad_()
    for _ in range(2):
        y = norm(own)
    (y.square() * (weights[share] - 1000)).sum().backward()
    gradients = [process_group.all_reduce(p.grad) for p in norm.parameters()]
    torch.save(
        (y.detach(), own.grad, gradients, norm.state_dict()),
        path / f"norm-{process_group.rank}-of-{process_group.size}",
    )


def test_batch_normalisation_over_uneven_shares_is_torchs_on_the_whole_batch(tmp_path):
    normalised(SINGLE_PROCESS, tmp_path)
    on_ranks(tmp_path, 3, normalised, tmp_path)
    alone = torch.load(tmp_path / "norm-0-of-1")
    ranks = [torch.load(tmp_path / f"norm-{rank}-of-3") for rank in range(3)]
    for place in (0, 1):  # outputs and gradients of images
        assert torch.allclose(torch.cat([r[place] for r in ranks]), alone[place], rtol=1e-9, atol=1e-9)
    for of_rank in ranks:
        for found, expected in zip(of_rank[2], alone[2], strict=True):
            assert torch.allclose(found, expected, rtol=1e-9, atol=1e-9)
        assert list(of_rank[3]) == list(alone[3])
        assert_close(of_rank[3], alone[3], 1e-9)


@given(
    images=st.integers(1, 9),
    size=st.integers(1, 5),
    flip=st.booleans(),
    cutout=st.sampled_from([0, 3]),
    padding=st.sampled_from([0, 2]),
    colour=st.sampled_from(["colour", "grey", "hue-scrambled"]),
)
def test_the_shares_of_a_batch_make_it_up_whatever_the_augmentation(images, size, flip, cutout, padding, colour):
    views = Views(12, 10, padding, flip, cutout, colour)
    pixels, index = tiny_dataset(12).train.pixels, torch.arange(images) * 2

    def share(process_group, state):
        generator = torch.Generator().manual_seed(state)
        x = training_batch(pixels, index, views, generator, process_group.share(images))
        return x, generator.get_state()

    whole, after = share(SINGLE_PROCESS, 3)
    process_groups = [ProcessGroup() for _ in range(size)]
    for rank, process_group in enumerate(process_groups):
        process_group.rank, process_group.size = rank, size
    parts = [share(process_group, 3) for process_group in process_groups]
    assert all(torch.equal(state, after) for _, state in parts), "the next batch is the same, too"
    # The product of a turn of hues is rounded as the number of images has it.
    assert torch.allclose(torch.cat([x for x, _ in parts]).float(), whole.float(), rtol=0, atol=1e-3)


def noise(process_group, path):
    """Where dropout lets a one through, on this rank, in two steps."""
    given, kept = context(batch_size=8), []

    class Kept(nn.Module):
        def __init__(self):
            super().__init__()
            self.drop, self.head = nn.Dropout(0.5), nn.Linear(1, 2)

        def forward(self, x):
            kept.append(self.drop(torch.ones(64)))
            return self.head(x.mean((1, 2, 3))[:, None].float())

    learner = data_parallel.DataParallelLearner(Kept(), given, 4, process_group, seed=0)
    stream = EpochBatches(given, 0, 0)
    learner.begin_epoch()
    for step in (1, 2):
        learner.step([stream.batch(step, process_group)])
    torch.save(torch.stack(kept), path / f"noise-{process_group.rank}")


def test_every_rank_and_every_step_has_noise_of_its_own(tmp_path):
    on_ranks(tmp_path, 2, noise, tmp_path)
    seen = [tuple(row.tolist()) for rank in range(2) for row in torch.load(tmp_path / f"noise-{rank}")]
    assert len(set(seen)) == 4


# Evaluation


def evaluated(process_group, images, path):
    """Evaluate where rank 1 has memory for three images at a time."""

    class Small(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = model()

        def forward(self, x):
            assert len(x) > 0
            if process_group.rank == 1 and len(x) > 3:
                raise torch.OutOfMemoryError("out of memory")
            return self.inner(x)

    found = evaluate(Small(), context(test=images), process_group=process_group)
    (path / f"{images}-{process_group.rank}-of-{process_group.size}").write_text(json.dumps(found))


@pytest.mark.parametrize("images", [1, 11])
def test_an_evaluation_is_that_of_one_process_with_fewer_images_than_ranks_or_little_memory_on_one(tmp_path, images):
    evaluated(SINGLE_PROCESS, images, tmp_path)
    on_ranks(tmp_path, 2, evaluated, images, tmp_path)
    alone, first, second = (
        json.loads((tmp_path / f"{images}-{name}").read_text()) for name in ("0-of-1", "0-of-2", "1-of-2")
    )
    assert first == second
    assert first == pytest.approx(alone, rel=1e-5)


# Going on


def stopped_at(run_count, process_group, run, given, rank):
    """Train until one rank is told to stop, at a step of the second epoch."""
    if process_group.rank == rank:
        note, seen = progress.Progress.note_step, count(1)

        def noticed(self, *arguments):
            if next(seen) == run_count:
                stop_signal._received = True
            note(self, *arguments)

        progress.Progress.note_step = noticed
    as_process_group(process_group, run, given)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """The checkpoint of a run of one process that nothing happened to."""
    run = a_run(tmp_path_factory.mktemp("uninterrupted"))
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    train_run(run, model(), context(), SILENT)
    torch.set_num_threads(before)
    return run.load_checkpoint()


@pytest.mark.parametrize(("before", "told", "after"), [(2, 0, 1), (2, 1, 2), (1, 0, 2), (3, 2, 2)])
def test_a_notice_to_any_rank_stops_all_at_one_step_and_any_number_goes_on(
    tmp_path, uninterrupted, before, told, after
):
    run, given = a_run(tmp_path), context()
    job = partial(stopped_at, 4)
    if before == 1:
        child = fork(lambda: job(SINGLE_PROCESS, run, given, 0))
        assert wait(child) == 1  # KeyboardInterrupt
    else:
        assert [wait(child) for child in begin(tmp_path, before, job, run, given, told)] == [NOTICED] * before
    part = run.load_checkpoint()
    assert part is not None
    assert len(part["history"]) == 1
    assert part["part"]["step"] in (1, 2)  # the fourth step is the first of the second epoch; others hear with the next
    if after == 1:
        train_run(run, model(), given, SILENT)
    else:
        on_ranks(tmp_path, after, as_process_group, run, given)
    found = run.load_checkpoint()
    assert found is not None
    assert_close(found["model"], uninterrupted["model"], 1e-3)
    for ours, theirs in zip(found["history"], uninterrupted["history"], strict=True):
        for key in ("epoch", "train_loss", "train_accuracy", "test_loss", "test_accuracy", "lr"):
            assert ours[key] == pytest.approx(theirs[key], rel=1e-3), key


def test_rank_0_alone_writes_and_what_it_writes_is_the_checkpoint_of_one_process(tmp_path, uninterrupted):
    run = a_run(tmp_path)
    on_ranks(tmp_path, 2, as_process_group, run, context())
    assert not (tmp_path / "of-rank-1").exists()
    assert [line["epoch"] for line in run.metrics()] == [1, 2, 3]
    found = run.load_checkpoint()
    assert found is not None
    assert found.keys() == uninterrupted.keys()
    assert found["model"].keys() == uninterrupted["model"].keys()
    assert found["optimizer"]["param_groups"] == uninterrupted["optimizer"]["param_groups"]


# A study, led by rank 0

STUDY = {
    "model": {"name": "small", "width": 4},
    "data": {"image_size": 16, "crop_size": 16},
    "recipe": {"epochs": 2, "batch_size": 8, "device": "cpu"},
    "seeds": 1,
    "variants": {"wild": {"recipe.lr": 1e30}, "calm": {"recipe.lr": 0.05}},
    "wandb": "off",
}


def of_study(process_group, folder, *flags, slow=0.0):
    """What each rank of a study does."""
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
            launch._follow({p.run.folder.name: p for p in planned}[name], process_group)


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


def test_a_failure_of_its_own_breaks_the_crew_and_one_that_all_see_does_not():
    process_group = DistributedProcessGroup(1, 2, "gloo", 1.0)
    with pytest.raises(RunFailedError), process_group.training("a run"):
        raise RunFailedError("diverged")
    with pytest.raises(RunFailedError), process_group.training("the next"):
        raise RunFailedError("out of memory", lasting=False)
    with pytest.raises(ProcessGroupLostError), process_group.training("the one after"):
        pytest.fail("nothing can be trained any more")


# What is told before a process starts


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--gpus=0"], "gpus=0: must be at least 1"),
        (["--gpus=3", "--recipe.batch_size=2", "--recipe.device=cpu"], "3 processes need an image each, .*batch has 2"),
        (["--gpus=2", "--recipe.device=cpu", "--seeds_at_once=2"], "gpus=2 cannot be combined with seeds_at_once=2"),
        (["--gpus=2", "--recipe.device=mps"], "recipe.device=mps cannot be combined with 2 processes"),
        (["--gpus=2", "--recipe.device=cpu", "--compile=always"], "gpus=2 cannot be combined with compile=always"),
        (["--gpus=2", "--on=ray"], "gpus=2 cannot be combined with on=ray"),
    ],
)  # fmt: skip
def test_what_cannot_work_with_several_processes_is_one_line(tmp_path, monkeypatch, flags, words):
    monkeypatch.setattr(launch, "_launch", lambda *_: pytest.fail("started"))
    with pytest.raises(UsageError, match=words) as error:
        launch.run_on_devices(load_study("quickstart", [*flags, f"--runs_root={tmp_path}"]), [])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("found", "told"), [(0, "0 CUDA devices; use --"), (1, "1 CUDA device; use gpus=1, or --")])
def test_more_gpus_than_there_are_is_one_line_with_both_numbers_and_the_way_out(monkeypatch, found, told):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: found > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: found)
    with pytest.raises(UsageError, match=rf"gpus=4: this machine has {told}recipe.device=cpu") as error:
        launch.check_devices(["auto", "cpu"], 4)
    assert "\n" not in str(error.value)
    launch.check_devices(["cpu"], 4)


def test_backends_are_named_by_the_kinds_of_devices():
    assert backend_for(["cpu", "cpu"]) == "gloo"
    assert backend_for(["cuda"]) == "nccl"
    assert backend_for(["cuda", "cpu"]) == "cpu:gloo,cuda:nccl"


# From the command line


@pytest.fixture
def pictures(tmp_path):
    """A folder of images: two classes of noise."""
    for split, images in (("train", 40), ("val", 4)):
        for label in ("a", "b"):
            folder = tmp_path / "pictures" / split / label
            folder.mkdir(parents=True)
            for number in range(images):
                noise = torch.randint(0, 256, (12, 12, 3), dtype=torch.uint8)
                Image.fromarray(noise.numpy()).save(folder / f"{number}.png")
    return tmp_path / "pictures"


def test_a_rank_that_dies_under_the_launcher_is_one_line_and_the_same_command_goes_on(tmp_path, pictures, capfd):
    flags = [f"--dataset=folder:{pictures}", f"--data_root={tmp_path}/data", f"--runs_root={tmp_path}/runs"]
    flags += ["--recipe.device=cpu", "--recipe.batch_size=4", "--model.width=4", "--wandb=off", "--seeds=1"]
    flags += ["--data.image_size=12", "--data.crop_size=12", "--only=dense", "--recipe.epochs=500", "--gpus=2"]
    job = fork(launch.run_on_devices, load_study("quickstart", flags), ["run", "quickstart", *flags])
    runs = tmp_path / "runs" / "quickstart"
    while not any(path.stat().st_size for path in runs.glob("dense-*/metrics.jsonl")):
        assert os.waitpid(job, os.WNOHANG) == (0, 0)
        time.sleep(0.05)
    children = Path(f"/proc/{job}/task/{job}/children").read_text(encoding="utf-8").split()
    ranks = {int(pid): Path(f"/proc/{pid}/environ").read_text(encoding="utf-8").split("\0") for pid in children}
    (victim,) = [pid for pid, environment in ranks.items() if "RANK=1" in environment]
    os.kill(victim, signal.SIGKILL)
    assert wait(job) == 1
    out, err = capfd.readouterr()
    assert "Traceback" not in out + err
    assert err.count("error:") == 1
    assert "rank 1 of 2 was killed by signal 9 (SIGKILL); the others were stopped; dense, seed 0: " in err
    (folder,) = runs.iterdir()
    assert '"released": true' in next(folder.glob("lease-*")).read_text()
    assert not (folder / "failure.json").exists()
