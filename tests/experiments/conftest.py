"""Images for the tests of experiments."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tiny_images import tiny_dataset


@pytest.fixture
def tiny(monkeypatch):
    """Every dataset is the tiny one, at the size the study asks for."""
    monkeypatch.setattr("experiments.data.datasets.load", lambda _spec, size, *_rest: tiny_dataset(size))


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


@pytest.fixture
def one_thread():
    """The order of a sum depends on the number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def reference(tmp_path_factory):
    """A run that nothing happened to, trained in a child by one thread as all that are compared to it."""
    from fault_children import a_run, go_on, train

    train(a_run(tmp_path_factory.mktemp("warm")))  # what is loaded now need not be loaded by each child
    run = a_run(tmp_path_factory.mktemp("reference"))
    go_on(run)
    return run


@pytest.fixture
def save_always(monkeypatch):
    """Tiny epochs are saved one by one, whatever that costs."""
    monkeypatch.setattr("experiments.store.progress.MAX_CHECKPOINT_SHARE", 1e9)


@pytest.fixture
def shallow(monkeypatch):
    """ShuffleNet and MobileNet with one or two units of each kind."""
    monkeypatch.setattr("experiments.models.shufflenet.UNITS", (2, 1))
    monkeypatch.setattr("experiments.models.mobilenet.PAIRS", [(64, 1), (128, 2), (128, 1)])
