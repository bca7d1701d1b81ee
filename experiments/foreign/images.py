"""Some images of any folder, decoded at once into memory: with class folders or without, in splits or in none."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from experiments.data import (
    IMAGE_SUFFIXES,
    NAMED_BROKEN,
    Dataset,
    Images,
    channel_statistics,
    class_folders,
    images_in,
    read_images,
)
from experiments.errors import UsageError

SHOWN = ("val", "test", "train")  # the split that is looked at: the first of these that is there


def load_images(path: Path, image_size: int, images: int) -> Dataset:
    """So many images of a folder, evenly spaced over its files.

    Test images are those of ``val/``, ``test/`` or ``train/`` in the folder, else of the folder itself; training images
    are as many of ``train/``, where it is there, else the same ones. The classes are the folders that they lie in.
    Images that do not all lie in two folders or more have none: then ``classes`` is empty and every label 0.

    Args:
        path: the folder.
        image_size: height and width in pixels; other shapes are resized by the shorter side and centre-cropped.
        images: how many of each split at most.

    Raises:
        UsageError: there is no such folder, no image in it, or none that can be read.
    """
    if not path.is_dir():
        raise UsageError(f"--data={path}: there is no such folder")
    splits = {name: path / name for name in SHOWN if (path / name).is_dir()}
    shown = next(iter(splits.values()), path)
    places = {"test": shown, "train": splits.get("train", shown)}
    classes = _classes(places)
    files = {split: list(images_in(place, classes or ("",))) for split, place in places.items()}
    for split, place in places.items():
        if not files[split]:
            raise UsageError(f"--data={path}: no image in {place} (looked for {', '.join(sorted(IMAGE_SUFFIXES))})")
    broken: list[str] = []
    test = _decode(files["test"], image_size, images, broken, shown)
    same = places["train"] == shown
    train = test if same else _decode(files["train"], image_size, images, broken, places["train"])
    for file in broken[:NAMED_BROKEN]:
        print(f"warning: {file}: not a readable image, left out", file=sys.stderr)
    if len(broken) > NAMED_BROKEN:
        print(f"warning: {len(broken)} images could not be read and are left out", file=sys.stderr)
    mean, std = channel_statistics(train.pixels.numpy())
    return Dataset(train, test, classes, "", torch.tensor(mean), torch.tensor(std), tuple(broken))


def standardised(dataset: Dataset, mean: Sequence[float], std: Sequence[float]) -> Dataset:
    """The dataset to be shown with another mean and standard deviation per channel, both of pixels from 0 to 1."""
    return replace(dataset, mean=255 * torch.tensor(mean), std=255 * torch.tensor(std))


def with_outputs(dataset: Dataset, outputs: int, names: Sequence[str]) -> Dataset | None:
    """The dataset with labels as a network numbers its outputs; None where that is not known.

    Args:
        dataset: labels count its classes in the order of their names.
        outputs: of the network.
        names: of the outputs, if they are known. Class folders of these names have their numbers; otherwise as many
            folders as outputs are numbered in the order of their names.
    """
    if not dataset.classes:
        return None
    plain = [_plain(name) for name in names]
    places = {name: plain.index(name) for name, count in Counter(plain).items() if count == 1}
    found = [places.get(_plain(name)) for name in dataset.classes]
    if outputs == len(names) and None not in found:
        number = torch.tensor(found)
        test, train = (Images(images.pixels, number[images.labels]) for images in (dataset.test, dataset.train))
        return replace(dataset, test=test, train=train, classes=tuple(names))
    return dataset if outputs == len(dataset.classes) else None


def _plain(name: str) -> str:
    return name.casefold().replace("_", " ")


def _classes(places: dict[str, Path]) -> tuple[str, ...]:
    """The class folders of all splits; none where a split has an image outside of them, or one folder alone."""
    names = {place: class_folders(place) for place in places.values()}
    classes = tuple(sorted({name for found in names.values() for name in found}))
    outside = any(
        file.suffix.lower() in IMAGE_SUFFIXES for place in names for file in place.iterdir() if file.is_file()
    )
    return () if outside or len(classes) < 2 else classes


def _decode(files: list[tuple[Path, int]], size: int, images: int, broken: list[str], place: Path) -> Images:
    taken = min(images, len(files))
    chosen = [files[k * len(files) // taken] for k in range(taken)]
    pixels, labels = [], []
    for (file, label), image in zip(
        chosen, read_images([file for file, _ in chosen], size, f"reading {place.name}"), strict=True
    ):
        if image is None:
            broken.append(str(file))
        else:
            pixels.append(image)
            labels.append(label)
    if not pixels:
        raise UsageError(f"--data={place}: none of the {taken} images could be read")
    return Images(torch.from_numpy(np.stack(pixels)), torch.tensor(labels))
