"""Some images of any folder, decoded at once into memory: with class folders or without, in splits or in none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from experiments.data.datasets import Dataset, Images, channel_statistics
from experiments.data.decode import read_images
from experiments.data.image_folders import (
    COMMON_SUFFIXES,
    SkippedFiles,
    class_folders,
    images_in,
    is_hidden,
    is_image,
    same_pictures,
    warn_of_alike,
    warn_of_empty,
    warn_of_same,
)
from experiments.errors import UsageError
from experiments.terminal import printable

SPLITS = ("val", "test", "train")  # the first of these that exists is measured


def load_images(path: Path, image_size: int, images: int) -> Dataset:
    """Return a number of images of a folder, evenly spaced over its files.

    Test images are those of ``val/``, ``test/`` or ``train/`` in the folder, else of the folder itself; training images
    are as many of ``train/``, where it is there, else the same ones. The classes are the folders that they lie in.
    Images that do not mostly lie in two folders or more have none: then ``classes`` is empty and every label 0.

    Args:
        path: the folder.
        image_size: height and width in pixels; other shapes are resized by the shorter side and centre-cropped.
        images: greatest number of images of each split.

    Raises:
        UsageError: there is no such folder, no image in it, or none that can be read.
    """
    if not path.is_dir():
        raise UsageError(f"--data={path}: there is no such folder")
    splits = {name: path / name for name in SPLITS if (path / name).is_dir()}
    shown_place = next(iter(splits.values()), path)
    places = {"test": shown_place, "train": splits.get("train", shown_place)}
    left_out = SkippedFiles(path)
    classes, files = _files(places, left_out)
    for split, place in places.items():
        if not files[split]:
            raise UsageError(f"--data={path}: no image in {place} (looked for {COMMON_SUFFIXES})")
    broken: list[str] = []
    chosen = {split: _evenly(of_split, images) for split, of_split in files.items()}
    test = _decode(chosen["test"], image_size, broken, left_out, shown_place)
    same = places["train"] == shown_place
    train = test if same else _decode(chosen["train"], image_size, broken, left_out, places["train"])
    left_out.say()
    if not same:
        twins = same_pictures((file for file, _ in chosen["test"]), (file for file, _ in files["train"]))
        names = [f"{printable(file.relative_to(path))} is {printable(twin.relative_to(path))}" for file, twin in twins]
        warn_of_same(path, names, places["train"].name, shown_place.name)
    warn_of_alike(path, classes)
    for split in ("test",) if same else ("train", "test"):
        labels = [label for _, label in files[split]]
        warn_of_empty(path, classes, places[split].name, labels, "it counts as a class all the same")
    mean, std = channel_statistics(train.pixels.numpy())
    return Dataset(train, test, classes, "", torch.tensor(mean), torch.tensor(std), tuple(broken))


def standardised(dataset: Dataset, mean: Sequence[float], std: Sequence[float]) -> Dataset:
    """Return the dataset with another mean and standard deviation per channel, both of pixels from 0 to 1."""
    return replace(dataset, mean=255 * torch.tensor(mean), std=255 * torch.tensor(std))


def with_outputs(dataset: Dataset, outputs: int, names: Sequence[str]) -> Dataset | None:
    """Return the dataset with labels in the order of a network's outputs; None where that is not known.

    Args:
        dataset: labels count its classes in the order of their names.
        outputs: number of outputs of the network.
        names: of the outputs, if they are known. Class folders of these names have their numbers; otherwise as many
            folders as outputs are numbered in the order of their names.
    """
    if not dataset.classes:
        return None
    plain = [_plain(name) for name in names]
    places = {name: plain.index(name) for name, count in Counter(plain).items() if count == 1}
    output_numbers = [places.get(_plain(name)) for name in dataset.classes]
    if outputs == len(names) and None not in output_numbers:
        number = torch.tensor(output_numbers)
        test, train = (Images(images.pixels, number[images.labels]) for images in (dataset.test, dataset.train))
        return replace(dataset, test=test, train=train, classes=tuple(names))
    return dataset if outputs == len(dataset.classes) else None


def _plain(name: str) -> str:
    return name.casefold().replace("_", " ")


def _files(
    places: dict[str, Path], left_out: SkippedFiles
) -> tuple[tuple[str, ...], dict[str, list[tuple[Path, int]]]]:
    """Return the classes, and each split's images with their labels.

    There are classes where the places have two folders or more and most images of each place lie in such folders.
    """
    of_classes = SkippedFiles(left_out.base)
    files_by_place = {
        place: {name: images_in(place / name, of_classes) for name in class_folders(place, of_classes)}
        for place in dict.fromkeys(places.values())
    }
    names = sorted({name for of_place in files_by_place.values() for name in of_place})
    inside = all(sum(map(len, of_place.values())) > _count_outside(place) for place, of_place in files_by_place.items())
    if len(names) < 2 or not inside:
        whole = {place: [(file, 0) for file in images_in(place, left_out)] for place in files_by_place}
        return (), {split: whole[place] for split, place in places.items()}
    left_out.by_reason.update(of_classes.by_reason)
    files = {
        split: [(file, label) for label, name in enumerate(names) for file in files_by_place[place].get(name, [])]
        for split, place in places.items()
    }
    return tuple(printable(name) for name in names), files


def _count_outside(place: Path) -> int:
    return sum(is_image(child.name) and not is_hidden(child.name) and child.is_file() for child in place.iterdir())


def _evenly(files: list[tuple[Path, int]], images: int) -> list[tuple[Path, int]]:
    """Return at most ``images`` of the files, evenly spaced."""
    taken = min(images, len(files))
    return [files[k * len(files) // taken] for k in range(taken)]


def _decode(
    chosen: list[tuple[Path, int]], size: int, broken: list[str], left_out: SkippedFiles, place: Path
) -> Images:
    pixels, labels = [], []
    pictures = read_images([file for file, _ in chosen], size, f"reading {printable(place.name)}")
    for (file, label), picture in zip(chosen, pictures, strict=True):
        left_out.add_unread(file, picture)
        if picture.pixels is None:
            broken.append(str(file))
        else:
            pixels.append(picture.pixels)
            labels.append(label)
    if not pixels:
        raise UsageError(f"--data={place}: none of the {len(chosen)} images could be read")
    return Images(torch.from_numpy(np.stack(pixels)), torch.tensor(labels))
