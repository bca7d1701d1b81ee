"""A small study that was trained and measured, once for all tests of commands."""

import pytest

import experiments.commands.trained  # noqa: F401 - it binds functions that are replaced below
from experiments.pipeline import run_study
from small_runs import NAME, small
from tiny_images import tiny_dataset


def make_quick(patch):
    """Time little, draw nothing: neither the numbers nor the pictures matter here."""
    patch.setattr("experiments.data.datasets.load", lambda _spec, size, *_rest: tiny_dataset(size))
    patch.setattr("experiments.measure.first_layer.CROPS", 2)
    patch.setattr("experiments.measure.speed.LATENCY_BATCH", 2)
    patch.setattr("experiments.measure.speed.LATENCY_REPEATS", 1)
    for module in ("summary", "write_record"):
        patch.setattr(f"experiments.report.{module}.draw_figures", lambda _folder: [])


@pytest.fixture
def quick(monkeypatch):
    make_quick(monkeypatch)


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """The folder of the study."""
    root = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        make_quick(patch)
        assert run_study(small(root)) == 0
    return root / NAME
