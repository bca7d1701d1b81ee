"""Checks that every figure must pass, whatever it shows."""

import numpy as np
from PIL import Image

from analysis.figures import page


def checked(paths):
    """Both forms of every page are there, at paper width, with TrueType; the PNG shows something."""
    assert paths
    assert [path.suffix for path in paths] == [".pdf", ".png"] * (len(paths) // 2)
    for pdf, png in zip(paths[::2], paths[1::2], strict=True):
        assert pdf.stem == png.stem
        pixels = np.asarray(Image.open(png).convert("L"))
        assert 800 < pixels.shape[1] <= 1.05 * 200 * page.WIDTH, "text does not run over the edge"
        assert pixels.shape[0] <= 11 * 200, "it fits on a page"
        assert pixels.std() > 5
        edges = pixels[:2], pixels[-2:], pixels[:, :2], pixels[:, -2:]
        assert min(edge.min() for edge in edges) == 255, "nothing is cut off at an edge"
        content = pdf.read_bytes()
        assert b"/FontFile2" in content
        assert b"/Type3" not in content
    return paths


def long_names(count):
    """Names of variants as long as a sweep makes them, which differ in their middle alone."""
    return [f"model.groups={k},recipe.weight_decay=0.0001,model.shortcut=false" for k in range(1, count + 1)]
