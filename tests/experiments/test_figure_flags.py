"""The flags of ``figures``: what they set, and what is refused."""

import pytest

from analysis.figures import page
from experiments.errors import UsageError
from experiments.figure_flags import apply_figure_flags


@pytest.fixture(autouse=True)
def output(monkeypatch):
    for name in ("FORMATS", "WIDTH", "BARE"):
        monkeypatch.setattr(page, name, getattr(page, name))


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
