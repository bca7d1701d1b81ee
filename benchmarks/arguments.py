"""Values of the flags of benchmarks, checked before anything is timed."""

from __future__ import annotations

from argparse import ArgumentTypeError
from collections.abc import Callable

DTYPES = ("float32", "bfloat16", "float16", "float64")


def dtypes(text: str) -> str:
    """Return names of dtypes, separated by commas, as they are.

    Raises:
        ArgumentTypeError: one that no kernel computes.
    """
    for name in text.split(","):
        if name not in DTYPES:
            raise ArgumentTypeError(f"{name}: write {', '.join(DTYPES)}")
    return text


def whole(least: int) -> Callable[[str], int]:
    """Return a function that reads a whole number of at least ``least``, and raises ArgumentTypeError for others."""

    def read(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise ArgumentTypeError(f"{text}: write a whole number of at least {least}")
        return int(text)

    return read


def whole_numbers(text: str) -> list[int]:
    """Return whole numbers, separated by commas.

    Raises:
        ArgumentTypeError: one that is no whole number of at least 1.
    """
    return [whole(1)(part) for part in text.split(",")]
