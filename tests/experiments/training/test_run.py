import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from experiments.data.augment import Views
from experiments.errors import RunFailedError, UsageError
from experiments.models import build_model
from experiments.store.runs import Run
from experiments.tracking import Tracker
from experiments.training import compiled_passes
from experiments.training.batches import EpochBatches
from experiments.training.evaluation import evaluate
from experiments.training.learner import Learner
from experiments.training.multi_seed import MultiSeedLearner
from experiments.training.process_group import SINGLE_PROCESS
from experiments.training.recipe import Recipe, make_optimizer
from experiments.training.run import train_run
from experiments.training.run_context import RunContext, choose_device, choose_dtype
from tiny_images import tiny_dataset

SILENT = Tracker("off", "", "", "", {}, None)  # type: ignore[arg-type]


def context(**recipe):
    recipe = {"epochs": 3, "batch_size": 8, "lr": 0.05, "device": "cpu", "precision": "fp32", **recipe}
    return RunContext.of(tiny_dataset(), Views(image_size=12, crop_size=12), Recipe(**recipe))


def model():
    torch.manual_seed(0)
    return nn.Sequential(build_model("small", classes=2, groups=2, width=4), nn.Dropout(0.2))


def a_run(folder, name="run"):
    return Run.of(folder / name, "tiny", {"seed": 0, "data": "tiny"})


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


def test_permuted_labels_keep_images_class_counts_and_the_test_set():
    given = with_permuted_labels()
    before = given.dataset.train.labels.clone()
    for seed in range(10):
        after = given.with_labels(seed).dataset
        assert after.train.labels.bincount().tolist() == [12, 12]
        assert not torch.equal(after.train.labels, before)
        assert after.train.pixels is given.dataset.train.pixels
        assert after.test is given.dataset.test
        assert torch.equal(given.dataset.train.labels, before), "the dataset is shared with other runs"


def test_permuted_labels_tell_nothing_about_the_stored_ones():
    """Over many seeds an image keeps its class at the rate of chance, 12 labels of its class in 24 places."""
    given = with_permuted_labels()
    stored = given.dataset.train.labels
    kept = torch.stack([given.with_labels(seed).dataset.train.labels == stored for seed in range(400)]).float()
    assert kept.mean().item() == pytest.approx(0.5, abs=0.02)  # standard error 0.005
    assert (kept.mean(0) - 0.5).abs().max().item() < 0.125  # of one image 0.025


def test_a_seed_has_its_labels_and_another_seed_others_whatever_was_drawn_before():
    given = with_permuted_labels()
    first = given.with_labels(1).dataset.train.labels
    torch.rand(7)
    assert torch.equal(first, given.with_labels(1).dataset.train.labels)
    assert not torch.equal(first, given.with_labels(2).dataset.train.labels)


def test_stored_labels_are_trained_on_as_they_are():
    given = context()
    assert given.with_labels(3) is given


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


def test_evaluation_covers_every_image_once():
    class Knows(nn.Module):
        """Red images have more red."""

        def forward(self, x):
            return torch.stack([x[:, 0].mean((1, 2)), x[:, 2].mean((1, 2))], 1) * 10

    result = evaluate(Knows(), context())
    assert result["test_accuracy"] == 1.0
    assert result["test_loss"] < 0.01


def test_the_rate_rises_to_its_peak_and_falls_and_only_weights_decay():
    recipe = Recipe(lr=0.4, warmup=0.25, weight_decay=0.01)
    optimizer, schedule = make_optimizer(model(), recipe, steps=40)
    rates = []
    for _ in range(40):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if len(rates) < 40:
            schedule.step()
    assert max(rates) == pytest.approx(0.4)
    assert rates.index(max(rates)) in (9, 10)
    assert rates[-1] < 0.001
    decayed, free = optimizer.param_groups
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.01, 0.0)
    assert all(p.dim() > 1 for p in decayed["params"])


def test_uneven_weights_decay_too():
    uneven = build_model("small", groups="log:3")
    optimizer, _ = make_optimizer(uneven, Recipe(), steps=10)
    assert any(p is uneven.conv2.weight for p in optimizer.param_groups[0]["params"])


def test_bf16_is_only_chosen_where_the_hardware_multiplies_it(monkeypatch):
    cpu = torch.device("cpu")
    for amx, avx, expected in (
        (True, False, torch.bfloat16),
        (False, True, torch.bfloat16),
        (False, False, torch.float32),
    ):
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda amx=amx: amx)
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda avx=avx: avx)
        assert choose_dtype("auto", cpu) == expected
    assert choose_dtype("bf16", cpu) == torch.bfloat16
    assert choose_dtype("auto", torch.device("mps")) == torch.float32


def test_training_in_bf16_works(tmp_path):
    result = train_run(a_run(tmp_path), model(), context(precision="bf16", epochs=5), SILENT)
    assert result["test_accuracy"] > 0.8


@pytest.mark.parametrize("name", ["gpu", "cuda:99", "meta:x"])
def test_a_device_that_is_not_here_is_one_clear_line(name):
    with pytest.raises(UsageError, match=f"recipe.device={name}") as error:
        choose_device(name)
    assert "\n" not in str(error.value)


def taken(takes, given, seeds, steps=3):
    streams = [EpochBatches(given, seed, 0) for seed in seeds]
    takes.begin_epoch()
    return torch.stack([takes.step([s.batch(k, SINGLE_PROCESS) for s in streams]) for k in range(1, steps + 1)])


def network(seed):
    torch.manual_seed(seed)
    return build_model("small", classes=2, groups="log:3", width=8)


def test_compiled_steps_are_those_that_are_not(monkeypatch):
    """Traced as for a GPU; what Inductor makes of it is tested with the operator, and where there is a GPU."""
    if not torch.cuda.is_available():
        monkeypatch.setattr(compiled_passes, "COMPILE_OPTIONS", {"backend": "aot_eager", "dynamic": False})
    given = context(precision="fp32", device="auto")
    compiled = given.with_compiler("always")
    assert compiled.compiled and not given.compiled
    alone = [taken(Learner(network(seed), given, 9), given, [seed]) for seed in (0, 1)]
    torch.testing.assert_close(taken(Learner(network(0), compiled, 9), compiled, [0]), alone[0], rtol=1e-4, atol=1e-5)
    both = taken(MultiSeedLearner([network(0), network(1)], compiled, 9), compiled, [0, 1])
    torch.testing.assert_close(both, torch.cat(alone, 1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("when", ["forward", "backward"])
def test_a_compiled_step_that_fails_is_taken_again_in_eager_mode_and_the_run_says_why(
    tmp_path, monkeypatch, capsys, when
):
    """The planted failure is the kind that a user meets: the backend raises while it builds one of the passes."""
    from torch._dynamo.backends.common import aot_autograd

    def fails(graph, inputs):
        raise NotImplementedError("no such instruction\nmore lines")

    passes = {"fw_compiler": lambda graph, _: graph.forward, "bw_compiler": lambda graph, _: graph.forward}
    passes["fw_compiler" if when == "forward" else "bw_compiler"] = fails
    monkeypatch.setattr(compiled_passes, "COMPILE_OPTIONS", {"backend": aot_autograd(**passes), "dynamic": False})
    given = context()
    eager, compiled = network(0), network(0)
    train_run(a_run(tmp_path, "eager"), eager, given, SILENT)
    result = train_run(a_run(tmp_path, "compiled"), compiled, given.with_compiler("always"), SILENT)
    assert result["compiled"] is False and result["compile_error"] == "NotImplementedError: no such instruction"
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: the compiled step failed (NotImplementedError: no such instruction)")
    for (name, value), same in zip(compiled.state_dict().items(), eager.state_dict().values(), strict=True):
        assert torch.equal(value, same), f"{name}: no batch is counted twice"


def test_a_run_says_that_its_steps_were_compiled_and_nothing_where_nobody_asked(tmp_path, monkeypatch):
    monkeypatch.setattr(compiled_passes, "COMPILE_OPTIONS", {"backend": "eager", "dynamic": False})
    plain = train_run(a_run(tmp_path, "plain"), network(0), context(epochs=1), SILENT)
    assert not plain.keys() & {"compiled", "compile_error"}
    compiled = train_run(a_run(tmp_path), network(0), context(epochs=1).with_compiler("always"), SILENT)
    assert compiled["compiled"] is True and "compile_error" not in compiled


def test_a_step_without_memory_does_not_count_as_one_that_cannot_be_compiled(monkeypatch):
    def short(graph, inputs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(compiled_passes, "COMPILE_OPTIONS", {"backend": short, "dynamic": False})
    given = context().with_compiler("always")
    with pytest.raises(Exception, match="out of memory"):
        taken(Learner(network(0), given, 9), given, [0])


def test_steps_are_compiled_by_themselves_only_where_that_pays(monkeypatch):
    short = context()
    assert not short.with_compiler("auto").compiled
    assert not replace(short, recipe=Recipe(epochs=10**6, device="cpu")).with_compiler("auto").compiled
    on_gpu = replace(short, device=torch.device("cuda"))
    assert not on_gpu.with_compiler("auto").compiled
    long = replace(on_gpu, recipe=Recipe(epochs=10**6))
    monkeypatch.setattr("experiments.training.run_context.find_spec", lambda _: object())
    assert long.with_compiler("auto").compiled
    assert not long.with_compiler("never").compiled
    monkeypatch.setattr("experiments.training.run_context.find_spec", lambda _: None)
    assert not long.with_compiler("auto").compiled


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_trains_it(tmp_path):
    result = train_run(a_run(tmp_path), model(), context(device="auto", precision="auto", epochs=6), SILENT)
    assert result["test_accuracy"] > 0.9
