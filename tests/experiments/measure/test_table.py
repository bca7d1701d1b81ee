"""The long table as measures fill it and as it is read again."""

import math

import numpy as np

from analysis.correlation import GroupContrast
from experiments.measure.table import Value, gather, save_table
from experiments.report.tables import read_table


def test_an_infinite_ratio_is_undefined_and_its_table_can_be_read(tmp_path):
    uncorrelated = GroupContrast(within=0.5, between=0.0, filters=8, dead=0)
    assert math.isinf(uncorrelated.ratio)
    table = gather([Value("ratio_computed", uncorrelated.ratio), Value("filters", 8)], "study", "variant", 0).table
    save_table(tmp_path / "measures.csv", table)
    assert np.array_equal(read_table(tmp_path / "measures.csv")["value"], [np.nan, 8], equal_nan=True)
