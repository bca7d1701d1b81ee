"""What all tests share: they compare numbers in one precision on every processor."""

import pytest
import torch


@pytest.fixture(autouse=True)
def no_16_bit_units(monkeypatch):
    """``precision: auto`` is fp32, whatever this processor has; tests of bf16 ask for it."""
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
