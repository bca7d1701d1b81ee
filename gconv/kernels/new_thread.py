"""Tensors that kernels keep between calls."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import wraps
from typing import Any


def in_new_thread(build: Callable[..., Any]) -> Callable[..., Any]:
    """Run ``build`` in a new thread.

    The pool of a CUDA graph, modes and inference mode belong to a thread: tensors allocated there must not be kept.
    """

    @wraps(build)
    def run(*arguments: Any) -> Any:
        with ThreadPoolExecutor(1) as thread:
            return thread.submit(build, *arguments).result()

    return run
