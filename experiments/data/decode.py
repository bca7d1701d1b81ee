"""One image file as uint8 RGB, as a viewer shows it. The rules are written down in ``docs/images.md``.

Legend: H height, W width.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image, ImageOps
from tqdm import tqdm

RULES = 2  # raise when some images are decoded differently; ``plain`` decides which are not affected
MAX_PIXELS = 1 << 28  # of one image: 800 MB as RGB
FORMATS = ("JPEG", "MPO", "PNG", "GIF", "BMP", "DIB", "WEBP", "TIFF", "PPM", "JPEG2000", "AVIF", "TGA", "ICO", "CUR")
FORMATS += ("ICNS", "PCX", "SGI", "DDS", "IM", "QOI", "PSD", "MSP", "XBM", "XPM")
TURNED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
DEEP = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")  # modes of more than 8 bits
WHITE = (1.0, 255.0, 65535.0)  # possible values of white in a picture whose format has none; else its own maximum
BITS, PHOTOMETRIC, SAMPLE_FORMAT = 258, 262, 339  # tags of TIFF
WHITE_IS_ZERO, SIGNED = 0, 2  # values of these
ANIMATED = ("GIF", "TIFF", "WEBP", "PNG")  # formats with pages or frames that are pictures of their own
EXIF_IN_PNG = (b"eXIf", b"Raw profile type exif", b"XML:com.adobe.xmp")
FIRST_MAX_PIXELS = 178_956_970  # beyond which the first rules left an image out

Image.MAX_IMAGE_PIXELS = None  # too large is what MAX_PIXELS says, in words of its own


class UnreadableError(Exception):
    """Reason for which an image is left out, in a few words."""


@dataclass(frozen=True, eq=False)
class Picture:
    """Result of reading one file.

    Attributes:
        pixels: uint8 (size, size, 3); None where it cannot be read.
        problem: why not, in a few words.
        several: True if the file holds more pictures than this first one.
    """

    pixels: np.ndarray | None
    problem: str = ""
    several: bool = False


def read_images(files: list[Path], size: int, progress: str) -> Iterator[Picture]:
    """Yield each file in order, as square RGB: the shorter side resized to ``size``, the centre kept."""

    def read(file: Path) -> Picture:
        try:
            return read_image(file, size)
        except UnreadableError as error:
            return Picture(None, str(error))

    with warnings.catch_warnings(), ThreadPoolExecutor(os.cpu_count()) as pool:
        warnings.filterwarnings("ignore", module="PIL")  # on what is damaged but can be read
        yield from tqdm(pool.map(read, files), desc=progress, total=len(files), unit="image", disable=None, leave=False)


def read_image(file: Path, size: int) -> Picture:
    """Return one file as square RGB.

    Raises:
        UnreadableError: it is empty, damaged, too large or no image.
    """
    try:
        with open_image(file) as image:
            several = image.format in ANIMATED and getattr(image, "is_animated", False)
            image.draft("RGB", (size, size))
            if image.width * image.height > MAX_PIXELS:
                raise UnreadableError(f"too large, {image.width} × {image.height} pixels")
            return Picture(fit(as_shown(image), size), several=several)
    except OSError as error:
        if error.errno is not None:  # of the file, not of what is in it
            raise UnreadableError((error.strerror or str(error)).lower()) from None
        raise UnreadableError(_damage(file)) from None
    except (UnreadableError, MemoryError):
        raise
    except Exception:  # a damaged file fails in many ways
        raise UnreadableError(_damage(file)) from None


def _damage(file: Path) -> str:
    return "damaged, or no image" if file.stat().st_size else "an empty file"


def open_image(file: Path | BinaryIO) -> Image.Image:
    """Open an image by its content; formats that need another program (PostScript) are refused."""
    Image.init()
    return Image.open(file, formats=[name for name in FORMATS if name in Image.OPEN])


def fit(image: Image.Image, size: int) -> np.ndarray:
    """Return an image as uint8 RGB (size, size, 3): shorter side resized to ``size``, centre kept."""
    rgb = image.convert("RGB")
    return np.asarray(rgb if rgb.size == (size, size) else ImageOps.fit(rgb, (size, size), Image.Resampling.BICUBIC))


def as_shown(image: Image.Image) -> Image.Image:
    """Return the first picture of a file as a viewer displays it: in 8 bits, upright, transparency on white."""
    image.load()
    turn = _orientation(image)  # before anything that loses it
    if image.mode in DEEP:
        image = _in_8_bits(image)
    elif image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.transpose(TURNED[turn]) if turn in TURNED else image


def plain(content: bytes) -> bool:
    """Tell if the first rules decode a file to the same pixels, by its head alone; also True for an unreadable file."""
    try:
        with open_image(BytesIO(content)) as image:
            # To look for EXIF data Pillow would decode a whole PNG.
            upright = image.format == "PNG" and not any(mark in content for mark in EXIF_IN_PNG)
            return not (
                image.mode in DEEP
                or image.has_transparency_data
                or image.width * image.height > FIRST_MAX_PIXELS
                or (not upright and _orientation(image) in TURNED)
            )
    except Exception:  # a damaged file fails in many ways
        return True


def _orientation(image: Image.Image) -> int:
    """Return the orientation in EXIF data or XMP, 1 to 8; 1 where there is none or they are damaged."""
    if image.format == "TIFF":
        return 1  # Pillow turns these itself
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # damaged data fail in many ways; the picture is none the worse
        return 1


def _in_8_bits(image: Image.Image) -> Image.Image:
    """Return a grey picture of 16 or 32 bits, integer or floating-point, scaled so that its white is 255."""
    tags = getattr(image, "tag_v2", {})
    signed = tags.get(SAMPLE_FORMAT, (1,))[0] == SIGNED
    bits = tags.get(BITS, (16 if image.mode.startswith("I;16") or image.format == "PPM" else 32,))[0]
    grey_HW = np.asarray(image)
    if image.mode == "I" and bits == 32 and tags and not signed:
        grey_HW = grey_HW.view(np.uint32)
    finite = np.isfinite(grey_HW)
    if not finite.any():
        raise UnreadableError("none of its values is finite")
    low, high = float(grey_HW[finite].min()), float(grey_HW[finite].max())
    if image.mode != "F" and bits <= 16:
        white = 2.0 ** (bits - signed) - 1
    else:
        white = next((white for white in (WHITE if image.mode == "F" else WHITE[1:]) if high <= white), high)
    black = 0.0
    if low < 0:  # then zero is not black, and white is not known either
        black, white = low, max(high, low + 1)
    values_HW = np.nan_to_num(grey_HW.astype(np.float64), nan=black, posinf=white, neginf=black)
    grey_HW = np.round(255 * ((values_HW - black) / (white - black)).clip(0, 1)).astype(np.uint8)
    return Image.fromarray(255 - grey_HW if tags.get(PHOTOMETRIC) == WHITE_IS_ZERO else grey_HW)
