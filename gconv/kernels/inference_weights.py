"""Weights in the form that a kernel needs, kept between forward passes while the parameter does not change.

For one image, writing the blocks and converting to channels_last takes as long as the convolution. In training the
weight changes at each step, and nothing is kept.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from gconv.kernels import aten

INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes: numbers are compared bit by bit


@dataclass(frozen=True, eq=False)
class _Seen:
    """State of a parameter at its last forward pass.

    Attributes:
        version: torch's count of changes in place.
        channels_last: requested memory format.
        source: the values that ``made`` was computed from; None if nothing is computed yet.
    """

    version: int
    channels_last: bool
    source: Tensor | None = None
    made: tuple[Tensor, ...] = ()


class InferenceWeights:
    """Cache of tensors computed from parameters, each valid as long as its parameter lives and does not change.

    A tensor is kept when a parameter is unchanged at its second use. Changes that torch does not count (through
    ``.data`` or NumPy) are detected by comparing all values, which takes a tenth of the time saved.
    """

    def __init__(self) -> None:
        self._seen = WeakTensorKeyDictionary()

    def of(self, weight: Tensor, channels_last: bool, make: Callable[[], list[Tensor]]) -> list[Tensor]:
        """Return the tensor computed by ``make`` from a weight, or the one kept before.

        Args:
            weight: results are kept for parameters on a CPU, outside of autograd, transforms and modes.
            channels_last: memory format of the result.
            make: called without arguments; the results are copied before they are kept.
        """
        if torch.is_grad_enabled() or type(weight) is not nn.Parameter or not aten.is_plain(weight):
            return make()
        if weight.is_inference() or weight.itemsize not in INTEGERS:
            return make()
        seen: _Seen | None = self._seen.get(weight)
        if seen is None or (seen.version, seen.channels_last) != (weight._version, channels_last):
            self._seen[weight] = _Seen(weight._version, channels_last)
            return make()
        if seen.source is not None and _same_bits(weight, seen.source):
            return list(seen.made)
        layout = torch.channels_last if channels_last else torch.contiguous_format
        with torch.inference_mode(False), torch.no_grad():
            made = tuple(t.clone(memory_format=layout) for t in make())
            self._seen[weight] = _Seen(weight._version, channels_last, weight.detach().clone(), made)
        return list(made)


def _same_bits(a: Tensor, b: Tensor) -> bool:
    first, second = (t.detach().view(INTEGERS[t.itemsize]).numpy() for t in (a, b))
    return np.array_equal(first, second)
