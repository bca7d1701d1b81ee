"""Fixtures of the benchmarks' tests."""

import pytest

from gconv.operator import dispatch


@pytest.fixture
def no_own_table(tmp_path, monkeypatch):
    """No measured kernels of this machine's user, before the test and after it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    dispatch.forget()
    yield
    monkeypatch.undo()
    dispatch.forget()
