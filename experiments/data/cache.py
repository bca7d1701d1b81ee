"""Decoded images and their sources' digests on disk. Checksums detect damaged files, which are written again."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import uuid
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from experiments.data.decode import RULES, plain
from experiments.data.image_folders import same_pictures
from experiments.terminal import printable

READ_WHOLE = 8 << 30  # bytes up to which every load reads all of a cache (0.4 s a GiB); of a larger one the sizes count


def write_index(folder: Path, index: dict[str, Any]) -> None:
    """Write ``index.json`` next to the images ``<split>.u8``: the index, and the checksums of all."""
    checksums = {split: _file_checksum(folder / f"{split}.u8") for split in index["labels"]}
    checksums["index"] = _checksum_of(index)
    (folder / "index.json").write_text(json.dumps({**index, "checksums": checksums}), encoding="utf-8")


def read_index(folder: Path) -> dict[str, Any] | None:
    """Return what ``write_index`` wrote; None where nothing is there. A damaged cache is reported and moved away.

    A cache from before there were checksums is taken as it is if its sizes fit.
    """
    try:
        index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
        checksums = index.pop("checksums", {})
        damage = _damage(folder, index, checksums)
    except FileNotFoundError:
        if not folder.is_dir():
            return None
        damage = "a file is missing"
    except (ValueError, KeyError, TypeError, AttributeError):
        damage = "index.json cannot be read"
    else:
        if not damage:
            return index
    print(f"warning: {folder} is damaged: {damage}; decoding the images again", file=sys.stderr, flush=True)
    aside = folder.with_name(f"damaged-{uuid.uuid4().hex[:12]}-{folder.name}")
    try:
        folder.rename(aside)  # who has it mapped keeps what is mapped
    except FileNotFoundError:
        return None  # another process was quicker
    shutil.rmtree(aside, ignore_errors=True)
    return None


@dataclass(frozen=True)
class Content:
    """Content of a folder's images.

    Attributes:
        digest: digest of names and bytes; also of the rules of decoding, if newer rules decode some image.
        same: test images whose bytes are among the training images too, as ``test file is training file``.
    """

    digest: str
    same: tuple[str, ...]


def content_of(base: Path, train: list[Path], test: list[Path], root: Path) -> Content:
    """Return a hash of the images' names and bytes. Saved with their sizes and times: bytes are read once."""
    stats = hashlib.sha256(f"rules {RULES} ".encode() + os.fsencode(base.resolve()))
    for file in (*train, *test):
        stat = file.stat()
        stats.update(_name(file, base) + f" {stat.st_size} {stat.st_mtime_ns}\n".encode())
    memory = root / "cache" / "digests" / stats.hexdigest()[:32]
    if (known := _recalled(memory)) is not None:
        return known
    content, touched = hashlib.sha256(), []
    for file in tqdm([*train, *test], desc="hashing", unit="image", disable=None, leave=False):
        content.update(_name(file, base) + b"\n")
        inside = file.read_bytes()
        content.update(inside)
        if not plain(inside):
            touched.append(_name(file, base))
    digest = content.hexdigest()
    if touched:  # datasets of plain images keep the digest, and their runs and caches, of the first rules
        digest = hashlib.sha256(b"\n".join([f"{digest} rules {RULES}".encode(), *touched])).hexdigest()
    same = (
        f"{printable(a.relative_to(base))} is {printable(b.relative_to(base))}" for a, b in same_pictures(test, train)
    )
    content = Content(digest, tuple(same))
    text = json.dumps(asdict(content))
    memory.parent.mkdir(parents=True, exist_ok=True)
    fresh = memory.with_name(f".{memory.name}.{uuid.uuid4().hex[:12]}")  # several machines may share the folder
    fresh.write_text(f"{_check(text)} {text}", encoding="utf-8")
    fresh.replace(memory)
    return content


def _recalled(memory: Path) -> Content | None:
    """Return the digest saved for these files; None if there is none, or if it is damaged."""
    try:
        check, _, text = memory.read_bytes().decode(errors="replace").partition(" ")
    except FileNotFoundError:
        return None
    if check != _check(text):  # a damaged memory would make another dataset of it
        return None
    known = json.loads(text)
    return Content(known["digest"], tuple(known["same"]))


def _name(file: Path, base: Path) -> bytes:
    return os.fsencode(file.relative_to(base))


def _check(digest: str) -> str:
    return hashlib.sha256(digest.encode()).hexdigest()[:8]


def _damage(folder: Path, index: dict[str, Any], checksums: dict[str, int]) -> str:
    size = index["image_size"] ** 2 * 3
    if checksums and checksums["index"] != _checksum_of(index):
        return "the checksum of index.json does not fit"
    for split, labels in index["labels"].items():
        file = folder / f"{split}.u8"
        there = file.stat().st_size
        if there != len(labels) * size:
            return f"{file.name} has {there} of {len(labels) * size} bytes"
        if checksums and there <= READ_WHOLE and _file_checksum(file) != checksums[split]:
            return f"the checksum of {file.name} does not fit"
    return ""


def _checksum_of(index: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(index, sort_keys=True).encode())


def _file_checksum(path: Path) -> int:
    checksum = 0
    with open(path, "rb") as file:
        while part := file.read(1 << 22):
            checksum = zlib.crc32(part, checksum)
    return checksum
