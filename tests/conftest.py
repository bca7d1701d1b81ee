"""Fixtures of all tests: they compute in one precision and by the same kernels on every processor.

Nothing heavy is imported before it is needed: the process that only distributes the tests reads this file too.
"""

import gc
import os
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


@pytest.fixture(scope="session", autouse=True)
def the_same_on_every_machine(tmp_path_factory):
    """``precision: auto`` is fp32 and kernels are chosen by rule, whatever this processor has and its user measured.

    Of the session, so that it holds for fixtures of any scope too. Tests of bf16 and of tables ask for them.
    """
    from gconv.operator import dispatch

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torch.cpu._is_amx_tile_supported", lambda: False)
        patch.setattr("torch.cpu._is_avx512_bf16_supported", lambda: False)
        patch.setattr("gconv.kernels.table.SHIPPED", Path("no such folder"))
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        patch.setenv("MPLCONFIGDIR", os.environ.get("MPLCONFIGDIR") or str(cache / "matplotlib"))  # its list of fonts
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.delenv("GCONV_TUNE", raising=False)
        dispatch.forget()
        yield


@pytest.fixture(autouse=True)
def figures_as_by_default():
    """The flags of ``figures`` set how all later figures of a process are written; a test leaves none behind."""
    yield
    if module := sys.modules.get("experiments.report.figure_flags"):
        module.apply_figure_flags([])
