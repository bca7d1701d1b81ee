"""The options of measuring: the key ``measures`` of a study's file."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class MeasureOptions:
    """Numbers of images and of random draws with which each trained network is measured.

    Args:
        images: test images, evenly spaced, whose responses are collected, and as many training images.
        permutations: draws of each label permutation test.
        draws: draws of every null that costs a pass over the images or a fit (fresh filters, random sets of filters);
            0 leaves these nulls out, and with them partitions of dense layers, similarity between groups, the
            covariance between layers, and probes.
        lesion_images: test images, evenly spaced, on which groups are silenced; 0 leaves lesions out.
    """

    images: int = 1000
    permutations: int = 2000
    draws: int = 3
    lesion_images: int = 250

    def __post_init__(self) -> None:
        for name, least in (("images", 1), ("permutations", 1), ("draws", 0), ("lesion_images", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"measures.{name}={getattr(self, name)}: must be at least {least}")
