"""Folders of images: the files that are used, their classes, and the files left out. The rules: ``docs/images.md``.

``experiment`` and ``measure`` share these rules. Files left out are counted and reported once per load.
"""

from __future__ import annotations

import hashlib
import os
import sys
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from experiments.data.decode import Picture
from experiments.terminal import printable

# Fixed, so that a folder has the same images on every machine; Pillow reads all of them where it is built whole.
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".mpo", ".png", ".apng", ".gif", ".bmp", ".dib", ".webp"}
IMAGE_SUFFIXES |= {".avif", ".avifs", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".pfm", ".jp2", ".j2k", ".j2c"}
IMAGE_SUFFIXES |= {".jpc", ".jpf", ".jpx", ".tga", ".ico", ".cur", ".icns", ".pcx", ".sgi", ".dds", ".im", ".qoi"}
IMAGE_SUFFIXES |= {".psd", ".msp", ".xbm", ".xpm"}
COMMON_SUFFIXES = ".jpg, .png, .gif, .bmp, .webp, .avif, .tif, .ppm, .jp2 and others"
# Files of systems, packers and editors, in addition to all names that begin with a dot.
PROGRAM_FILES = {"__macosx", "@eadir", "#recycle", "$recycle.bin", "lost+found", "system volume information", "cvs"}
PROGRAM_FILES |= {"__pycache__", "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"}
MAX_NAMES = 5  # of what is left out, in a line

HIDDEN = "hidden, or left by another program"
ENDING = "no image by its ending"
OUTSIDE = "an image outside the class folders"
TWICE = "a linked folder whose images are read already"
UNREADABLE = "an image that cannot be read"
SEVERAL = "holds several pictures, the first is taken"


class SkippedFiles:
    """Files that a load left out of a folder, by reason; printed once at the end."""

    def __init__(self, base: Path, by_reason: dict[str, list[str]] | None = None) -> None:
        self.base = base
        self.by_reason: defaultdict[str, list[str]] = defaultdict(list, by_reason or {})

    def add(self, reason: str, path: Path, detail: str = "") -> None:
        """Note one file or folder."""
        name = printable(path.relative_to(self.base))
        self.by_reason[reason].append(f"{name} ({detail})" if detail else name)

    def add_unread(self, path: Path, picture: Picture) -> None:
        """Note the problem that occurred when an image was read, if any."""
        if picture.pixels is None:
            self.add(UNREADABLE, path, picture.problem)
        elif picture.several:
            self.add(SEVERAL, path)

    def say(self) -> None:
        """Print a line for each reason, with the count and the first names."""
        for reason, names in self.by_reason.items():
            counts = ""
            if reason == ENDING:
                endings = Counter(Path(name).suffix.lower() or "none" for name in names)
                counts = f" ({', '.join(f'{ending}: {count}' for ending, count in endings.most_common(MAX_NAMES))})"
            left_out = "" if reason == SEVERAL else "left out, "
            warn(f"{printable(self.base)}: {len(names)} {left_out}{reason}{counts}: {some(names)}")


def warn(text: str) -> None:
    """Print a warning of one line; of several processes that train together the first does."""
    if os.environ.get("RANK", "0") == "0":
        print(f"warning: {text}", file=sys.stderr, flush=True)


def some(names: Sequence[str]) -> str:
    """Return the first names, and how many more there are."""
    more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    return ", ".join(names[:MAX_NAMES]) + more


def is_hidden(name: str) -> bool:
    """Tell if a file or folder of that name is no data: ``.git``, ``__MACOSX``, ``Thumbs.db``, ``._a.jpg``."""
    return name.startswith(".") or name.casefold() in PROGRAM_FILES


def is_image(name: str) -> bool:
    """Tell if a file of that name is taken for an image, by its ending."""
    return Path(name).suffix.lower() in IMAGE_SUFFIXES


def class_folders(place: Path, left_out: SkippedFiles) -> tuple[str, ...]:
    """Return the folders in a place, in label order; all else is left out, with its reason."""
    names = []
    for child in sorted(place.iterdir()):
        if is_hidden(child.name):
            left_out.add(HIDDEN, child)
        elif child.is_dir():
            if child.resolve() in (place.resolve(), *place.resolve().parents):
                left_out.add(TWICE, child)
            else:
                names.append(child.name)
        elif is_image(child.name):
            left_out.add(OUTSIDE, child)
        elif child.is_symlink() and not child.exists():
            left_out.add(UNREADABLE, child, "broken link")
        else:
            left_out.add(ENDING, child)
    return tuple(names)


def images_in(place: Path, left_out: SkippedFiles) -> list[Path]:
    """Return the images of a folder at any depth; linked folders are followed, each folder once."""
    images: list[Path] = []
    seen = {_identity(place)}
    for folder, inner, names in os.walk(place, followlinks=True, onerror=lambda error: _no_entry(error, left_out)):
        kept = []
        for name in sorted(inner):
            path = Path(folder, name)
            if is_hidden(name):
                left_out.add(HIDDEN, path)
            elif (identity := _identity(path)) in seen:
                left_out.add(TWICE, path)
            else:
                seen.add(identity)
                kept.append(name)
        inner[:] = kept
        for name in sorted(names):
            path = Path(folder, name)
            if is_hidden(name):
                left_out.add(HIDDEN, path)
            elif not is_image(name):
                left_out.add(ENDING, path)
            elif problem := _problem(path):
                left_out.add(UNREADABLE, path, problem)
            else:
                images.append(path)
    return images


def same_pictures(test: Iterable[Path], train: Iterable[Path]) -> list[tuple[Path, Path]]:
    """Return each test file with the bytes of a training file, and the first such file. Only equal sizes are read."""
    by_size = defaultdict(list)
    for file in train:
        by_size[file.stat().st_size].append(file)
    digests: dict[Path, bytes] = {}

    def digest(file: Path) -> bytes:
        if file not in digests:
            with open(file, "rb") as content:
                digests[file] = hashlib.file_digest(content, "sha256").digest()
        return digests[file]

    same = []
    for file in test:
        size = file.stat().st_size
        twin = next((twin for twin in by_size[size] if digest(twin) == digest(file)), None) if size else None
        if twin is not None:
            same.append((file, twin))
    return same


def warn_of_same(base: Path, names: Sequence[str], training: str, test: str) -> None:
    """Warn of images that are in both splits."""
    if names:
        count = f"{len(names)} image{'s' if len(names) > 1 else ''} of {test}/"
        warn(f"{printable(base)}: {count} in {training}/ too, so that a network can memorise them: {some(names)}")


def warn_of_empty(base: Path, classes: Sequence[str], split: str, labels: Iterable[int], consequence: str) -> None:
    """Warn of classes that have no image in a split."""
    there = set(labels)
    empty = [name for label, name in enumerate(classes) if label not in there]
    if empty:
        plural = "classes" if len(empty) > 1 else "class"
        warn(f"{printable(base)}: no image in {split}/ of {len(empty)} {plural}: {some(empty)}; {consequence}")


def warn_of_alike(base: Path, classes: Sequence[str]) -> None:
    """Warn of class folders that differ only in upper and lower case, or in the encoding of accents."""
    groups = defaultdict(list)
    for name in classes:
        groups[normalised_name(name)].append(name)
    for names in groups.values():
        if len(names) > 1:
            warn(
                f"{printable(base)}: the classes {' and '.join(names)} differ in case or encoding alone: are they one?"
            )


def normalised_name(name: str) -> str:
    """Return a name in lower case, with accents encoded in one way."""
    return unicodedata.normalize("NFC", name.casefold())


def _identity(folder: Path) -> tuple[int, int]:
    stat = folder.stat()
    return stat.st_dev, stat.st_ino


def _no_entry(error: OSError, left_out: SkippedFiles) -> None:
    left_out.add(UNREADABLE, Path(error.filename), f"folder: {(error.strerror or str(error)).lower()}")


def _problem(path: Path) -> str:
    """Return why a file cannot be read, as far as that is known without reading it; else an empty text."""
    try:
        if not path.is_file():  # opening a pipe would wait forever
            return "broken link" if path.is_symlink() and not path.exists() else "no plain file"
    except OSError as error:
        return (error.strerror or str(error)).lower()
    return "" if os.access(path, os.R_OK) else "permission denied"
