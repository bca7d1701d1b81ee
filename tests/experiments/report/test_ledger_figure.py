"""The ledger as a forest plot, in units of the smallest effect of interest."""

import numpy as np
import pandas as pd
import pytest

from analysis.claims import claims_of_study, judge_claims
from analysis.effects import Metric, Term
from analysis.figures import ledger
from analysis.verdict import Test as Part
from experiments.report.ledger import LEDGER, read_claims
from experiments.report.ledger_figure import COLUMNS, draw_ledger, forest_rows, in_units
from experiments.report.records import RESULTS, read_record
from figure_checks import checked

METRIC = Metric("difference", (Term("test_accuracy", ("dense",)),), (), {}, "", False, True)


@pytest.mark.parametrize(
    ("direction", "value", "units"),
    [("greater", 0.6, 2.0), ("less", 0.6, -2.0), ("within", 0.45, 0.5), ("no_greater", 0.3, -1.0)],
)
def test_an_effect_is_in_units_of_what_matters_and_above_0_as_claimed(direction, value, units):
    assert in_units(value, Part(METRIC, direction, 0.1, than=0.4)) == pytest.approx(units)


def test_the_record_gives_a_row_for_each_claim_that_was_measured(tmp_path):
    claims = read_claims(LEDGER)
    record = read_record("quickstart", "results", RESULTS / "quickstart")
    alone = claims_of_study("quickstart", claims)
    assert [row[0] for row in forest_rows(alone, judge_claims(alone, [record])).to_numpy()] == [1, 2, 3, 4, 6, 24]
    findings = judge_claims(claims, [record])
    rows = forest_rows(claims, findings).set_index("number")
    assert list(rows.index) == [1, 2, 3, 4, 6], "24 is of two studies"
    two = next(finding for claim, finding in zip(claims, findings, strict=True) if claim.number == 2)
    assert rows.loc[2, "effect"] == pytest.approx(two.part.effect / two.part.test.matters)
    assert rows.loc[2, "low"] < rows.loc[2, "effect"] < rows.loc[2, "high"] < 0
    checked(draw_ledger(claims, findings, tmp_path))


def test_intervals_beyond_the_frame_and_a_whole_ledger_fit_the_page(tmp_path):
    verdicts = list(ledger.STYLES)
    rows = [
        [
            k,
            "a claim with a name of eight whole words",
            verdicts[k % 4],
            e,
            e - 3,
            e + 3,
            8.0,
            "alexnet-groups",
            k % 3 == 0,
        ]
        for k, e in enumerate(np.linspace(-9, 9, 27), 1)
    ]
    checked(ledger.draw(pd.DataFrame(rows, columns=COLUMNS), tmp_path))
    assert ledger.draw(pd.DataFrame(columns=COLUMNS), tmp_path) == []
