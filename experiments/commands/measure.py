"""The ``measure`` command: every measure on a network that was trained elsewhere."""

from __future__ import annotations

from experiments.foreign.command import measure_checkpoint


def main(arguments: list[str]) -> int:
    """Measure a checkpoint, write its tables and figures, and print a summary; returns the exit code.

    Raises:
        UsageError: wrong flags, or a checkpoint, model or folder of images that cannot be used.
    """
    measure_checkpoint(arguments)
    return 0
