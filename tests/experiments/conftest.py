"""Images for the tests of experiments."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tiny_images import tiny_dataset


@pytest.fixture
def tiny(monkeypatch):
    """Every dataset is the tiny one, at the size the study asks for."""
    monkeypatch.setattr("experiments.data.load", lambda _spec, size, *_rest: tiny_dataset(size))


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    """train/ and val/ with two classes of three PNGs, one of them grey and one not square."""
    rng = np.random.default_rng(0)
    root = tmp_path / "pictures"
    for split in ("train", "val"):
        for label, name in enumerate(("cat", "dog")):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(3):
                shape = [(20, 20, 3), (20, 20), (16, 30, 3)][number]
                Image.fromarray(rng.integers(0, 255, shape, dtype=np.uint8) // (label + 1)).save(
                    folder / f"{number}.png"
                )
    return root
