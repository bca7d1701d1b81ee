"""Fixtures of all tests: they compute in one precision and by the same kernels on every processor.

Nothing heavy is imported before it is needed: the process that only distributes the tests reads this file too.
"""

import gc
import sys
from pathlib import Path

import pytest
from hypothesis import settings


def pytest_configure():
    """Nothing is thrown away while the packages are imported; an example may take any time, on a loaded machine too."""
    gc.disable()
    settings.register_profile("any time", deadline=None)
    settings.load_profile("any time")


def pytest_collection_finish():
    """What is imported by now stays: the garbage collector looks at what the tests make alone, and seldom."""
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)
    gc.enable()


@pytest.fixture(autouse=True)
def no_16_bit_units(monkeypatch):
    """``precision: auto`` is fp32, whatever this processor has; tests of bf16 ask for it."""
    monkeypatch.setattr("torch.cpu._is_amx_tile_supported", lambda: False)
    monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", lambda: False)


@pytest.fixture(autouse=True)
def no_shipped_table(monkeypatch):
    """Kernels are chosen by rule; tests of tables write their own."""
    monkeypatch.setattr("gconv.kernels.table.SHIPPED", Path("no such folder"))


@pytest.fixture(autouse=True)
def figures_as_by_default():
    """The flags of ``figures`` set how all later figures of a process are written; a test leaves none behind."""
    yield
    if module := sys.modules.get("experiments.report.figure_flags"):
        module.apply_figure_flags([])
