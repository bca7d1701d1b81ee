"""Datasets: images decoded once into a memory-mapped uint8 cache that is keyed by their content.

``photos`` ships with the dependencies; ``cifar10`` and ``imagenette`` come through torchvision, downloaded on request;
``folder:PATH`` is any tree ``train/<class>/*``, ``val/<class>/*`` (or ``test/<class>/*``), by ``docs/images.md``.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from experiments.data import photos
from experiments.data.cache import content_of, read_index, write_index
from experiments.data.decode import fit, read_images
from experiments.data.image_folders import (
    COMMON_SUFFIXES,
    UNREADABLE,
    LeftOut,
    alike,
    class_folders,
    images_in,
    some,
    warn_of_alike,
    warn_of_empty,
    warn_of_same,
)
from experiments.errors import UsageError
from experiments.terminal import shown
from experiments.vision import import_torchvision

DATASETS = ("photos", "cifar10", "imagenette", "folder:PATH")
CACHE_VERSION = 1  # raise when all of decoding changes; where only some images' does, raise ``decode.RULES``
IMAGENETTE = {"train": 9469, "test": 3925}


@dataclass(frozen=True, eq=False)
class Images:
    """One split, decoded.

    Attributes:
        pixels: uint8 (S, H, W, 3).
        labels: int64 (S,).
    """

    pixels: Tensor
    labels: Tensor

    def to(self, device: torch.device) -> Images:
        """The same images on a device, or, where they take over half of its free memory, still in host memory."""
        if device.type == "cuda" and self.pixels.numel() > 0.5 * torch.cuda.mem_get_info(device)[0]:
            return self
        return Images(self.pixels.to(device), self.labels.to(device))


@dataclass(frozen=True, eq=False)
class Dataset:
    """Training and test images of one source at one size.

    Attributes:
        classes: names, in label order.
        key: hash of the content: source files, size, decoding.
        mean, std: per channel over the training images, 0…255.
        broken: files that could not be read and were left out.
    """

    train: Images
    test: Images
    classes: tuple[str, ...]
    key: str
    mean: Tensor
    std: Tensor
    broken: tuple[str, ...]

    def to(self, device: torch.device) -> Dataset:
        """The same dataset on a device."""
        return Dataset(
            self.train.to(device), self.test.to(device), self.classes, self.key, self.mean, self.std, self.broken
        )


@dataclass(frozen=True)
class Source:
    """Where a dataset comes from before it is decoded: files with labels, or arrays made at once.

    Attributes:
        classes: names, in label order.
        digest: of the content.
        count: images by split.
        decode: decodes one split at a size.
        base: folder in which the names of images are; None where there are no files.
        say: says what was left out, by the index of what was decoded.
    """

    classes: tuple[str, ...]
    digest: str
    count: dict[str, int]
    decode: Callable[[str, int, Decoded], None]
    base: Path | None = None
    say: Callable[[dict[str, Any]], None] | None = None


class Decoded:
    """Collects one split's images on disk and notes which could not be read."""

    def __init__(self, path: Path) -> None:
        self._file = open(path, "wb")  # noqa: SIM115 (closed by __exit__)
        self.labels: list[int] = []
        self.broken: list[str] = []
        self.unread: dict[str, list[str]] = {}

    def __enter__(self) -> Decoded:
        return self

    def __exit__(self, *_error: object) -> None:
        self._file.close()

    def add(self, images: np.ndarray, labels: np.ndarray | list[int]) -> None:
        """Append uint8 images (S, size, size, 3)."""
        self._file.write(images.tobytes())
        self.labels.extend(int(label) for label in labels)


def load(spec: str, image_size: int, root: Path, download: bool = False) -> Dataset:
    """Load a dataset, decoding it first if it was not decoded at this size before.

    Args:
        spec: ``photos``, ``cifar10``, ``imagenette`` or ``folder:PATH``.
        image_size: height and width in pixels; other shapes are resized by the shorter side and centre-cropped.
        root: folder of downloads and of the cache.
        download: fetch what is not there.

    Raises:
        UsageError: unknown dataset, nothing there, no class folder, no readable image, no room, no network.
    """
    source = _source(spec, root, download)
    key = hashlib.sha256(f"{source.digest} {image_size} {CACHE_VERSION}".encode()).hexdigest()[:16]
    folder = root / "cache" / key
    index = read_index(folder)
    if index is None:
        index = _decode(source, image_size, folder, spec)
    if source.say is not None:
        source.say(index)
    images = {
        split: Images(
            torch.from_file(str(folder / f"{split}.u8"), size=len(labels) * image_size**2 * 3, dtype=torch.uint8).view(
                len(labels), image_size, image_size, 3
            ),
            torch.tensor(labels),
        )
        for split, labels in index["labels"].items()
    }
    return Dataset(
        images["train"],
        images["test"],
        source.classes,
        key,
        torch.tensor(index["mean"]),
        torch.tensor(index["std"]),
        tuple(str(source.base / name) if source.base else name for name in index["broken"]),
    )


def _source(spec: str, root: Path, download: bool) -> Source:
    name, _, place = spec.partition(":")
    if spec == "photos":
        return _photos()
    if spec == "cifar10":
        return _cifar10(root, download)
    if spec == "imagenette":
        return _imagenette(root, download)
    if name == "folder" and place:
        return _folder(Path(place).expanduser(), root, spec)
    near = get_close_matches(spec, ["photos", "cifar10", "imagenette"], n=1)
    hint = f"; did you mean {near[0]}? There are: " if near else "; there are: "
    raise UsageError(f"dataset={spec}: no such dataset{hint}{', '.join(DATASETS)}")


def _photos() -> Source:
    digest = hashlib.sha256(f"photos {photos.CROPS}".encode())
    for file in photos.photo_files():
        digest.update(file.read_bytes())

    def decode(split: str, size: int, out: Decoded) -> None:
        out.add(*photos.crops(split, size))

    count = {split: crops * len(photos.PHOTOS) for split, crops in photos.CROPS.items()}
    return Source(tuple(photos.PHOTOS), digest.hexdigest(), count, decode)


def _cifar10(root: Path, download: bool) -> Source:
    datasets = import_torchvision().datasets
    splits = {
        split: _through_torchvision(
            "cifar10",
            root,
            download,
            lambda split=split: datasets.CIFAR10(str(root), train=split == "train", download=download),
        )
        for split in ("train", "test")
    }
    digest = hashlib.sha256(b"cifar10")
    for split in splits.values():
        digest.update(split.data.tobytes() + bytes(split.targets))

    def decode(split: str, size: int, out: Decoded) -> None:
        data, labels = splits[split].data, splits[split].targets
        for image, label in zip(data, labels, strict=True):
            out.add(fit(Image.fromarray(image), size)[None], [label])

    return Source(
        tuple(splits["train"].classes), digest.hexdigest(), {s: len(d.data) for s, d in splits.items()}, decode
    )


def _imagenette(root: Path, download: bool) -> Source:
    datasets = import_torchvision().datasets
    folder = root / "imagenette2-320"
    if not folder.is_dir():
        _through_torchvision(
            "imagenette",
            root,
            download,
            lambda: datasets.Imagenette(str(root), split="train", size="320px", download=download),
        )
    source = _folder(folder, root, "imagenette")
    if source.count != IMAGENETTE:
        raise UsageError(
            f"dataset=imagenette: {folder} holds {source.count}, not {IMAGENETTE}: an extraction was interrupted; "
            f"remove it and add --download=true"
        )
    return source


def _through_torchvision(name: str, root: Path, download: bool, make: Callable[[], Any]) -> Any:
    """Construct a torchvision dataset; what goes wrong is one line."""
    try:
        return make()
    except OSError as error:  # URLError is one too
        raise UsageError(
            f"dataset={name}: the download to {root} failed ({error}); "
            f"check the network, or put the files there by hand, or use --dataset=folder:PATH"
        ) from None
    except RuntimeError as error:
        if download:
            raise UsageError(f"dataset={name}: the files in {root} are damaged ({error}); remove them") from None
        raise UsageError(
            f"dataset={name}: not found in {root}; add --download=true to fetch it, "
            f"or use --dataset=folder:PATH for images you have, or --dataset=photos"
        ) from None


def _folder(path: Path, root: Path, spec: str) -> Source:
    if not path.is_dir():
        raise UsageError(f"dataset={spec}: there is no folder {path}")
    splits = {"train": path / "train", "test": path / "val" if (path / "val").is_dir() else path / "test"}
    for split, place in splits.items():
        if not place.is_dir():
            wanted = "train/<class>/" if split == "train" else "val/<class>/ or test/<class>/"
            raise UsageError(f"dataset={spec}: {path} has no {wanted} folder")
    left_out = LeftOut(path)
    found = {
        split: {name: images_in(place / name, left_out) for name in class_folders(place, left_out)}
        for split, place in splits.items()
    }
    names = tuple(found["train"])
    if len(names) < 2:
        raise UsageError(f"dataset={spec}: {splits['train']} has {len(names)} class folders; at least 2 are needed")
    if unknown := [name for name, images in found["test"].items() if images and name not in names]:
        like = {alike(name): name for name in names}
        hints = [f"{like[alike(name)]} in train is written otherwise" for name in unknown if alike(name) in like]
        raise UsageError(
            f"dataset={spec}: {splits['test']} has classes that train lacks: {some([shown(name) for name in unknown])}"
            + (f" ({some([shown(hint) for hint in hints])})" if hints else "")
        )
    files = {
        split: [(file, label) for label, name in enumerate(names) for file in of_class.get(name, [])]
        for split, of_class in found.items()
    }
    for split, place in splits.items():
        if not files[split]:
            raise UsageError(f"dataset={spec}: no image in {place} (looked for {COMMON_SUFFIXES})")

    def decode(split: str, size: int, out: Decoded) -> None:
        unread = LeftOut(path)
        pictures = read_images([file for file, _ in files[split]], size, f"decoding {split}")
        for (file, label), picture in zip(files[split], pictures, strict=True):
            unread.add_unread(file, picture)
            if picture.pixels is None:
                out.broken.append(str(file.relative_to(path)))
            else:
                out.add(picture.pixels[None], [label])
        out.unread = dict(unread.found)

    classes = tuple(shown(name) for name in names)
    train, test = ([file for file, _ in files[split]] for split in ("train", "test"))
    content = content_of(path, train, test, root)

    def say(index: dict[str, Any]) -> None:
        # A cache of the first rules has names of broken images alone.
        unread = index.get("unread") or ({UNREADABLE: index["broken"]} if index["broken"] else {})
        for reason in left_out.found.keys() | unread.keys():
            left_out.found[reason] = [*left_out.found.get(reason, []), *unread.get(reason, [])]
        left_out.say()
        warn_of_same(path, content.same, splits["train"].name, splits["test"].name)
        warn_of_alike(path, classes)
        outputs = "the network has an output for it that is never right"
        warn_of_empty(path, classes, splits["train"].name, index["labels"]["train"], outputs)
        warn_of_empty(path, classes, splits["test"].name, index["labels"]["test"], "no accuracy is known of it")

    everything, digest = files["train"] + files["test"], content.digest
    # The files' names tell their classes; one without a file shifts the labels of the others all the same.
    if empty := sorted(set(names) - {names[label] for _, label in everything}):
        digest = hashlib.sha256(b"\n".join((digest.encode(), *map(os.fsencode, empty)))).hexdigest()
    count = {split: len(entries) for split, entries in files.items()}
    return Source(classes, digest, count, decode, path, say)


def _decode(source: Source, size: int, folder: Path, spec: str) -> dict[str, Any]:
    """Decode both splits into a folder that appears whole or not at all; returns its index."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    needed, free = sum(source.count.values()) * size**2 * 3, shutil.disk_usage(folder.parent).free
    if needed > free:
        raise UsageError(f"dataset={spec}: decoding needs {needed >> 20} MiB in {folder.parent}, {free >> 20} are free")
    fresh = folder.with_name(f"unfinished-{os.getpid()}-{folder.name}")
    try:
        fresh.mkdir()
        index: dict[str, Any] = {"image_size": size, "classes": source.classes}
        labels, broken, unread = {}, [], {}
        for split, count in source.count.items():
            with Decoded(fresh / f"{split}.u8") as out:
                source.decode(split, size, out)
            if not out.labels:
                raise UsageError(f"dataset={spec}: none of the {count} {split} images could be read")
            labels[split] = out.labels
            broken += out.broken
            for reason, names in out.unread.items():
                unread[reason] = [*unread.get(reason, []), *names]
            if split == "train":
                shape = (len(out.labels), size, size, 3)
                pixels = np.memmap(fresh / f"{split}.u8", dtype=np.uint8, mode="r", shape=shape)
                index["mean"], index["std"] = channel_statistics(pixels)
        index.update(labels=labels, broken=broken, unread=unread)
        write_index(fresh, index)
        try:
            fresh.rename(folder)
        except OSError:  # another process decoded the same content meanwhile
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return index


def channel_statistics(pixels: np.ndarray) -> tuple[list[float], list[float]]:
    """Mean and standard deviation per channel, from at most 2,000 evenly spaced images."""
    chosen = np.linspace(0, len(pixels) - 1, min(len(pixels), 2000)).astype(int)
    means = np.stack([pixels[k].mean((0, 1), dtype=np.float64) for k in chosen])
    squares = np.stack([np.square(pixels[k], dtype=np.float64).mean((0, 1)) for k in chosen])
    mean = means.mean(0)
    std = np.sqrt(np.maximum(squares.mean(0) - mean**2, 1.0))  # a constant channel stays finite
    return mean.tolist(), std.tolist()
