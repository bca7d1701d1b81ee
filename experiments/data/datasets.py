"""Datasets: images decoded once into a memory-mapped uint8 cache that is keyed by their content.

``sources.py`` lists them: ``photos`` ships with the dependencies; ``cifar10`` and ``imagenette`` come through
torchvision, downloaded on request; ``folder:PATH`` is any tree ``train/<class>/*``, ``val/<class>/*``.
"""

from __future__ import annotations

import hashlib
import shutil
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from experiments.data.cache import read_index, write_index
from experiments.data.source import Decoded, Request, Source
from experiments.data.sources import find_source
from experiments.errors import UsageError

CACHE_VERSION = 1  # raise when all of decoding changes; where only some images' does, raise ``decode.RULES``


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
        """Return the same images on a device; in host memory where they take over half of the device's free memory."""
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
        """Return the same dataset on a device."""
        return Dataset(
            self.train.to(device), self.test.to(device), self.classes, self.key, self.mean, self.std, self.broken
        )


def load(spec: str, image_size: int, root: Path, download: bool = False) -> Dataset:
    """Load a dataset, decoding it first if it was not decoded at this size before.

    Args:
        spec: one of ``SOURCES``, such as ``photos`` or ``folder:PATH``.
        image_size: height and width in pixels; other shapes are resized by the shorter side and centre-cropped.
        root: folder of downloads and of the cache.
        download: fetch missing files.

    Raises:
        UsageError: the dataset is unknown or missing, has no class folder or no readable image, the disk is full, or
            there is no network.
    """
    source = find_source(Request(spec, root, download))
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


def _decode(source: Source, size: int, folder: Path, spec: str) -> dict[str, Any]:
    """Decode both splits into a folder that appears whole or not at all; returns its index."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    needed, free = sum(source.count.values()) * size**2 * 3, shutil.disk_usage(folder.parent).free
    if needed > free:
        raise UsageError(f"dataset={spec}: decoding needs {needed >> 20} MiB in {folder.parent}, {free >> 20} are free")
    fresh = folder.with_name(f"unfinished-{uuid.uuid4().hex[:12]}-{folder.name}")  # several machines may share it
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
    """Return mean and standard deviation per channel, from at most 2,000 evenly spaced images."""
    chosen = np.linspace(0, len(pixels) - 1, min(len(pixels), 2000)).astype(int)
    means = np.stack([pixels[k].mean((0, 1), dtype=np.float64) for k in chosen])
    squares = np.stack([np.square(pixels[k], dtype=np.float64).mean((0, 1)) for k in chosen])
    mean = means.mean(0)
    std = np.sqrt(np.maximum(squares.mean(0) - mean**2, 1.0))  # a constant channel stays finite
    return mean.tolist(), std.tolist()
