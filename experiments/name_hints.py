"""Hints for a name that is not known: the nearest one, or a list that is short enough to be read."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import SequenceMatcher, get_close_matches

MAX_NAMES_LISTED = 12


def hint(name: str, known: Iterable[str], cutoff: float = 0.5) -> str:
    """Return ``did you mean …?``, and the known names where they are few; of many, those that are most alike."""
    names = list(known)
    near = get_close_matches(name, names, n=1, cutoff=cutoff)
    if len(names) <= MAX_NAMES_LISTED:
        return (f"did you mean {near[0]}? There are: " if near else "there are: ") + ", ".join(names)
    if near:
        return f"did you mean {near[0]}?"
    alike = sorted(names, key=lambda other: -SequenceMatcher(None, name, other).ratio())[:MAX_NAMES_LISTED]
    return f"nearest of {len(names)}: {', '.join(alike)}"
