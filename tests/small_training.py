"""A tiny network in training, by one process or by the forked ranks of a process group."""

from itertools import count
from pathlib import Path

import torch

from experiments.data.augment import Views
from experiments.models import build_model
from experiments.store.runs import Run
from experiments.training.distributed import DistributedProcessGroup, ProcessGroupLostError
from experiments.training.recipe import Recipe
from experiments.training.run_context import RunContext
from fault_children import fork, wait
from tiny_images import tiny_dataset

VIEWS = Views(image_size=12, crop_size=10, padding=1, cutout=3)
LOST = 7  # exit code of a rank in these tests that has lost another
NOTICED = 130  # exit code of a rank that has stopped on a signal

meetings = count()


def begin(folder, size, job, *arguments, timeout=20.0):
    """Fork the ranks of a process group, each of which calls ``job(process_group, *arguments)``; return their pids."""
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


def assert_close(actual, expected, tolerance):
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        difference = (actual[name].double() - value.double()).abs().max()
        assert difference <= tolerance * max(1.0, value.abs().max().item()), name
