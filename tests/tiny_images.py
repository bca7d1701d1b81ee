"""A dataset that takes no time: two classes of small noise images that differ in colour."""

import torch

from experiments.data.datasets import Dataset, Images


def tiny_dataset(size: int = 12, train: int = 24, test: int = 12) -> Dataset:
    """Red and blue noise."""
    generator = torch.Generator().manual_seed(0)

    def images(count: int) -> Images:
        labels = torch.arange(count) % 2
        pixels = torch.randint(0, 120, (count, size, size, 3), generator=generator)
        pixels[torch.arange(count), :, :, labels * 2] += 120
        return Images(pixels.to(torch.uint8), labels)

    return Dataset(
        images(train), images(test), ("red", "blue"), f"tiny-{size}", torch.full((3,), 90.0), torch.full((3,), 50.0), ()
    )
