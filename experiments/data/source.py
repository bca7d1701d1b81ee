"""Source of a dataset: its files or arrays before they are decoded, and the collector of the decoded images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Request:
    """Request for a dataset.

    Attributes:
        spec: as the user wrote it: ``NAME`` or ``NAME:PLACE``.
        root: folder of downloads and of the cache.
        download: True to fetch missing files.
    """

    spec: str
    root: Path
    download: bool = False

    @property
    def place(self) -> str:
        """``PLACE`` of ``NAME:PLACE``; empty without one."""
        return self.spec.partition(":")[2]


@dataclass(frozen=True)
class Source:
    """A dataset before it is decoded: files with labels, or arrays made at once.

    Attributes:
        classes: names, in label order.
        digest: digest of the content.
        count: images by split.
        decode: decodes one split at a size.
        base: folder in which the names of images are; None where there are no files.
        say: prints the files left out, given the indices of the decoded ones.
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
