"""Augmentation of whole batches on the device the images live on.

Legend: S images, B batch, H W stored size, h w crop. Images are stored as uint8 (S, H, W, 3); a batch leaves as
(B, 3, h, w) in channels_last, normalised.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

# Luma (Y) and the two chroma axes (I, Q) of the NTSC colour space: a rotation of (I, Q) changes hue alone.
RGB_TO_YIQ = ((0.299, 0.587, 0.114), (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112))


@dataclass(frozen=True)
class Views:
    """Conversion of stored images to network inputs, and the choice of their labels in training.

    Args:
        image_size: height and width in pixels at which images are stored.
        crop_size: height and width of the network's input: a random crop in training, the centre in testing.
        padding: pixels mirrored onto each side before a training crop is taken.
        flip: mirror half of the training images.
        cutout: side in pixels of a square that is greyed out in every training image; 0 for none.
        colour: ``colour``: as stored; ``grey``: luma only; ``hue-scrambled``: the hues of each image turned by a random
            angle. Training and test images are treated alike.
        labels: labels of the training images: ``stored``, or ``permuted`` once among all of them, by the seed of the
            run, so that a network can only memorise them. Test labels are always the stored ones.
    """

    image_size: int = 32
    crop_size: int = 32
    padding: int = 0
    flip: bool = True
    cutout: int = 0
    colour: Literal["colour", "grey", "hue-scrambled"] = "colour"
    labels: Literal["stored", "permuted"] = "stored"

    def __post_init__(self) -> None:
        if self.image_size < 1 or self.crop_size < 1:
            raise ValueError(
                f"data.image_size={self.image_size}, data.crop_size={self.crop_size}: must be at least 1 pixel"
            )
        if self.crop_size > self.image_size + 2 * self.padding:
            raise ValueError(
                f"data.crop_size={self.crop_size} is larger than "
                f"data.image_size={self.image_size} with data.padding={self.padding}"
            )
        if not 0 <= self.padding < self.image_size:
            raise ValueError(
                f"data.padding={self.padding}: must be at least 0 and below data.image_size={self.image_size}"
            )
        if self.cutout < 0:
            raise ValueError(f"data.cutout={self.cutout}: must be at least 0")


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """Return the same values on a device; the host does not wait until they are on a GPU."""
    if values.device.type == "cpu" and device.type == "cuda":
        return values.pin_memory().to(device, non_blocking=True)
    return values.to(device)


def training_batch(
    pixels_SHWC: Tensor, index_B: Tensor, views: Views, generator: Generator, share: slice = slice(None)
) -> Tensor:
    """Return random crops of the indexed images; ``views`` sets flips, colours and cutout; float, 0…255.

    Random numbers are drawn on the CPU, so that a seed gives the same batches on every device; and for the whole batch
    for any share, so that the shares of several processes together are the batch of one process.
    """
    batch, device = len(index_B), pixels_SHWC.device
    span = views.image_size + 2 * views.padding - views.crop_size + 1
    top, left = (torch.randint(span, (batch,), generator=generator)[share] for _ in range(2))
    mirrored = torch.rand(batch, generator=generator)[share] < 0.5 if views.flip else None
    turns = torch.rand(batch, generator=generator)[share] if views.colour == "hue-scrambled" else None
    centres = [
        torch.randint(views.crop_size, (batch, 1), generator=generator)[share] for _ in range(2 * bool(views.cutout))
    ]
    index_B = index_B[share]
    if views.padding:
        images = pixels_SHWC[to_device(index_B, device)].permute(0, 3, 1, 2).float()
        images = F.pad(images, (views.padding,) * 4, mode="reflect").permute(0, 2, 3, 1)
        index_B = torch.arange(len(index_B))
    else:
        images = pixels_SHWC
    # A view of every possible crop; indexing it copies the wanted ones alone, already as (B, 3, h, w) channels_last.
    windows = images.unfold(1, views.crop_size, 1).unfold(2, views.crop_size, 1)
    x = windows[to_device(index_B, device), to_device(top, device), to_device(left, device)]
    if mirrored is not None:
        flipped = to_device(mirrored.nonzero().squeeze(1), device)
        x[flipped] = x[flipped].flip(3)
    if turns is not None:
        x = turn_hues(x, turns)
    elif views.colour == "grey":
        x = grey(x)
    return cut_out(x, views.cutout, *centres) if centres else x


def evaluation_batch(pixels_SHWC: Tensor, index_B: Tensor, views: Views) -> Tensor:
    """Return centre crops of the indexed images; ``views`` sets their colours; 0…255.

    Each image's hues are turned by an angle of its own that is always the same: multiples of the golden ratio, which
    spread evenly.
    """
    size = min(views.crop_size, views.image_size)
    start = (views.image_size - size) // 2
    x = pixels_SHWC[to_device(index_B, pixels_SHWC.device), start : start + size, start : start + size]
    x = x.permute(0, 3, 1, 2)
    if size < views.crop_size:
        before = (views.crop_size - size) // 2
        after = views.crop_size - size - before
        x = F.pad(x.float(), (before, after, before, after), mode="reflect")
    if views.colour == "hue-scrambled":
        return turn_hues(x, index_B * 0.6180339887498949 % 1)
    return grey(x) if views.colour == "grey" else x


def grey(x_BCHW: Tensor) -> Tensor:
    """Return the luma of each image in all three channels."""
    weights = to_device(torch.tensor(RGB_TO_YIQ[0]), x_BCHW.device).view(1, 3, 1, 1)
    return (x_BCHW * weights).sum(1, keepdim=True).expand_as(x_BCHW)


def turn_hues(x_BCHW: Tensor, turns_B: Tensor) -> Tensor:
    """Turn the hues of each image about the grey axis by its share of a full turn; luma stays."""
    to_yiq = torch.tensor(RGB_TO_YIQ, dtype=torch.float64)
    angle = turns_B.cpu().double() * (2 * torch.pi)
    one, zero, cos, sin = torch.ones_like(angle), torch.zeros_like(angle), angle.cos(), angle.sin()
    turn = torch.stack([one, zero, zero, zero, cos, -sin, zero, sin, cos], 1).view(-1, 3, 3)
    rgb = to_device((torch.linalg.inv(to_yiq) @ turn @ to_yiq).float(), x_BCHW.device)
    x = (rgb @ x_BCHW.float().flatten(2)).view_as(x_BCHW)
    return x.contiguous(memory_format=torch.channels_last)


def cut_out(x_BCHW: Tensor, side: int, rows_B1: Tensor, columns_B1: Tensor) -> Tensor:
    """Set one square per image to mid-grey (DeVries & Taylor 2017, arXiv 1708.04552).

    Args:
        x_BCHW: images.
        side: side of the square in pixels.
        rows_B1, columns_B1: its centre in each image; the part outside the image is cut off.
    """
    spans = []
    for size, centre in zip(x_BCHW.shape[2:], (rows_B1, columns_B1), strict=True):
        place = torch.arange(size)
        spans.append(to_device((place >= centre - side // 2) & (place < centre - side // 2 + side), x_BCHW.device))
    square = spans[0][:, None, :, None] & spans[1][:, None, None, :]
    return x_BCHW.masked_fill(square, 128)


def normalise(x_BCHW: Tensor, mean_C: Tensor, std_C: Tensor, dtype: torch.dtype) -> Tensor:
    """(x − mean) / std per channel, in ``dtype``, channels_last.

    Whole rows of W·3 numbers are scaled at once: over an innermost dimension of 3 nothing vectorises, at 5 times the
    time on a CPU.
    """
    width = x_BCHW.shape[3]
    rows = x_BCHW.contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1).flatten(2)
    scale, shift = 1 / std_C, -mean_C / std_C
    y = rows.to(dtype, copy=True).mul_(to_device(scale.repeat(width).to(dtype), rows.device))
    return y.add_(to_device(shift.repeat(width).to(dtype), rows.device)).unflatten(2, (width, 3)).permute(0, 3, 1, 2)
