"""Spatial frequency and orientation of filters, from the power spectrum of their weights.

Legend: O filters, C planes, K kernel. Frequencies are in cycles per pixel of the filter's input, angles in degrees.

The power spectrum of a filter is its squared gain for gratings, so no image is needed. Padding the filter with zeros
samples the spectrum more finely and adds nothing. The mean of the filter, its response to a uniform surface, is kept as
power at frequency zero. So a blob has a low frequency, not that of its edges. Frequency zero has no orientation and
does not count there.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

POINTS = 65  # least number of points of the spectrum along each axis; odd, so that it is symmetric about zero

# Mean distance from the centre of the square of all frequencies, ±½ either way: the centroid of white noise.
WHITE_CENTROID = (np.sqrt(2) + np.arcsinh(1)) / 6


@dataclass(frozen=True)
class Tuning:
    """Gratings that each filter prefers; NaN for a filter that is zero throughout.

    Attributes:
        centroid: (O,) mean distance of the power from frequency zero, 0 … 0.707; white noise has 0.383.
        direction: (O,) direction in which the preferred grating changes, 0 … 180 degrees: 0 to the right (vertical
            stripes), 90 down, 45 to the right and down. Arbitrary if the selectivity is about 0.
        selectivity: (O,) 1 − circular variance of the power over orientations: 0 if all orientations have the same
            power, 1 if one has all.
    """

    centroid: NDArray[np.float64]
    direction: NDArray[np.float64]
    selectivity: NDArray[np.float64]


def tuning(planes_OCKK: ArrayLike) -> Tuning:
    """Return the spatial tuning of filters, the power of all planes added up.

    With P(f) the power at frequency f = |f| (cos θ, sin θ): centroid Σ |f| P / Σ P, selectivity |Σ P e^{2iθ}| / Σ P
    (one less the circular variance of Ringach et al. 2002, eq. 1), direction half the angle of that sum.

    Raises:
        ValueError: not (O, C, K, K).
    """
    planes = np.asarray(planes_OCKK, dtype=np.float64)
    if planes.ndim != 4:
        raise ValueError(f"filters of shape {planes.shape}: must be (O, C, K, K)")
    points = max(POINTS, 4 * max(planes.shape[2:]) + 1)
    down, right = np.meshgrid(np.fft.fftfreq(points), np.fft.fftfreq(points), indexing="ij")
    distance = np.hypot(right, down)
    oriented = distance > 0
    twice = np.where(oriented, (right + 1j * down) / np.where(oriented, distance, 1.0), 0) ** 2
    sums = np.empty((4, len(planes)), dtype=np.complex128)
    for filter_, plane_CKK in enumerate(planes):  # one by one: a spectrum takes a hundred times a filter's memory
        power = (np.abs(np.fft.fft2(plane_CKK, (points, points))) ** 2).sum(0)
        sums[:, filter_] = power.sum(), (power * distance).sum(), power[oriented].sum(), (power * twice).sum()
    total, first_moment, oriented_power = sums[:3].real
    with np.errstate(invalid="ignore"):
        return Tuning(
            centroid=first_moment / total,
            direction=np.where(total > 0, np.degrees(np.angle(sums[3])) / 2 % 180, np.nan),
            selectivity=np.abs(sums[3]) / oriented_power,
        )
