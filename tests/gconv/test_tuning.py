"""Measuring a model's own layers: what is measured, what is chosen from then on, and what stays as it was."""

import os
import re
import subprocess
import sys
from dataclasses import replace
from unittest import mock

import pytest
import torch
from torch import nn

from gconv import Block, GroupedConv2d, tune, tuning
from gconv.kernels import OPS, choose, find, table
from gconv.kernels.machine import this_machine
from gconv.operator import dispatch

CPU = torch.device("cpu")


class Clock:
    """Time passes only inside kernels: each takes its own seconds."""

    def __init__(self, patch, **seconds):
        self.now, self.seconds = 0.0, seconds
        for name in seconds:
            for op in OPS:
                patch.setattr(find(name), op, self._slowed(name, getattr(find(name), op)))

    def _slowed(self, name, compute):
        def run(*arguments):
            self.now += self.seconds[name]
            return compute(*arguments)

        return run

    def __call__(self):
        return self.now


@pytest.fixture(autouse=True)
def own_table(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(table, "SHIPPED", tmp_path / "none")
    dispatch.forget()
    yield
    monkeypatch.undo()
    dispatch.forget()


@pytest.fixture
def clock(monkeypatch):
    """``loop`` is the fastest, and ``packed`` of the forward pass."""
    clock = Clock(monkeypatch, loop=1.0, merged=3.0, packed=1.2, nested=4.0, masked=4.0, tails=4.0, widened=5.0)
    packed = find("packed").conv2d
    monkeypatch.setattr(find("packed"), "conv2d", lambda *a: setattr(clock, "now", clock.now - 0.7) or packed(*a))
    return clock


def network():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.Dropout(), GroupedConv2d(16, 16, 3, groups="log:3")]
    return nn.Sequential(*layers).to(memory_format=torch.channels_last)


X = torch.randn(2, 3, 10, 10).to(memory_format=torch.channels_last)


def chosen(layer, shape, channels_last=True):
    case = layer.geometry, layer.weight.dtype, CPU, channels_last, choose.pixel_bits(shape[0], *shape[2:])
    return tuple(choose.choose(op, *case).kernel for op in OPS), choose.together(*case)


def test_the_fastest_kernel_of_each_op_is_used_from_then_on(clock):
    model = network()
    assert chosen(model[3], (2, 16, 8, 8))[1] == "merged"
    report = tune(model, X, 1000, clock)
    assert chosen(model[3], (2, 16, 8, 8)) == (("packed", "loop", "loop"), None)
    assert {use.op for use in report.chosen} == {*OPS, "step"}
    assert not report.left
    step = next(use for use in report.chosen if use.op == "step")
    assert report.chosen[step] == "apart"
    assert step[1:] == (model[3].geometry, torch.float32, CPU, True, 2, 8, 8)
    # packed .5 and loop 1 + 1; torch differentiates merged, 3, without calling it again.
    assert report.gain(step) == pytest.approx(3 / 2.5)
    with mock.patch.object(find("packed"), "conv2d", wraps=find("packed").conv2d) as computed:
        dispatch.forget()
        model(X).sum().backward()
        assert computed.called


def test_what_is_known_on_this_machine_is_not_measured_again(clock):
    model = network()
    tune(model, X, 1000, clock)
    now = clock.now
    again = tune(model, X, 1000, clock)
    assert not again.races
    assert clock.now - now < 5  # the model itself was run once
    assert "0 kinds of op measured in" in again.line
    assert "4 known before" in again.line
    assert str(this_machine(CPU)) in again.line


def test_in_evaluation_mode_the_forward_pass_alone_is_measured(clock):
    report = tune(network().eval(), X, 1000, clock)
    assert {use.op for use in report.chosen} == {"conv2d"}
    first = nn.Sequential(GroupedConv2d(6, 6, 3, groups="3,2,1"))
    report = tune(first, torch.randn(2, 6, 8, 8), 1000, clock)  # images: nobody wants their gradient
    assert {use.op for use in report.chosen} == {"conv2d", "weight_gradient"}


def test_the_model_is_left_as_it_was(clock):
    model = network()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    numbers = torch.get_rng_state()
    tune(model, X, 1000, clock)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), numbers)
    assert all(p.grad is None for p in model.parameters())


def test_within_the_budget_and_what_is_left_keeps_the_rule(clock):
    model = nn.Sequential(GroupedConv2d(16, 16, 3, groups="log:3"), GroupedConv2d(16, 16, 1, groups="log:3"))
    x = torch.randn(2, 16, 10, 10)
    report = tune(model, x.requires_grad_(), 30, clock)
    assert report.races
    assert report.left
    assert clock.now < 30 + 3 * (1 + 3 + 1.2 + 3 * 4) + 10  # the last race calls every way, then ends
    assert f"{len(report.left)} left when the 30 s were over" in report.line
    kept = report.left[-1]
    assert choose.choose("conv2d", *kept.case).reason.startswith("no such layer is measured")
    with pytest.raises(ValueError, match=r"budget_s=0: must be a number of seconds above 0"):
        tune(model, x, 0)


def test_layers_that_come_to_need_another_layout_are_measured_too(clock, monkeypatch):
    """The kernel that wins hands on contiguous outputs: the next layer then has another case than before."""
    packed = find("packed").conv2d
    monkeypatch.setattr(find("packed"), "conv2d", lambda *a: packed(*a).contiguous())
    model = nn.Sequential(GroupedConv2d(16, 16, 3, groups="log:3"), GroupedConv2d(16, 16, 1, groups="log:3")).eval()
    x = torch.randn(2, 16, 96, 96).to(memory_format=torch.channels_last)  # by rule merged computes such a large one
    report = tune(model, x, 1000, clock)
    second = {use.channels_last for use in report.chosen if use.geometry.kernel_size == (1, 1)}
    assert second == {False}
    assert all(use.kind in report.races for use in report.chosen)
    layouts = {(kind.kernel, kind.layout) for kind in report.races}
    assert layouts == {("KxK", "channels_last"), ("1x1", "channels_last"), ("1x1", "contiguous")}


def test_autocast_around_the_call_counts(clock):
    with torch.autocast("cpu", torch.bfloat16):
        report = tune(network(), X, 1000, clock)
    assert {use.dtype for use in report.chosen} == {torch.bfloat16}


def test_equal_groups_and_blocks_are_measured_and_plain_convolutions_are_torchs_own(monkeypatch):
    clock = Clock(monkeypatch, native=1.0, loop=3.0, packed=3.0, masked=3.0)
    model = nn.Sequential(
        Block(GroupedConv2d(8, 8, 3, groups=2), nn.BatchNorm2d(8)), nn.Conv2d(8, 8, 3, groups=2)
    ).eval()
    report = tune(model, torch.randn(1, 8, 6, 6), 1000, clock)
    assert list(report.chosen.values()) == ["native"]
    assert not tune(nn.Conv2d(3, 3, 3), X).chosen
    with pytest.raises(TypeError, match=r"tune takes a torch\.nn\.Module"):
        tune("model", X)


def test_a_report_is_a_short_table(clock):
    lines = str(tune(network(), X, 1000, clock)).splitlines()
    assert len(lines) == 4
    assert "log:3" in lines[2]
    assert "2×16×8×8" in lines[2]
    assert lines[2].split()[-5:] == ["packed", "loop", "loop", "apart", "1.20"]


def test_of_steps_the_rules_is_timed_and_those_that_may_win(clock):
    tune(network(), X, 1000, clock)
    (steps,) = [times for kind, times in table.own(this_machine(CPU)).items() if kind.op == "step"]
    assert steps == pytest.approx({"apart": 2.5, "merged": 3.0})


def test_a_step_of_three_kernels_is_timed_whatever_was_measured_of_steps_before(monkeypatch):
    """One kernel for a whole step, in the row of this layer or of one near it, does not hide the three."""
    clock = Clock(monkeypatch, loop=3.0, merged=3.0, packed=0.5, nested=4.0, masked=4.0, tails=4.0, widened=5.0)
    use = tuning.Use("step", network()[3].geometry, torch.float32, CPU, True, 2, 8, 8)
    for pixels in (use.kind.pixels, use.kind.pixels + 1):
        table.write(table.own_path(this_machine(CPU)), this_machine(CPU), {})
        table.extend(this_machine(CPU), [(replace(use.kind, pixels=pixels), {"merged": 9.0})])
        dispatch.forget()
        for op in (*OPS, "step"):
            raced = tuning.measure(use._replace(op=op), 1000, clock)
        assert raced.seconds == pytest.approx({"apart": 1.5, "merged": 3.0})
        assert use.chosen == "apart"


PROGRAM = """
import os, sys, torch
if child := os.fork():
    os.waitpid(child, 0)
    print("second", file=sys.stderr)
import gconv
layer = gconv.GroupedConv2d(8, 8, 3, groups="log:3")
for _ in range(2):
    layer(torch.randn(1, 8, 6, 6).requires_grad_()).sum().backward()
with torch.no_grad():
    layer(torch.randn(1, 8, 6, 6))
"""


def test_whatever_is_computed_first_is_measured_on_request(tmp_path):
    """GCONV_TUNE=1: each op once, a line each, and nothing by a second process."""
    environment = os.environ | {"GCONV_TUNE": "1", "XDG_CACHE_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True)
    first, second = done.stderr.split("second\n")
    assert [line.split()[1] for line in first.splitlines()] == [*OPS, "step"]
    assert all("log:3" in line and " measured in " in line for line in first.splitlines())
    assert (second, done.returncode) == ("", 0)


@pytest.mark.filterwarnings("ignore:kernel table")
def test_a_table_that_cannot_be_written_costs_the_report_a_word_and_no_speed(clock, monkeypatch):
    model = network()
    kept = tune(model, X, 1000, clock).line
    assert kept.endswith(str(this_machine(CPU)))
    monkeypatch.setenv("XDG_CACHE_HOME", os.devnull)
    dispatch.forget()
    assert chosen(model[3], (2, 16, 8, 8))[1] == "merged"
    line = tune(model, X, 1000, clock).line
    assert chosen(model[3], (2, 16, 8, 8)) == (("packed", "loop", "loop"), None)
    path = re.escape(str(table.own_path(this_machine(CPU))))
    assert re.search(rf"; not kept after this process: {path} cannot be written: \w[^\n]*$", line)
    again = tune(model, X, 1000, clock)
    assert not again.races
    assert "not kept" in again.line


def test_a_forward_pass_measures_on_request_without_a_place_to_keep_it():
    environment = os.environ | {"GCONV_TUNE": "1", "XDG_CACHE_HOME": os.devnull}
    program = PROGRAM.partition("import gconv")
    text = "import torch\nimport gconv" + program[2]
    done = subprocess.run([sys.executable, "-c", text], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    assert [line.split()[1] for line in lines if line.startswith("gconv: ")] == [*OPS, "step"]
    assert len([line for line in lines if "cannot be written" in line]) == 1


def test_the_variable_is_one_or_zero(monkeypatch):
    for value, wanted in (("", False), ("0", False), ("1", True)):
        monkeypatch.setenv("GCONV_TUNE", value)
        assert tuning.wanted() is wanted
    monkeypatch.setenv("GCONV_TUNE", "yes")
    with pytest.raises(ValueError, match="GCONV_TUNE=yes: write 1 to measure kernels at first use, or 0"):
        tuning.wanted()


def test_pinned_choices_are_measured_by_nobody(monkeypatch):
    monkeypatch.setattr(tuning, "measure", lambda *_: pytest.fail("measured"))
    before = dispatch.watch(tuning._watcher(tuning._at_first_use))
    try:
        with table.pinned({}):
            GroupedConv2d(12, 12, 3, groups="log:3")(torch.randn(1, 12, 6, 6))
    finally:
        dispatch.watch(before)


def test_a_shape_is_no_example_and_a_budget_is_a_number():
    layer = GroupedConv2d(8, 8, 3, groups="log:3")
    with pytest.raises(TypeError, match=r"example=\(2, 8, 9, 9\) is a shape; give an input: torch\.rand\(2, 8, 9, 9\)"):
        tune(layer, (2, 8, 9, 9))
    with pytest.raises(ValueError, match="budget_s='long': must be a number of seconds"):
        tune(layer, torch.rand(1, 8, 9, 9), budget_s="long")
