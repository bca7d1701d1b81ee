"""Fixtures of all tests: they compute in one precision and by the same kernels on every processor.

Nothing is imported before it is needed: the process that only distributes the tests reads this file too.
"""

from pathlib import Path

import pytest


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
def figures_as_by_default(monkeypatch):
    """The flags of ``figures`` set how all later figures of a process are written; a test leaves none behind."""
    from analysis.figures import page

    for name in ("FORMATS", "WIDTH", "BARE"):
        monkeypatch.setattr(page, name, getattr(page, name))
