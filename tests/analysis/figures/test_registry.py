"""Drawing all figures: earlier pages that are not drawn again go, other files stay."""

import numpy as np
import pytest

from analysis.figures import correlation, page, registry
from analysis.figures.saved import Figure, Saved

RESULTS = {
    f"variant-{k:02d}": {"correlation conv1": np.corrcoef(np.random.default_rng(k).normal(size=(4, 9)))}
    for k in range(40)
}


@pytest.fixture(autouse=True)
def only_correlations(monkeypatch):
    monkeypatch.setattr(registry, "FIGURES", (Figure("correlation", correlation.draw, ("arrays",)),))
    monkeypatch.setattr(page, "FORMATS", ("png",))


def test_pages_that_are_not_drawn_again_are_removed(tmp_path):
    registry.draw_all(Saved(arrays=RESULTS), tmp_path)
    first = {path.name for path in tmp_path.iterdir()}
    assert {"correlation.png", "correlation-2.png"} <= first, "this many variants take two pages"
    others = ["correlation-2.pdf", "correlation-of-mine.png", "correlations.png", "mine.png"]
    for name in others:
        (tmp_path / name).touch()
    registry.draw_all(Saved(arrays={"variant-00": RESULTS["variant-00"]}), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"correlation.png", *others}


def test_a_figure_without_results_is_removed(tmp_path):
    registry.draw_all(Saved(arrays={"variant-00": RESULTS["variant-00"]}), tmp_path)
    assert registry.draw_all(Saved(), tmp_path) == []
    assert list(tmp_path.iterdir()) == []
