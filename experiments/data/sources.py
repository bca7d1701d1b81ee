"""Datasets that a study can name.

To add one, write a function that turns a ``Request`` into a ``Source``, and name it in ``SOURCES``.
"""

from __future__ import annotations

from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path

from experiments.data.folder_source import folder_source
from experiments.data.photos import photos_source
from experiments.data.source import Request, Source
from experiments.data.torchvision_sources import cifar10_source, imagenette_source
from experiments.errors import UsageError

# By name, as the user writes it; ``:PATH`` means that a place must follow.
SOURCES: dict[str, Callable[[Request], Source]] = {
    "photos": photos_source,
    "cifar10": cifar10_source,
    "imagenette": imagenette_source,
    "folder:PATH": lambda request: folder_source(Path(request.place).expanduser(), request),
}


def find_source(request: Request) -> Source:
    """Return the source of the requested dataset.

    Raises:
        UsageError: there is none of that name, or its files cannot be used.
    """
    name, colon, place = request.spec.partition(":")
    for known, source in SOURCES.items():
        known_name, needs_place, _ = known.partition(":")
        if name == known_name and bool(needs_place) == bool(colon) == bool(place):
            return source(request)
    near = get_close_matches(request.spec, [known for known in SOURCES if ":" not in known], n=1)
    hint = f"; did you mean {near[0]}? There are: " if near else "; there are: "
    raise UsageError(f"dataset={request.spec}: no such dataset{hint}{', '.join(SOURCES)}")
