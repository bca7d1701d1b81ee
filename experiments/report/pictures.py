"""Pictures of a record and of a report page, as small as they can be without a visible change."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

COLOURS = 256  # in a palette, which makes a chart about a third as large
LARGEST_CHANGE = 16  # of 255: a pixel that a palette changes by more looks different
CHANGED_PIXELS = 0.01  # share of such pixels above which a picture keeps all its colours


class Embedded(NamedTuple):
    """A picture inside an HTML page: a data URI, and its size in pixels."""

    uri: str
    width: int
    height: int


def small_png(picture: Path) -> bytes:
    """Return a PNG with a palette, or the file itself where a palette would show.

    Charts have few colours. Filters and other images have many, and keep them.
    """
    paletted = _paletted(_read(picture))
    return picture.read_bytes() if paletted is None else _encoded(paletted, "PNG", optimize=True)


def embedded(picture: Path, width: int) -> Embedded:
    """Return a picture as WebP, at most ``width`` pixels wide: the smaller of a lossless and a lossy one."""
    image = _read(picture)
    if image.width > width:
        image = image.resize((width, round(image.height * width / image.width)), Image.Resampling.LANCZOS)
    lossless = (_paletted(image) or image).convert("RGB")
    versions = _encoded(lossless, "WEBP", lossless=True), _encoded(image, "WEBP", quality=82)
    text = base64.b64encode(min(versions, key=len)).decode()
    return Embedded(f"data:image/webp;base64,{text}", *image.size)


def figure_name(page: Path) -> str:
    """Return the name of a page's figure: ``correlation`` of correlation-2.png."""
    return re.sub(r"-\d+$", "", page.stem)


def _read(picture: Path) -> Image.Image:
    with Image.open(picture) as image:
        return image.convert("RGB")


def _paletted(image: Image.Image) -> Image.Image | None:
    """Return an image with a palette of ``COLOURS``; None if more than ``CHANGED_PIXELS`` would look different."""
    paletted = image.quantize(COLOURS, dither=Image.Dither.NONE)
    change = np.abs(np.asarray(image, int) - np.asarray(paletted.convert("RGB"), int)).max(axis=2)
    return None if (change > LARGEST_CHANGE).mean() > CHANGED_PIXELS else paletted


def _encoded(image: Image.Image, form: str, **options: bool | int) -> bytes:
    content = io.BytesIO()
    image.save(content, form, **options)
    return content.getvalue()
