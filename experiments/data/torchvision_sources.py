"""Datasets that torchvision knows and downloads: CIFAR-10 and Imagenette."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

from PIL import Image

from experiments.data.decode import fit
from experiments.data.folder_source import folder_source
from experiments.data.source import Decoded, Request, Source
from experiments.errors import UsageError
from experiments.vision import import_torchvision

IMAGENETTE_IMAGES = {"train": 9469, "test": 3925}


def cifar10_source(request: Request) -> Source:
    """Return the source of CIFAR-10; raises as ``_through_torchvision``."""
    root, download = str(request.root), request.download
    datasets = import_torchvision().datasets
    splits = {
        split: _through_torchvision(
            request,
            lambda split=split: datasets.CIFAR10(root, train=split == "train", download=download),
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


def imagenette_source(request: Request) -> Source:
    """Return the source of Imagenette at 320 pixels.

    Raises:
        UsageError: missing files without a download, a failed download, or an interrupted extraction.
    """
    datasets = import_torchvision().datasets
    folder = request.root / "imagenette2-320"
    if not folder.is_dir():
        _through_torchvision(
            request,
            lambda: datasets.Imagenette(str(request.root), split="train", size="320px", download=request.download),
        )
    source = folder_source(folder, request)
    if source.count != IMAGENETTE_IMAGES:
        raise UsageError(
            f"dataset=imagenette: {folder} holds {source.count}, not {IMAGENETTE_IMAGES}: "
            "an extraction was interrupted; remove it and add --download=true"
        )
    return source


def _through_torchvision(request: Request, make: Callable[[], Any]) -> Any:
    """Construct a torchvision dataset.

    Raises:
        UsageError: its files are not there, damaged, or cannot be downloaded.
    """
    name, root = request.spec, request.root
    try:
        return make()
    except OSError as error:  # URLError is one too
        raise UsageError(
            f"dataset={name}: the download to {root} failed ({error}); "
            f"check the network, or put the files there by hand, or use --dataset=folder:PATH"
        ) from None
    except RuntimeError as error:
        if request.download:
            raise UsageError(f"dataset={name}: the files in {root} are damaged ({error}); remove them") from None
        raise UsageError(
            f"dataset={name}: not found in {root}; add --download=true to fetch it, "
            f"or use --dataset=folder:PATH for images you have, or --dataset=photos"
        ) from None
