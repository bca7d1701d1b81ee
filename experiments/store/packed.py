"""Packed runs: a run that has ended in one small file without its weights, to be committed and gathered elsewhere.

A packed run is a zip file with the files of the run's folder that tables and figures are made of, and ``packed.json``,
which names the schema. Unpacked it is the folder of a run that has ended; only steps that need weights are impossible.
Of a run that diverged it holds the configuration and the result alone.
The same run gives the same bytes on any machine.
"""

from __future__ import annotations

import io
import json
import lzma
import math
import os
import re
import shutil
import tokenize
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from experiments.store.runs import Run, config_hash, public, write_atomic, write_json

SCHEMA = 2
READABLE = (1, SCHEMA)  # in the first, symmetric matrices are whole
MARK = "packed.json"
ENDED = ("config.json", "result.json")  # of every run that is done, or diverged
RECORDS = (*ENDED, "metrics.jsonl")  # of every run that is done
MEASURED = ("measured.json", "measures.csv", "notes.csv")  # of every run that was measured
ARRAYS = "arrays.npz"
OF_FILTERS = ("colour_index", "learned", "frequency", "first_colour_angle", "selectivity", "filter_groups")
TRIANGLE = " (upper triangle)"  # ends the name of a packed matrix that is symmetric
WEIGHTS = "checkpoint.pt"
MOST_BYTES = 1_000_000  # of the arrays of one packed run; the largest are left out
COLOURS = 64  # that a picture shows of a matrix, at most
DAMAGE = (  # what the libraries raise where a zip file, or the arrays in it, were changed
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, tokenize.TokenError),
    *(EOFError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, MemoryError),
)
ANY_DATE = (1980, 1, 1, 0, 0, 0)  # of every file in a packed run: the same content gives the same bytes


class NotGatheredError(Exception):
    """A run cannot be taken; the message gives the reason on one line."""


def pack(folder: Path, target: Path, with_arrays: bool) -> None:
    """Pack a run that is done and measured, or that diverged.

    Args:
        folder: folder of the run.
        target: the file to write.
        with_arrays: whether the arrays of a run that is done are kept, as precise as a picture shows them: for the seed
            that is drawn. Those of a wide network take megabytes; its largest ones are left out.
    """
    result = json.loads((folder / "result.json").read_bytes())
    done = result.get("status") != "diverged"
    contents = {MARK: _json({"schema": SCHEMA})}
    contents |= {name: (folder / name).read_bytes() for name in ((*RECORDS, *MEASURED) if done else ENDED)}
    contents["result.json"] = _json(public(result))
    if done and with_arrays and (folder / ARRAYS).is_file():
        with np.load(folder / ARRAYS) as file:
            contents[ARRAYS] = _compressed(_small_enough(_halved(for_pictures(dict(file)))))
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, content in contents.items():
            how = zipfile.ZIP_STORED if name == ARRAYS else zipfile.ZIP_DEFLATED
            archive.writestr(zipfile.ZipInfo(name, ANY_DATE), content, how, compresslevel=9)
    write_atomic(target, lambda file: file.write(packed.getvalue()))


def for_pictures(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the arrays as precise as a picture shows them, which makes them small.

    Numbers of single precision get half precision. Square matrices, which are drawn in colours, are rounded to steps.
    """
    return {name: _coarse(x).astype(np.float16) if x.dtype == np.float32 else x for name, x in arrays.items()}


def _coarse(x: np.ndarray) -> np.ndarray:
    """Round a square matrix to multiples of a power of two, at most its 99th percentile / ``COLOURS``; keep others."""
    if x.ndim != 2 or x.shape[0] != x.shape[1] or not np.isfinite(x).any():
        return x
    large = float(np.nanquantile(np.abs(x), 0.99))
    if not 0 < large < np.inf:
        return x
    step = 2.0 ** np.floor(np.log2(large / COLOURS))
    return np.round(x / step) * step


def _compressed(arrays: dict[str, np.ndarray]) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


def _small_enough(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the arrays without the largest, such that those left take at most ``MOST_BYTES``."""
    sizes = {name: len(_compressed({name: x})) for name, x in arrays.items()}
    total = sum(sizes.values())
    for name in sorted(sizes, key=lambda name: -sizes[name]):
        if total <= MOST_BYTES:
            break
        total -= sizes.pop(name)
    return {name: x for name, x in arrays.items() if name in sizes}


def _halved(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the arrays with the upper triangle alone, row by row, of each matrix that is symmetric."""
    kept = {}
    for name, x in arrays.items():
        if x.ndim == 2 and x.dtype.kind == "f" and x.shape[0] == x.shape[1] and np.array_equal(x, x.T, equal_nan=True):
            kept[name + TRIANGLE] = x[np.triu_indices(len(x))]
        else:
            kept[name] = x
    return kept


def _made_whole(packed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the arrays with whole matrices in place of their triangles: undoes ``_halved``.

    Raises:
        ValueError: a triangle is none.
    """
    arrays = {}
    for name, x in packed.items():
        if name.endswith(TRIANGLE):
            size = (math.isqrt(8 * x.size + 1) - 1) // 2
            if x.ndim != 1 or x.dtype.kind != "f" or size * (size + 1) != 2 * x.size:
                raise ValueError(f"{ARRAYS}: {name}: {x.dtype} {list(x.shape)} is no triangle of numbers")
            matrix = np.empty((size, size), x.dtype)
            matrix[np.triu_indices(size)] = x
            matrix.T[np.triu_indices(size)] = x
            arrays[name.removesuffix(TRIANGLE)] = matrix
        else:
            arrays[name] = x
    return arrays


def _check_arrays(arrays: dict[str, np.ndarray]) -> None:
    """Raise if arrays hold no numbers, or do not fit each other.

    Raises:
        ValueError: names the array.
    """
    sizes = {name: x.shape for name, x in arrays.items()}
    for name, x in arrays.items():
        if x.dtype.kind not in "biuf":
            raise ValueError(f"{ARRAYS}: {name}: {x.dtype} {list(x.shape)} holds no numbers")
    for name, x in arrays.items():
        kind, _, layers = name.partition(" ")
        wanted: tuple[int, ...] = x.shape
        if kind == "correlation":
            filters = {
                size[0] for other, size in sizes.items() if re.fullmatch(rf"groups {re.escape(layers)} \w+", other)
            }
            wanted = 2 * (filters.pop() if filters else x.shape[0],)
        elif kind == "whitened" and f"{name} rows" in sizes and f"{name} columns" in sizes:
            wanted = (*sizes[f"{name} rows"], *sizes[f"{name} columns"])
        elif name in OF_FILTERS and "filters" in sizes:
            wanted = sizes["filters"][:1]
        if x.shape != wanted:
            raise ValueError(f"{ARRAYS}: {name}: {list(x.shape)} does not fit the other arrays: {list(wanted)}")


def is_packed(path: Path) -> bool:
    """Tell if a file is a packed run, of any schema."""
    try:
        with zipfile.ZipFile(path) as archive:
            return MARK in archive.namelist()
    except (OSError, zipfile.BadZipFile):
        return False


def unpack(path: Path, folder: Path) -> None:
    """Unpack a packed run into a new folder.

    Raises:
        NotGatheredError: it is damaged, or of another schema.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            schema = json.loads(archive.read(MARK)).get("schema")
            if schema not in READABLE:
                readable = " and ".join(map(str, READABLE))
                raise NotGatheredError(f"packed with schema {schema}; this version reads schemas {readable}")
            folder.mkdir(parents=True)
            for name in (MARK, *RECORDS, *MEASURED):
                if name in archive.namelist():
                    (folder / name).write_bytes(archive.read(name))
            if ARRAYS in archive.namelist():
                with np.load(io.BytesIO(archive.read(ARRAYS))) as file:
                    arrays = _made_whole(dict(file))
                _check_arrays(arrays)
                np.savez_compressed(folder / ARRAYS, **arrays)  # type: ignore[arg-type]
    except (OSError, *DAMAGE) as error:
        if getattr(error, "filename", None):  # of the disk
            raise
        raise NotGatheredError(f"damaged: {' '.join(str(error).split()) or type(error).__name__}") from None


def read_done(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return configuration and result of a run that is done, from its folder.

    Raises:
        NotGatheredError: the run is not done, or a record of it is damaged or gone.
    """
    config, result = read_ended(folder)
    if result["status"] != "done":
        raise NotGatheredError(f"not done: {result['status']}: {result['reason']}")
    return config, result


def read_ended(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return configuration and result of a run that is done, or diverged, from its folder.

    Raises:
        NotGatheredError: the run is neither, or a record of it is damaged or gone.
    """
    config, result = (_record(folder / name) for name in ENDED)
    status = result.get("status")
    if status not in ("done", "diverged"):
        raise NotGatheredError(f"not done: {status}: {result.get('reason', 'no reason recorded')}")
    for key in ("seed", "test_accuracy", "test_loss"):
        if not isinstance(result.get(key, 0), int | float):
            raise NotGatheredError(f"damaged: result.json: {key}={result[key]!r}: no number")
    config = {key: value for key, value in config.items() if key != "variant"}
    if config_hash(config) != result.get("config_hash"):
        raise NotGatheredError("damaged: config.json is not the configuration that result.json has the hash of")
    if status == "diverged":
        if not isinstance(result.get("reason"), str):
            raise NotGatheredError("damaged: result.json has no reason why the run diverged")
        return config, result
    try:
        epochs = [json.loads(line) for line in (folder / "metrics.jsonl").read_bytes().splitlines()]
        whole = len(epochs) >= config["recipe"]["epochs"] and all(isinstance(epoch, dict) for epoch in epochs)
    except (OSError, ValueError, KeyError):
        whole = False
    if not whole:
        raise NotGatheredError("damaged: metrics.jsonl is gone or incomplete")
    lacking = [name for name in MEASURED if not (folder / name).is_file()]
    if lacking and not (folder / WEIGHTS).is_file():
        raise NotGatheredError(f"neither weights nor measures: {lacking[0]} is not there")
    return config, result


def take(source: Path, run: Run) -> bool:
    """Copy a run that has ended into another folder of the run store; of one that is done also its weights, if any.

    Args:
        source: folder of a run with the same hash, as ``read_ended`` accepts it.
        run: the run that it becomes; its folder may hold an unfinished training, which is given up.

    Returns:
        False if another process holds the run.
    """
    with run.lock() as lease:
        if lease is None:
            return False
        if run.result is not None:
            return True
        for old in (WEIGHTS, "checkpoint-previous.pt"):
            (run.folder / old).unlink(missing_ok=True)
        write_json(run.folder / "config.json", {"variant": run.variant, **run.config})
        done = json.loads((source / "result.json").read_bytes())["status"] == "done"
        if done and (source / WEIGHTS).is_file():
            _link(source / WEIGHTS, run.folder / WEIGHTS)
        else:
            write_json(run.folder / MARK, {"schema": SCHEMA})
        files = ("metrics.jsonl", ARRAYS, *reversed(MEASURED)) if done else ()
        for name in (*files, "result.json"):  # last, since its presence counts
            if (source / name).is_file():
                content = (source / name).read_bytes()
                write_atomic(run.folder / name, lambda file, content=content: file.write(content))
    return True


def _link(source: Path, target: Path) -> None:
    """Give a file that is never changed in place a second name, or a copy on another disk."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _record(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise NotGatheredError(f"not done: {path.name} is not there") from None
    except (OSError, ValueError) as error:
        raise NotGatheredError(f"damaged: {path.name}: {error}") from None
    if not isinstance(content, dict):
        raise NotGatheredError(f"damaged: {path.name} holds no mapping")
    return content


def _json(value: dict[str, Any]) -> bytes:
    return (json.dumps(value, indent=1) + "\n").encode()
