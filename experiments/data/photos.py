"""The embedded dataset: crops of the eleven colour photographs that ship inside the wheels of three dependencies.

The task is "which photograph is this crop from?". Every photograph is cut into vertical stripes; each third stripe is
for testing, the others for training, and no crop crosses a border, so that no pixel is in both sets.
"""

from __future__ import annotations

import hashlib
import importlib.util
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image

from experiments.data.source import Decoded, Request, Source

PHOTOS = {
    "astronaut": ("skimage", "data/astronaut.png"),
    "chelsea": ("skimage", "data/chelsea.png"),
    "china": ("sklearn", "datasets/images/china.jpg"),
    "coffee": ("skimage", "data/coffee.png"),
    "flower": ("sklearn", "datasets/images/flower.jpg"),
    "grace_hopper": ("matplotlib", "mpl-data/sample_data/grace_hopper.jpg"),
    "hubble_deep_field": ("skimage", "data/hubble_deep_field.jpg"),
    "immunohistochemistry": ("skimage", "data/ihc.png"),
    "motorcycle": ("skimage", "data/motorcycle_left.png"),
    "retina": ("skimage", "data/retina.jpg"),
    "rocket": ("skimage", "data/rocket.jpg"),
}
CROPS = {"train": 1000, "test": 300}  # of each photograph


def photos_source(_request: Request) -> Source:
    """Return the source of the embedded dataset; it is never downloaded."""
    digest = hashlib.sha256(f"photos {CROPS}".encode())
    for file in photo_files():
        digest.update(file.read_bytes())

    def decode(split: str, size: int, out: Decoded) -> None:
        out.add(*crops(split, size))

    count = {split: crops_of_each * len(PHOTOS) for split, crops_of_each in CROPS.items()}
    return Source(tuple(PHOTOS), digest.hexdigest(), count, decode)


def photo_files() -> list[Path]:
    """Return the files of the photographs on this machine, in class order.

    Raises:
        FileNotFoundError: a package came without its photograph.
    """
    files = []
    for package, place in PHOTOS.values():
        spec = importlib.util.find_spec(package)  # finds the folder without importing the package
        assert spec is not None and spec.origin is not None, f"{package} is a dependency"
        files.append(Path(spec.origin).parent / place)
        if not files[-1].is_file():
            raise FileNotFoundError(f"{files[-1]}: this photograph should have come with {package}; reinstall it")
    return files


def crops(split: str, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the crops of every photograph for one split.

    Args:
        split: ``train`` or ``test``.
        size: height and width in pixels. A photograph too small for a test and a training stripe of that width gives
            smaller crops, enlarged.

    Returns:
        uint8 (S, size, size, 3) and int64 labels (S,).
    """
    images, labels = [], []
    for label, file in enumerate(photo_files()):
        photo = Image.open(file).convert("RGB")
        window = min(size, photo.width // 3, photo.height)
        for left, top in _places(photo.width, photo.height, window, split, np.random.default_rng([label, len(split)])):
            crop = photo.crop((left, top, left + window, top + window))
            images.append(np.asarray(crop if window == size else crop.resize((size, size), Image.Resampling.BICUBIC)))
            labels.append(label)
    return np.stack(images), np.asarray(labels, dtype=np.int64)


def stripes(width: int, window: int, split: str) -> list[tuple[int, int]]:
    """Return (left, right) of the vertical stripes of a split; each third stripe is for testing."""
    count = max(3, width // (2 * window))  # stripes two crops wide, where the photograph has room for three
    edges = [round(k * width / count) for k in range(count + 1)]
    return [
        (left, right)
        for k, (left, right) in enumerate(pairwise(edges))
        if (k % 3 == 1) == (split == "test") and right - left >= window
    ]


def _places(width: int, height: int, window: int, split: str, rng: np.random.Generator) -> list[tuple[int, int]]:
    """Return random (left, top) corners of windows that stay inside the stripes of a split."""
    lefts = np.concatenate([np.arange(left, right - window + 1) for left, right in stripes(width, window, split)])
    tops = rng.integers(0, height - window + 1, CROPS[split])
    return [(int(left), int(top)) for left, top in zip(rng.choice(lefts, CROPS[split]), tops, strict=True)]
