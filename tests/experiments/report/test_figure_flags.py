"""The flags of ``figures``: what they set, and what is refused."""

import numpy as np
import pandas as pd
import pytest

from analysis.figures import page
from experiments.__main__ import main
from experiments.errors import UsageError
from experiments.measure.table import COLUMNS
from experiments.report.figure_flags import apply_figure_flags


def test_flags_are_set_and_others_handed_back():
    assert apply_figure_flags(["--format=pdf,svg", "--runs_root=R", "--width=8.5", "--bare"]) == ["--runs_root=R"]
    assert (page.FORMATS, page.BARE) == (("pdf", "svg"), True)
    assert pytest.approx(3.3465, abs=1e-4) == page.WIDTH, "8.5 cm in inches"
    assert apply_figure_flags([]) == []
    assert (page.FORMATS, page.WIDTH, page.BARE) == (("pdf", "png"), 5.5, False)


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("--format=gif", "no such format 'gif'; there are: pdf, png, svg, eps"),
        ("--format=", "no such format ''"),
        ("--width=broad", "--width=broad: use column, page, or a number of cm from 6 to 60"),
        ("--width=-3", "--width=-3"),
        ("--width=nan", "--width=nan"),
        ("--bare=yes", "--bare takes no value"),
    ],
)
def test_wrong_flags_are_refused(flag, said):
    with pytest.raises(UsageError, match="figures: ") as error:
        apply_figure_flags([flag])
    assert said in str(error.value)
    assert page.FORMATS == ("pdf", "png"), "nothing is set"


def test_figures_of_a_measured_folder_are_drawn_again(tmp_path, capsys):
    fixed = {"study": "", "variant": "net", "seed": 0, "layer": "conv2", "measure": "cka_between"}
    rows = [{**dict.fromkeys(COLUMNS, ""), **fixed, "null": null, "groups": "2", "value": 0.5} for null in ("", "any")]
    pd.DataFrame(rows).to_csv(tmp_path / "measures.csv", index=False)
    np.savez(tmp_path / "arrays.npz", nothing=np.zeros(1))
    (tmp_path / "measured.json").write_text("{}")
    assert main(["figures", str(tmp_path), "--format=png"]) == 0
    assert capsys.readouterr().out.split() == [str(tmp_path / "figures" / "similarity.png")]
    assert (tmp_path / "figures" / "similarity.png").is_file()
    with pytest.raises(UsageError, match="--more"):
        main(["figures", str(tmp_path), "--more"])
