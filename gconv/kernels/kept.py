"""Tables that kernels keep from call to call."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import wraps
from typing import Any


def in_a_thread(build: Callable[..., Any]) -> Callable[..., Any]:
    """Have what is kept made in a thread of its own.

    A CUDA graph's pool, modes and inference mode belong to a thread: what a caller allocates there must not be kept.
    """

    @wraps(build)
    def run(*arguments: Any) -> Any:
        with ThreadPoolExecutor(1) as thread:
            return thread.submit(build, *arguments).result()

    return run
