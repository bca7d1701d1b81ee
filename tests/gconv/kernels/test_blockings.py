"""Blockings of the band kernel in the tables of measured kernels: measured, chosen and taken by name."""

from types import SimpleNamespace

import pytest
import torch

from gconv import tuning
from gconv.kernels import OPS, band, choose, find, machine, table
from gconv.kernels.band.support import or_the_next_kernel
from gconv.kernels.geometry import Geometry
from gconv.kernels.table import Kind
from gconv.operator import dispatch
from gconv.partition import Partition

CPU = torch.device("cpu")
LOG = Geometry(Partition.of("log:4", 64), Partition.of("log:4", 64), (3, 3), padding=(1, 1))
SIZE = (32, 32)
BITS = choose.pixel_bits(64, *SIZE)
CONFIGS = band.configs(LOG, torch.float32)


def image(channels=64):
    return torch.empty(64, channels, *SIZE, device="meta").to(memory_format=torch.channels_last)


@pytest.fixture
def measured(monkeypatch):
    """A table in which the third blocking of band is the fastest, on a CPU that runs it."""
    monkeypatch.setattr(choose, "refusal", lambda *layer: None)
    monkeypatch.setattr(choose, "this_machine", lambda device: machine.this_machine(CPU))
    times = {"packed": 4e-3, **{f"band {blocking}": 3e-3 for blocking in CONFIGS}, f"band {CONFIGS[2]}": 1e-3}
    choose.forget()
    with table.pinned({Kind.of(op, LOG, torch.float32, True, BITS): times for op in OPS}):
        yield
    choose.forget()


def test_every_blocking_has_a_name_of_its_own():
    names = [str(blocking) for blocking in CONFIGS]
    assert len(set(names)) == len(names) > 4
    assert str(band.Blocking(64, 32, 128, 16, 2, rows=True)) == "rows 64/32/128/16/2"


@pytest.mark.usefixtures("measured")
def test_the_fastest_blocking_speaks_for_its_kernel():
    for op in OPS:
        chosen = choose.choose(op, LOG, torch.float32, CPU, True, BITS)
        assert chosen.kernel == "band" and dict(chosen.seconds) == {"packed": 4e-3, "band": 1e-3}


@pytest.mark.usefixtures("measured")
def test_an_op_takes_the_fastest_blocking_measured_and_any_that_is_asked_for():
    taken = []

    @or_the_next_kernel
    def conv2d(x, weight, bias, geometry, *, blocking):
        taken.append(blocking)

    @or_the_next_kernel
    def input_gradient(dy, weight, geometry, input_size, *, blocking):
        taken.append(blocking)

    @or_the_next_kernel
    def weight_gradient(dy, x, geometry, *, blocking):
        taken.append(blocking)

    conv2d(image(), None, None, LOG)
    input_gradient(image(), None, LOG, SIZE)
    weight_gradient(image(), image(), LOG)
    conv2d(image(), None, None, LOG, blocking=CONFIGS[4])
    assert taken == [CONFIGS[2]] * 3 + [CONFIGS[4]]
    with table.pinned({}):
        choose.forget()
        conv2d(image(), None, None, LOG)
    assert taken[-1] == CONFIGS[0], "the rule, where nothing is measured"


def test_tune_times_every_blocking_of_every_op(monkeypatch):
    taken = []
    ops = {op: lambda *given, op=op, blocking: taken.append((op, blocking)) for op in OPS}
    fake = SimpleNamespace(configs=band.configs, **ops)
    monkeypatch.setattr(tuning, "runnable", lambda *layer: ("loop", "band"))
    monkeypatch.setattr(tuning, "find", lambda name: fake if name == "band" else find(name))
    for op in OPS:
        calls = tuning._calls(tuning.Use(op, LOG, torch.float32, CPU, True, 1, 4, 4))
        assert list(calls) == ["loop", *(f"band {blocking}" for blocking in CONFIGS)]
        for call in calls.values():
            call()
    assert taken == [(op, blocking) for op in OPS for blocking in CONFIGS]
    dispatch.forget()
