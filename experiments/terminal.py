"""Output for any terminal: one of ASCII or Latin-1 as well, and file names that are not UTF-8."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path


def replace_unencodable() -> None:
    """Replace characters that standard output and error cannot encode by ``?``, here and in child processes."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    encoding = os.environ.get("PYTHONIOENCODING", "").partition(":")[0]
    os.environ["PYTHONIOENCODING"] = f"{encoding}:replace"


def printable(name: str | Path) -> str:
    r"""Return a file's name as text that can be printed and saved: a byte that is no UTF-8 becomes ``\xe9``."""
    return os.fsencode(name).decode(errors="backslashreplace")


def duration(seconds: float) -> str:
    """Return a duration in words: ``42 s``, ``5 min``, ``2 h 10 min``; in minutes from 100 s on."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"
