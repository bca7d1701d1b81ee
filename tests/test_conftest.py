"""What the fixtures of all tests promise, for fixtures of every scope."""

from pathlib import Path

import pytest
import torch

from gconv.kernels import table
from gconv.kernels.machine import Machine, computes, has_matrix_units


def what_a_machine_decides():
    one_thread = [Machine("any", f"cpu-{units}", "any", 1) for units in ("avx2", "avx512", "avx512-bf16", "amx")]
    return (
        computes(torch.bfloat16),
        has_matrix_units(),
        [path for path in map(table.shipped_path, one_thread) if path.exists()],
    )


@pytest.fixture(scope="session")
def in_a_session():
    return what_a_machine_decides()


@pytest.fixture(scope="module")
def in_a_module():
    return what_a_machine_decides()


def test_a_shared_fixture_computes_as_the_tests_that_use_it(in_a_session, in_a_module):
    assert in_a_session == in_a_module == what_a_machine_decides() == (False, False, [])


def test_what_the_user_of_this_machine_measured_does_not_count():
    """Whoever ran ``make bench-kernels`` gets the same results of the tests."""
    assert not table.own_path(Machine("any", "cpu-avx2", "any", 1)).is_relative_to(Path.home() / ".cache")
