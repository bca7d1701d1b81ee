"""The ``claims`` command: the ledger of claims with its verdicts."""

from __future__ import annotations

from experiments.report.claims import print_claims


def main(arguments: list[str]) -> int:
    """Print the ledger; returns the exit code.

    Raises:
        UsageError: an unknown flag, or a ledger that cannot be read.
    """
    print_claims(arguments)
    return 0
