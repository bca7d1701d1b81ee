"""Errors of exhausted memory on any device, and advice on a smaller batch."""

from __future__ import annotations

import torch

# Messages of the allocators of torch and of C++; only CUDA's has an error class of its own.
MESSAGES = ("out of memory", "can't allocate memory", "not enough memory", "std::bad_alloc", "cannot allocate memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Tell if an error means that memory is exhausted."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in MESSAGES)


def batch_size_advice(batch_size: int, device: torch.device) -> str:
    """Return one line that names the batch size to try: half of what did not fit."""
    if batch_size == 1:
        return f"out of memory on {device} with recipe.batch_size=1: a smaller data.crop_size or network may fit"
    return f"out of memory on {device}; a smaller recipe.batch_size may fit: try --recipe.batch_size={batch_size // 2}"
