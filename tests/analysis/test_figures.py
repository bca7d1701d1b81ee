import numpy as np
import pandas as pd
import pytest
from PIL import Image

from analysis.figures import correlation, curves, filters, page, tradeoff


@pytest.fixture(autouse=True)
def style():
    page.apply_style()


def checked(paths):
    """Both forms are there, the PNG shows something, the PDF embeds TrueType."""
    assert [path.suffix for path in paths] == [".pdf", ".png"]
    pixels = np.asarray(Image.open(paths[1]).convert("L"))
    assert pixels.shape[1] > 800
    assert pixels.std() > 5
    content = paths[0].read_bytes()
    assert b"/FontFile2" in content
    assert b"/Type3" not in content


def arrays(groups):
    rng = np.random.default_rng(0)
    found = {
        "filters": rng.normal(size=(12, 3, 5, 5)),
        "colour_index": rng.uniform(size=12),
        "learned": np.ones(12, dtype=bool),
        "correlation conv1": np.corrcoef(rng.normal(size=(12, 50))),
    }
    if groups:
        found |= {
            "filter_groups": np.repeat([0, 1, 2], [6, 3, 3]),
            "groups conv1 read": np.repeat([0, 1, 2], [6, 3, 3]),
        }
    return found


def test_filters_and_matrices_are_drawn(tmp_path):
    both = {"dense": arrays(False), "log-3": arrays(True)}
    checked(filters.draw(both, tmp_path))
    checked(correlation.draw(both, tmp_path))


def test_without_rgb_filters_there_is_no_figure(tmp_path):
    assert filters.draw({"dense": {}}, tmp_path) == []
    assert correlation.draw({"dense": {}}, tmp_path) == []


@pytest.mark.parametrize("seeds", [1, 3])
def test_accuracy_against_cost_and_curves_are_drawn(tmp_path, seeds):
    rows = [
        {"variant": v, "seed": s, "layer": "", "measure": m, "value": value + s}
        for v in ("dense", "groups-2")
        for s in range(seeds)
        for m, value in (("test_accuracy", 0.8), ("macs", 1e6), ("parameters", 5e4), ("latency", 0.3))
    ]
    checked(tradeoff.draw(pd.DataFrame(rows), tmp_path))
    history = [
        {"variant": v, "seed": s, "epoch": e, "train_loss": 1 / e, "test_accuracy": np.nan if e == 1 else 0.5}
        for v in ("dense", "groups-2")
        for s in range(seeds)
        for e in (1, 2, 3)
    ]
    checked(curves.draw(pd.DataFrame(history), tmp_path))


def test_a_mosaic_places_filters_column_by_column_on_grey():
    weights = np.zeros((3, 3, 2, 2))
    weights[1] = 1.0
    image = filters._mosaic(weights, rows=2)
    assert image.shape == (5, 5, 3)
    assert image[0, 0].tolist() == [0.5] * 3  # zero is grey
    assert image[3, 0].tolist() == [1.0] * 3  # the second filter, below the first, at its largest weight
    assert image[2].tolist() == [[1.0] * 3] * 5  # a white line between
