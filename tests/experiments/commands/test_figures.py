"""Figures of a study that was not run here are drawn from its record."""

import shutil

import pandas as pd
import pytest

from experiments.commands import figures, report, results
from experiments.errors import UsageError
from experiments.report.write_record import PAGE, write_study_record
from small_runs import NAME

pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture
def home(trained, tmp_path, monkeypatch):
    """A checkout with the record of the study alone."""
    write_study_record(trained, tmp_path / "results", tmp_path / PAGE)
    monkeypatch.setattr("experiments.commands.figures.HOME", tmp_path)

    def draw(folder):
        """Draw what says which tables were there."""
        accuracy = pd.read_csv(folder / "tables" / "tradeoff.csv")["accuracy"]
        picture = folder / "figures" / "tradeoff.png"
        picture.parent.mkdir()
        picture.write_text(str(accuracy.tolist()))
        return [picture]

    monkeypatch.setattr("experiments.commands.trained.draw_figures", draw)
    return tmp_path


@pytest.mark.parametrize("packed", [True, False], ids=["packed runs", "tables alone"])
@pytest.mark.parametrize("names", [[NAME], []], ids=["one study", "all"])
def test_without_runs_the_record_is_drawn(home, trained, names, packed, capsys):
    if not packed:
        shutil.rmtree(home / "results" / NAME / "runs")
    stale = home / "runs" / "figures" / NAME / "correlation-2.png"
    stale.parent.mkdir(parents=True)
    stale.touch()
    (stale.parent / "mine.txt").touch()
    assert figures.main([*names, f"--runs_root={home / 'runs'}"]) == 0
    out, err = capsys.readouterr()
    accuracy = pd.read_csv(trained / "tables" / "tradeoff.csv")["accuracy"]
    assert (stale.parent / "tradeoff.png").read_text() == str(accuracy.tolist())
    drawn = ("tradeoff.png", "tradeoff.tex", "fronts.tex", "equal_cost.tex")
    assert out.splitlines() == [str(stale.parent / name) for name in drawn]
    assert not stale.exists()
    assert (stale.parent / "mine.txt").exists()
    assert bool(err) == bool(names), "which tables are drawn is said where runs were asked for"


def test_runs_that_are_here_go_before_the_record(home, trained, capsys):
    shutil.copytree(trained / "tables", home / "runs" / NAME / "tables")
    assert figures.main([NAME, f"--runs_root={home / 'runs'}"]) == 0
    assert capsys.readouterr().out.startswith(str(home / "runs" / NAME / "figures" / "tradeoff.png"))
    assert not (home / "runs" / "figures").exists()


def test_a_study_is_drawn_and_reported_by_the_path_of_its_file_and_not_recorded(home, trained, capsys):
    path = home / "mine" / "study.yaml"
    path.parent.mkdir()
    path.write_text("question: mine\nmodel: {name: small}\n")
    shutil.copytree(trained / "tables", home / "runs" / "mine-study" / "tables")
    root = f"--runs_root={home / 'runs'}"
    assert figures.main([str(path), root]) == 0
    assert capsys.readouterr().out.startswith(str(home / "runs" / "mine-study" / "figures" / "tradeoff.png"))
    shutil.rmtree(home / "runs" / "mine-study" / "figures")  # a text in the place of a picture
    assert report.main([str(path), root]) == 0
    assert (home / "runs" / "mine-study" / "report.html").is_file()
    with pytest.raises(UsageError, match=r"study.yaml: the record has the studies of .*: copy the file there first"):
        results.main([str(path), root])
    for command in (figures.main, report.main, results.main):
        with pytest.raises(UsageError, match=r"none.yaml"):
            command([str(home / "none.yaml"), root])


def test_a_damaged_record_is_named(home):
    packed = min((home / "results" / NAME / "runs").glob("*.zip"))
    packed.write_bytes(packed.read_bytes()[:50])
    with pytest.raises(UsageError, match=f"{packed.name}: damaged: .*make results NAME={NAME}$"):
        figures.main([f"--runs_root={home / 'runs'}"])
