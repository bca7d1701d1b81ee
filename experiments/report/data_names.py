"""What results were trained on: an image folder has the name of its images, since its path says nothing to others."""

from __future__ import annotations

from functools import lru_cache

import pandas as pd
import yaml

from experiments.errors import UsageError
from experiments.study.catalogue import HOME

NAMED = HOME / "results" / "datasets.yaml"


def data_names(runs: pd.DataFrame) -> dict[str, str]:
    """Return the datasets of runs, each once: its name, and in words what its images are, if the record says so.

    Args:
        runs: dataset and data_hash (empty or missing where no images were read) of each run.

    Raises:
        UsageError: ``results/datasets.yaml`` is damaged.
    """
    hashes = runs["data_hash"] if "data_hash" in runs else [None] * len(runs)
    pairs = dict.fromkeys(zip(runs["dataset"], hashes, strict=True))
    return dict(_named().get(str(data_hash), (str(dataset), "")) for dataset, data_hash in pairs)


@lru_cache(maxsize=1)
def _named() -> dict[str, tuple[str, str]]:
    """Return name and description of each image folder of the record, by the hash of its images."""
    try:
        named = yaml.safe_load(NAMED.read_text(encoding="utf-8"))
        return {str(data_hash): (_text(entry, "name"), _text(entry, "images")) for data_hash, entry in named.items()}
    except FileNotFoundError:
        return {}
    except (yaml.YAMLError, UnicodeDecodeError, AttributeError, KeyError, TypeError):
        how = "write for each hash of images its name and, as images, what they are"
        raise UsageError(f"{NAMED}: {how}") from None


def _text(entry: dict[str, str], key: str) -> str:
    if not isinstance(entry[key], str):
        raise TypeError(key)
    return entry[key]
