import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from experiments.data.augment import Views
from experiments.errors import RunFailedError
from experiments.models import build_model
from experiments.store.runs import Run
from experiments.training.recipe import Recipe
from experiments.training.run import train_run
from experiments.training.run_context import RunContext
from fault_children import SILENT
from small_training import a_run
from tiny_images import tiny_dataset


def context(**recipe):
    recipe = {"epochs": 3, "batch_size": 8, "lr": 0.05, "device": "cpu", "precision": "fp32", **recipe}
    return RunContext.of(tiny_dataset(), Views(image_size=12, crop_size=12), Recipe(**recipe))


def model():
    torch.manual_seed(0)
    return nn.Sequential(build_model("small", classes=2, groups=2, width=4), nn.Dropout(0.2))


def test_it_learns_and_records_every_epoch(tmp_path):
    run = a_run(tmp_path)
    result = train_run(run, model(), context(epochs=6), SILENT)
    assert result["test_accuracy"] > 0.9
    assert [line["epoch"] for line in run.metrics()] == [1, 2, 3, 4, 5, 6]
    assert all("test_accuracy" in line for line in run.metrics())


def test_the_same_seed_gives_the_same_network_to_the_bit(tmp_path):
    first, second = model(), model()
    train_run(a_run(tmp_path, "a"), first, context(), SILENT)
    train_run(a_run(tmp_path, "b"), second, context(), SILENT)
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name


@pytest.mark.parametrize("labels", ["stored", "permuted"])
def test_an_interrupted_run_ends_as_if_it_had_not_been(tmp_path, monkeypatch, labels):
    given = replace(context(), views=Views(image_size=12, crop_size=12, labels=labels))
    straight, resumed = model(), model()
    train_run(a_run(tmp_path, "straight"), straight, given, SILENT)

    run = a_run(tmp_path, "resumed")
    calls = 0
    save = Run.save_checkpoint

    def interrupt_after_the_first(self, state):
        nonlocal calls
        save(self, state)
        calls += 1
        if calls == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(Run, "save_checkpoint", interrupt_after_the_first)
    with pytest.raises(KeyboardInterrupt):
        train_run(run, resumed, given, SILENT)
    assert run.result is None
    torch.manual_seed(99)  # the state of the process does not matter
    resumed = model()
    train_run(run, resumed, given, SILENT)
    for name, value in straight.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    assert [line["epoch"] for line in run.metrics()] == [1, 2, 3]


def with_permuted_labels(**recipe):
    return replace(context(**recipe), views=Views(image_size=12, crop_size=12, labels="permuted"))


def test_permuted_labels_are_what_a_run_is_trained_on_and_stored_ones_what_it_is_tested_on(tmp_path, monkeypatch):
    taught, tested = [], []
    training, testing = RunContext.training_inputs, RunContext.test_inputs

    def note_training(self, index, generator, share):
        x, y = training(self, index, generator, share)
        taught.append(torch.stack([index, y]))
        return x, y

    def note_testing(self, index):
        x, y = testing(self, index)
        tested.append(y)
        return x, y

    monkeypatch.setattr(RunContext, "training_inputs", note_training)
    monkeypatch.setattr(RunContext, "test_inputs", note_testing)
    given = with_permuted_labels(epochs=2)
    train_run(a_run(tmp_path), model(), given, SILENT)
    index, label = torch.cat(taught, 1)
    assert index.bincount().tolist() == [2] * 24
    assert torch.equal(label, given.with_labels(0).dataset.train.labels[index])
    assert torch.equal(torch.cat(tested), given.dataset.test.labels.repeat(2))


def test_a_loss_that_is_no_longer_finite_stops_the_run_and_keeps_the_last_good_checkpoint(tmp_path):
    class Breaks(nn.Module):
        """Fine for one epoch of three steps, then NaN."""

        def __init__(self):
            super().__init__()
            self.inner, self.steps = model(), 0

        def forward(self, x):
            self.steps += self.training
            return self.inner(x) * (math.nan if self.steps > 3 else 1.0)

    run = a_run(tmp_path)
    with pytest.raises(RunFailedError, match=r"nan in epoch 2"):
        train_run(run, Breaks(), context(), SILENT)
    checkpoint = run.load_checkpoint()
    assert checkpoint is not None
    assert len(checkpoint["history"]) == 1
    assert all(torch.isfinite(value).all() for value in checkpoint["model"].values())


def test_training_in_bf16_works(tmp_path):
    result = train_run(a_run(tmp_path), model(), context(precision="bf16", epochs=5), SILENT)
    assert result["test_accuracy"] > 0.8


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_trains_it(tmp_path):
    result = train_run(a_run(tmp_path), model(), context(device="auto", precision="auto", epochs=6), SILENT)
    assert result["test_accuracy"] > 0.9
