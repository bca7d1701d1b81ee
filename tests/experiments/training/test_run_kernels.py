"""The kernels of a run: measured on request, kept in its folder, the same when it is resumed, named in its result."""

import json
import re

import pytest
import torch
from torch import nn

import gconv
from experiments.data.augment import Views
from experiments.store.runs import Run
from experiments.tracking import Tracker
from experiments.training.multi_seed import MultiSeedLearner
from experiments.training.recipe import Recipe
from experiments.training.run import train_run, train_seeds
from experiments.training.run_context import RunContext
from experiments.training.run_kernels import FILE, kernels_of
from gconv.kernels import OPS, table
from gconv.kernels.choose import choose, forget, pixel_bits
from gconv.kernels.machine import Machine, this_machine
from gconv.kernels.table import Kind
from tiny_images import tiny_dataset

CPU = torch.device("cpu")
SILENT = Tracker("off", "", "", "", {}, None)  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def own_table(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(table, "SHIPPED", tmp_path / "none")
    monkeypatch.delenv("GCONV_TUNE", raising=False)
    forget()
    yield
    monkeypatch.undo()
    forget()


def model():
    torch.manual_seed(0)
    convolution = gconv.GroupedConv2d(8, 8, 3, padding=1, groups="log:3")
    return nn.Sequential(nn.Conv2d(3, 8, 3), convolution, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))


def context(epochs=1):
    recipe = Recipe(epochs=epochs, batch_size=8, lr=0.05, device="cpu", precision="fp32")
    return RunContext.of(tiny_dataset(), Views(image_size=12, crop_size=12), recipe)


def a_run(folder, seed=0):
    return Run.of(folder, "tiny", {"seed": seed, "data": "tiny"})


def know(kernel, geometry=None):
    """Have the user's table say that one kernel is the fastest."""
    geometry = geometry or model()[1].geometry
    bits = pixel_bits(8, 10, 10)
    others = dict.fromkeys(("loop", "merged", "packed", "masked"), 2.0)
    rows = [(Kind.of(op, geometry, torch.float32, True, bits), others | {kernel: 1.0}) for op in OPS]
    table.extend(this_machine(CPU), rows)
    forget()


def chosen(geometry=None):
    return choose("conv2d", geometry or model()[1].geometry, torch.float32, CPU, True, pixel_bits(8, 10, 10)).kernel


def of_two():
    """The layer that computes those of two networks: groups 4, 2, 2, 4, 2, 2."""
    return gconv.GroupedConv2d(16, 16, 3, padding=1, groups="4:2:2:4:2:2").geometry


def know_both(kernel):
    know(kernel)
    know(kernel, of_two())


def test_a_run_keeps_what_it_began_with_whatever_is_measured_later(tmp_path):
    know("loop")
    run = a_run(tmp_path)
    with kernels_of([run], [model()], context()) as named:
        assert chosen() == "loop"
        know("masked")
        assert chosen() == "loop"
    assert chosen() == "masked"
    with kernels_of([run], [model()], context()) as again:
        assert (chosen(), again) == ("loop", named)
    with kernels_of([a_run(tmp_path / "other")], [model()], context()) as other:
        assert chosen() == "masked"
        assert other != named
    assert named.startswith("kernels.csv, sha256 ")


def test_a_run_that_began_by_the_rule_goes_on_by_the_rule(tmp_path):
    run = a_run(tmp_path)
    with kernels_of([run], [model()], context()) as named:
        ruled = chosen()
    know("masked")
    with kernels_of([run], [model()], context()) as again:
        assert (chosen(), named, again) == (ruled, "by rule", "by rule")


def test_of_the_table_what_may_speak_for_the_layers_is_kept(tmp_path):
    know("loop")
    far = gconv.GroupedConv2d(512, 512, 3, groups=2).geometry
    know("masked", far)
    run = a_run(tmp_path)
    with kernels_of([run], [model()], context()):
        pass
    made_on, kept = table.read(run.folder / FILE)
    assert made_on == this_machine(CPU)
    assert set(kept) == {Kind.of(op, model()[1].geometry, torch.float32, True, pixel_bits(8, 10, 10)) for op in OPS}


@pytest.mark.parametrize("text", ["", "# gconv kernel table 2; half", "elsewhere"])
def test_a_table_that_does_not_hold_here_is_reported_and_made_anew(tmp_path, capsys, text):
    run = a_run(tmp_path)
    path = run.folder / FILE
    path.parent.mkdir(parents=True)
    elsewhere = table.text_of(Machine("another", "cpu-avx9", "1.0", 64), {})
    path.write_text(elsewhere if text == "elsewhere" else text)
    with kernels_of([run], [model()], context()) as named:
        assert named == "by rule"
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"warning: {path} {'was made on another' if text == 'elsewhere' else 'is damaged'}")
    assert line.endswith("kernels are chosen anew")
    assert table.read(path)[0] == this_machine(CPU)


def test_a_resumed_run_ends_with_the_bits_of_one_that_was_not_interrupted(tmp_path, monkeypatch):
    """Though another kernel has become the fastest in between."""
    know("loop")
    straight, resumed = model(), model()
    result = train_run(a_run(tmp_path / "straight"), straight, context(2), SILENT)
    save = Run.save_checkpoint

    def interrupt(self, state):
        save(self, state)
        raise KeyboardInterrupt

    monkeypatch.setattr(Run, "save_checkpoint", interrupt)
    run = a_run(tmp_path / "resumed")
    with pytest.raises(KeyboardInterrupt):
        train_run(run, resumed, context(2), SILENT)
    monkeypatch.setattr(Run, "save_checkpoint", save)
    know("masked")
    end = train_run(run, resumed := model(), context(2), SILENT)
    for name, value in straight.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    assert end["kernels"] == result["kernels"]
    assert json.dumps(end["kernels"])


def interrupted(monkeypatch, train):
    """Training that ends at its first checkpoints, after all runs that are trained together have saved them."""
    save, saved = Run.save_checkpoint, []

    def interrupt(self, state):
        save(self, state)
        saved.append(self)
        if len(saved) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Run, "save_checkpoint", interrupt)
        train()


def test_seeds_trained_together_resume_to_the_bits_of_those_that_were_not_interrupted(tmp_path, monkeypatch):
    """Though another kernel has become the fastest in between, in training and in evaluation."""
    know_both("loop")
    straight, resumed = ([a_run(tmp_path / name, seed) for seed in range(2)] for name in ("straight", "resumed"))

    def train(runs):
        return train_seeds(runs, [model] * 2, context(2), [SILENT] * 2)

    ends = train(straight)
    interrupted(monkeypatch, lambda: train(resumed))
    know_both("masked")
    again = train(resumed)
    (text,) = {(run.folder / FILE).read_text() for run in (*straight, *resumed)}
    assert {kind.channels for kind in table.parse(text)[1]} == {3, 4}, "of 8 channels and of 16"
    for run, other, end, expected in zip(resumed, straight, again, ends, strict=True):
        state, known = run.load_checkpoint()["model"], other.load_checkpoint()["model"]
        assert all(torch.equal(value, state[name]) for name, value in known.items())
        assert end["test_loss"] == expected["test_loss"]
        assert end["kernels"] == expected["kernels"]
        assert end["kernels"].startswith("kernels.csv, sha256 ")


def test_the_table_of_seeds_trained_together_counts_for_one_that_goes_on_alone(tmp_path):
    know_both("loop")
    runs = [a_run(tmp_path, seed) for seed in range(2)]
    learner = MultiSeedLearner([model(), model()], context(), 3)
    with kernels_of(runs, [learner.wide_network, learner.networks[0]], context()) as named:
        assert (chosen(of_two()), chosen()) == ("loop", "loop")
    know_both("masked")
    with kernels_of(runs[1:], [model()], context()) as alone:
        assert (chosen(), alone) == ("loop", named)


def test_of_runs_with_several_tables_the_first_decides_and_all_folders_keep_it(tmp_path):
    runs = [a_run(tmp_path, seed) for seed in range(3)]
    know("loop")
    with kernels_of(runs[1:2], [model()], context()) as first:
        pass
    know("masked")
    with kernels_of(runs[2:], [model()], context()) as other:
        assert first != other
    with kernels_of(runs, [model()], context()) as named:
        assert (chosen(), named) == ("loop", first)
    with kernels_of(runs[2:], [model()], context()) as last:
        assert (chosen(), last) == ("loop", first)


def test_on_request_the_layers_of_seeds_trained_together_are_measured(tmp_path, monkeypatch):
    monkeypatch.setenv("GCONV_TUNE", "1")
    runs = [a_run(tmp_path, seed) for seed in range(2)]
    learner = MultiSeedLearner([model(), model()], context(), 3)
    with kernels_of(runs, [learner.wide_network, learner.networks[0]], context()):
        pass
    _, kept = table.read(runs[1].folder / FILE)
    layers = of_two(), model()[1].geometry
    assert {Kind.of(op, of, torch.float32, True, pixel_bits(8, 10, 10)) for op in OPS for of in layers} <= set(kept)
    weights = [network[1].weight for network in learner.networks]
    assert len({weight.untyped_storage().data_ptr() for weight in weights}) == 1, "still parts of the wide network"


def test_on_request_the_layers_are_measured_once_on_a_machine_and_a_line_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("GCONV_TUNE", "1")
    with kernels_of([a_run(tmp_path / "a")], [model()], context()) as named:
        assert named.startswith("kernels.csv")
    (line,) = capsys.readouterr().out.splitlines()
    assert re.match(r"kernels: \d kinds of op measured in \d+\.\d s; ", line)
    assert str(this_machine(CPU)) in line
    with kernels_of([a_run(tmp_path / "b")], [model()], context()) as again:
        assert again == named
    assert capsys.readouterr().out == ""


def test_without_a_request_nothing_is_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(gconv, "tune", lambda *_: pytest.fail("measured"))
    with kernels_of([a_run(tmp_path)], [model()], context()) as named:
        assert named == "by rule"
