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
from experiments.training.recipe import Recipe
from experiments.training.run import train_run
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


def a_run(folder):
    return Run.of(folder, "tiny", {"seed": 0, "data": "tiny"})


def know(kernel, geometry=None):
    """Have the user's table say that one kernel is the fastest."""
    geometry = geometry or model()[1].geometry
    bits = pixel_bits(8, 10, 10)
    others = dict.fromkeys(("loop", "merged", "packed", "masked"), 2.0)
    rows = [(Kind.of(op, geometry, torch.float32, True, bits), others | {kernel: 1.0}) for op in OPS]
    table.extend(this_machine(CPU), rows)
    forget()


def chosen():
    return choose("conv2d", model()[1].geometry, torch.float32, CPU, True, pixel_bits(8, 10, 10)).kernel


def test_a_run_keeps_what_it_began_with_whatever_is_measured_later(tmp_path):
    know("loop")
    run = a_run(tmp_path)
    with kernels_of(run, model(), context()) as named:
        assert chosen() == "loop"
        know("masked")
        assert chosen() == "loop"
    assert chosen() == "masked"
    with kernels_of(run, model(), context()) as again:
        assert (chosen(), again) == ("loop", named)
    with kernels_of(a_run(tmp_path / "other"), model(), context()) as other:
        assert chosen() == "masked"
        assert other != named
    assert named.startswith("kernels.csv, sha256 ")


def test_a_run_that_began_by_the_rule_goes_on_by_the_rule(tmp_path):
    run = a_run(tmp_path)
    with kernels_of(run, model(), context()) as named:
        ruled = chosen()
    know("masked")
    with kernels_of(run, model(), context()) as again:
        assert (chosen(), named, again) == (ruled, "by rule", "by rule")


def test_of_the_table_what_may_speak_for_the_layers_is_kept(tmp_path):
    know("loop")
    far = gconv.GroupedConv2d(512, 512, 3, groups=2).geometry
    know("masked", far)
    run = a_run(tmp_path)
    with kernels_of(run, model(), context()):
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
    with kernels_of(run, model(), context()) as named:
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


def test_on_request_the_layers_are_measured_once_on_a_machine_and_a_line_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("GCONV_TUNE", "1")
    with kernels_of(a_run(tmp_path / "a"), model(), context()) as named:
        assert named.startswith("kernels.csv")
    (line,) = capsys.readouterr().out.splitlines()
    assert re.match(r"kernels: \d kinds of op measured in \d+\.\d s; ", line)
    assert str(this_machine(CPU)) in line
    with kernels_of(a_run(tmp_path / "b"), model(), context()) as again:
        assert again == named
    assert capsys.readouterr().out == ""


def test_without_a_request_nothing_is_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(gconv, "tune", lambda *_: pytest.fail("measured"))
    with kernels_of(a_run(tmp_path), model(), context()) as named:
        assert named == "by rule"
