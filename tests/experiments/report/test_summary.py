"""Summary on the terminal at the end of a study, from a table made by hand."""

import pandas as pd

from experiments.measure.table import COLUMNS
from experiments.report.summary import summary


def rows(measure, values, null="", layer="conv1", unit=""):
    return [["study", "groups-2", seed, layer, measure, null, "2", value, unit] for seed, value in enumerate(values)]


def test_the_colour_of_groups_is_that_of_the_trained_network_and_its_nulls_are_shown_apart():
    """Nulls and other partitions are rows of the same measure: none of them may enter the mean."""
    table = pd.DataFrame(
        [
            *rows("test_accuracy", [0.5, 0.6], layer=""),
            *rows("learned_filters", [1.0, 0.9], unit="fraction"),
            *rows("colour_index", [0.4, 0.6], unit="fraction"),
            *rows("colour_difference", [0.2, 0.4]),
            *rows("colour_difference", [0.05, 0.07], null="labels permuted"),
            *rows("colour_difference", [0.9, 0.9], null="spectral partition"),
            *rows("colour_split", [0, 1]),
            *rows("colour_split", [1, 1], null="spectral partition"),
        ],
        columns=pd.Index(COLUMNS),
    )
    (line,) = [line for line in summary(table).splitlines() if line.startswith("groups-2") and "seeds" in line]
    assert "0.30 (0.20 … 0.40)" in line
    assert "0.06 " in line and "1 of 2 seeds" in line
    assert "0.9 " not in line


def test_inputs_read_from_dense_layers_are_no_second_row():
    table = pd.DataFrame(
        [
            *rows("test_accuracy", [0.5, 0.6], layer=""),
            *rows("ratio_input", [1.2, 1.3], layer="conv2"),
            *rows("ratio_input_of_dense", [1.2, 1.3], layer="conv2"),
        ],
        columns=pd.Index(COLUMNS),
    )
    assert summary(table).count("conv2, input") == 1
