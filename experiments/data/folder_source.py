"""The dataset ``folder:PATH``: any tree of folders of images, one folder a class."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

from experiments.data.cache import content_of
from experiments.data.decode import read_images
from experiments.data.image_folders import (
    COMMON_SUFFIXES,
    UNREADABLE,
    SkippedFiles,
    class_folders,
    images_in,
    normalised_name,
    some,
    warn_of_alike,
    warn_of_empty,
    warn_of_same,
)
from experiments.data.source import Decoded, Request, Source
from experiments.errors import UsageError
from experiments.terminal import printable


def folder_source(path: Path, request: Request) -> Source:
    """Return the source of a tree ``train/<class>/*``, ``val/<class>/*`` or ``test/<class>/*``, by ``docs/images.md``.

    Args:
        path: path of the tree.
        request: names the dataset in messages, and the folder of the cache.

    Raises:
        UsageError: no such tree, fewer than two classes, classes of the test images that training lacks, or no image.
    """
    spec = request.spec
    if not path.is_dir():
        raise UsageError(f"dataset={spec}: there is no folder {path}")
    splits = {"train": path / "train", "test": path / "val" if (path / "val").is_dir() else path / "test"}
    for split, place in splits.items():
        if not place.is_dir():
            wanted = "train/<class>/" if split == "train" else "val/<class>/ or test/<class>/"
            raise UsageError(f"dataset={spec}: {path} has no {wanted} folder")
    left_out = SkippedFiles(path)
    files_by_split = {
        split: {name: images_in(place / name, left_out) for name in class_folders(place, left_out)}
        for split, place in splits.items()
    }
    names = tuple(files_by_split["train"])
    if len(names) < 2:
        raise UsageError(f"dataset={spec}: {splits['train']} has {len(names)} class folders; at least 2 are needed")
    if unknown := [name for name, images in files_by_split["test"].items() if images and name not in names]:
        like = {normalised_name(name): name for name in names}
        hints = [
            f"{like[normalised_name(name)]} in train is written otherwise"
            for name in unknown
            if normalised_name(name) in like
        ]
        raise UsageError(
            f"dataset={spec}: {splits['test']} has classes that train lacks: {some(list(map(printable, unknown)))}"
            + (f" ({some(list(map(printable, hints)))})" if hints else "")
        )
    files = {
        split: [(file, label) for label, name in enumerate(names) for file in of_class.get(name, [])]
        for split, of_class in files_by_split.items()
    }
    for split, place in splits.items():
        if not files[split]:
            raise UsageError(f"dataset={spec}: no image in {place} (looked for {COMMON_SUFFIXES})")

    def decode(split: str, size: int, out: Decoded) -> None:
        unread = SkippedFiles(path)
        pictures = read_images([file for file, _ in files[split]], size, f"decoding {split}")
        for (file, label), picture in zip(files[split], pictures, strict=True):
            unread.add_unread(file, picture)
            if picture.pixels is None:
                out.broken.append(str(file.relative_to(path)))
            else:
                out.add(picture.pixels[None], [label])
        out.unread = dict(unread.by_reason)

    classes = tuple(printable(name) for name in names)
    train, test = ([file for file, _ in files[split]] for split in ("train", "test"))
    content = content_of(path, train, test, request.root)

    def say(index: dict[str, Any]) -> None:
        # A cache of the first rules has names of broken images alone.
        unread = index.get("unread") or ({UNREADABLE: index["broken"]} if index["broken"] else {})
        for reason in left_out.by_reason.keys() | unread.keys():
            left_out.by_reason[reason] = [*left_out.by_reason.get(reason, []), *unread.get(reason, [])]
        left_out.say()
        warn_of_same(path, content.same, splits["train"].name, splits["test"].name)
        warn_of_alike(path, classes)
        outputs = "the network has an output for it that is never right"
        warn_of_empty(path, classes, splits["train"].name, index["labels"]["train"], outputs)
        warn_of_empty(path, classes, splits["test"].name, index["labels"]["test"], "no accuracy is known of it")

    everything, digest = files["train"] + files["test"], content.digest
    # The digest covers the names of files, and so of their classes; a class without a file shifts labels too.
    if empty := sorted(set(names) - {names[label] for _, label in everything}):
        digest = hashlib.sha256(b"\n".join((digest.encode(), *map(os.fsencode, empty)))).hexdigest()
    count = {split: len(entries) for split, entries in files.items()}
    return Source(classes, digest, count, decode, path, say)
