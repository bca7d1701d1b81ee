"""The ledger as a figure: the effects of claims in units of the smallest effect of interest."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from analysis.claims import Claim, Finding
from analysis.verdict import Test

COLUMNS = ["number", "short", "verdict", "effect", "low", "high", "n", "study", "equal"]
EQUAL = ("within", "no_greater")  # directions of claims that there is nothing


def draw_ledger(claims: Sequence[Claim], findings: Sequence[Finding], folder: Path) -> list[Path]:
    """Draw the claims that were measured; returns the files written, none if no claim was."""
    from analysis.figures import ledger

    return ledger.draw(forest_rows(claims, findings), folder)


def forest_rows(claims: Sequence[Claim], findings: Sequence[Finding]) -> pd.DataFrame:
    """Return a row for each claim that was measured, as ``analysis.figures.ledger.draw`` takes them."""
    rows = []
    for claim, finding in zip(claims, findings, strict=True):
        part, record = finding.part, finding.record
        if part is None or part.effect is None or record is None or finding.verdict == "not run":
            continue
        known = part.low is not None and part.high is not None and part.low < part.high
        low, high = (part.low, part.high) if known else (np.nan, np.nan)
        effect, *ends = (in_units(float(x), part.test) for x in (part.effect, low, high))  # type: ignore[arg-type]
        n = np.nan if finding.n is None else finding.n
        equal = part.test.direction in EQUAL
        rows.append([claim.number, claim.short, finding.verdict, effect, *sorted(ends), n, record.study, equal])
    return pd.DataFrame(rows, columns=pd.Index(COLUMNS))


def in_units(value: float, test: Test) -> float:
    """Return an effect as multiples of the smallest effect of interest, above 0 in the direction of the test."""
    distance = (value - test.than) / test.matters
    return -distance if test.direction == "less" else distance
