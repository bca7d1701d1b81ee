"""Torch's own convolutions under each setting that changes how fast they are, for the benchmarks of GPUs."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch

# Name: (deterministic, benchmark). Training uses the first; torch by default the second.
CUDNN = {"deterministic": (True, False), "free": (False, False), "benchmark": (False, True)}
AUTOTUNED = (
    "conv2d max-autotune"  # nn.Conv2d(groups=g), in equal groups alone: Inductor's own Triton convolution takes g
)


def cudnn_names(device: torch.device, given: str | None = None) -> tuple[str, ...]:
    """Return the settings of cuDNN to time on a device: those given, all on a GPU, one elsewhere.

    Raises:
        ValueError: an unknown setting.
    """
    names = tuple(given.split(",")) if given else tuple(CUDNN) if device.type == "cuda" else ("free",)
    for name in names:
        if name not in CUDNN:
            raise ValueError(f"--cudnn={name}: write {', '.join(CUDNN)}")
    return names


def cudnn(name: str) -> AbstractContextManager[None]:
    """Return the context in which cuDNN has a setting."""
    deterministic, benchmark = CUDNN[name]
    return torch.backends.cudnn.flags(enabled=True, deterministic=deterministic, benchmark=benchmark)


def autotuned(computed: Callable[..., Any], device: torch.device) -> Callable[..., Any]:
    """Return a module or function as ``mode="max-autotune"`` compiles it; on a CPU, which rehearses, untuned."""
    how: dict[str, Any] = {"backend": "aot_eager"} if device.type == "cpu" else {"mode": "max-autotune-no-cudagraphs"}
    return torch.compile(computed, **how)
