"""Several processes train one network: what one process gives, whatever happens to them."""

from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from itertools import count

import pytest
import torch
from torch import nn

from experiments.store import progress, stop_signal
from experiments.training import data_parallel
from experiments.training.batches import EpochBatches
from experiments.training.learner import Learner
from experiments.training.process_group import SINGLE_PROCESS
from experiments.training.run import train_run
from experiments.training.run_context import RunContext
from fault_children import SILENT, fork, wait
from small_training import NOTICED, a_run, assert_close, begin, context, model, on_ranks

pytestmark = pytest.mark.usefixtures("one_thread")


def as_process_group(process_group, run, given, net=model):
    """Train a run as one of a process group; a rank that does not lead has another folder, which must stay empty."""
    own = run if process_group.rank == 0 else replace(run, folder=run.folder.parent / f"of-rank-{process_group.rank}")
    train_run(own, net(), given, SILENT, process_group)


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


@pytest.mark.parametrize("batch_size", [pytest.param(16, marks=pytest.mark.slow), 17])
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


@pytest.mark.parametrize(("before", "noticed", "after"), [(2, 0, 1), (2, 1, 2), (1, 0, 2), (3, 2, 2)])
def test_a_notice_to_any_rank_stops_all_at_one_step_and_any_number_goes_on(
    tmp_path, uninterrupted, before, noticed, after
):
    run, given = a_run(tmp_path), context()
    job = partial(stopped_at, 4)
    if before == 1:
        child = fork(lambda: job(SINGLE_PROCESS, run, given, 0))
        assert wait(child) == 1  # KeyboardInterrupt
    else:
        assert [wait(child) for child in begin(tmp_path, before, job, run, given, noticed)] == [NOTICED] * before
    part = run.load_checkpoint()
    assert part is not None
    assert len(part["history"]) == 1
    assert part["part"]["step"] in (1, 2)  # the fourth step is the first of the second epoch; others hear with the next
    if after == 1:
        train_run(run, model(), given, SILENT)
    else:
        on_ranks(tmp_path, after, as_process_group, run, given)
    checkpoint = run.load_checkpoint()
    assert checkpoint is not None
    assert_close(checkpoint["model"], uninterrupted["model"], 1e-3)
    for ours, theirs in zip(checkpoint["history"], uninterrupted["history"], strict=True):
        for key in ("epoch", "train_loss", "train_accuracy", "test_loss", "test_accuracy", "lr"):
            assert ours[key] == pytest.approx(theirs[key], rel=1e-3), key


def test_rank_0_alone_writes_and_what_it_writes_is_the_checkpoint_of_one_process(tmp_path, uninterrupted):
    run = a_run(tmp_path)
    on_ranks(tmp_path, 2, as_process_group, run, context())
    assert not (tmp_path / "of-rank-1").exists()
    assert [line["epoch"] for line in run.metrics()] == [1, 2, 3]
    checkpoint = run.load_checkpoint()
    assert checkpoint is not None
    assert checkpoint.keys() == uninterrupted.keys()
    assert checkpoint["model"].keys() == uninterrupted["model"].keys()
    assert checkpoint["optimizer"]["param_groups"] == uninterrupted["optimizer"]["param_groups"]
