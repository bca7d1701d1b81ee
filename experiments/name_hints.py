"""Hints for a name that is not known: the nearest one, or a list that is short enough to be read."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import SequenceMatcher, get_close_matches

from experiments.errors import UsageError

MAX_NAMES_LISTED = 16


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


def unknown_flag(command: str, flag: str, known: Iterable[str]) -> UsageError:
    """Return the error of a flag that a command does not have.

    Args:
        command: name of the command.
        flag: the flag as it was given, perhaps with a value.
        known: the flags that there are, as in a usage line: ``--runs_root=DIR``.
    """
    shown = {usage.partition("=")[0]: usage for usage in known}
    near = get_close_matches(flag.partition("=")[0], shown, n=1)
    meant = f"did you mean {near[0]}? There are: " if near else "there are: "
    return UsageError(f"{command}: unknown flag {flag}; {meant}{', '.join(shown.values())}")
