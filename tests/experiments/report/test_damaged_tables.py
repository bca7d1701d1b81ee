"""Tables that were changed from outside are named; a run without its metrics has those of its checkpoint."""

import lzma

import numpy as np
import pytest

from experiments.errors import UsageError
from experiments.report import tables
from experiments.sweep import report as sweep_report

GOOD = "study,variant,seed,layer,measure,null,groups,value,unit\ns,v,0,l,m,,4,0.5,fraction\n"


def test_a_table_is_read_as_it_was_written_also_with_a_mark_and_line_ends_of_windows(tmp_path):
    for text in (GOOD, "\ufeff" + GOOD, GOOD.replace("\n", "\r\n")):
        (tmp_path / "measures.csv").write_bytes(text.encode())
        (row,) = tables.read_table(tmp_path / "measures.csv").to_dict("records")
        assert (row["study"], row["groups"], row["null"], row["value"]) == ("s", "4", "", 0.5)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (GOOD.replace(",", ";"), "no column study"),
        (GOOD[:-20], "last line is cut off"),
        ("", "it is empty"),
        ("a,b\n1,2\n", "no column study"),
        (GOOD.replace("0.5", "half"), "value: some cells are no finite numbers"),
        (GOOD.replace("0.5", "inf"), "value: some cells are no finite numbers"),
        (GOOD.replace(",0,", ",0.5,"), "a seed is not a whole number"),
        (GOOD.replace(",4,", ",log:,"), "groups log:: not as 4, log:4 or 8,4,4"),
        (GOOD + "s,v,0,l,m,,4,0.5,fraction,more\n", "Expected 9 fields"),
        (GOOD.encode().replace(b"s,v", b"\xff,v"), "decode"),
        (None, "it is gone"),
    ],
)
def test_a_damaged_table_is_one_line_that_says_how_to_make_it_again(tmp_path, content, words):
    path = tmp_path / "mine" / "tables" / "measures.csv"
    path.parent.mkdir(parents=True)
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UsageError, match=words) as error:
        tables.read_table(path)
    assert str(error.value).startswith(f"{path}: damaged: ")
    assert str(error.value).endswith("make experiment NAME=mine")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("cut", [slice(20), slice(1, None), slice(0)])
def test_a_damaged_compressed_table_is_one_line_too(tmp_path, cut):
    path = tmp_path / "results" / "mine" / "measures.csv.xz"
    path.parent.mkdir(parents=True)
    path.write_bytes(lzma.compress(GOOD.encode()))
    assert tables.long_table(path.parent) == path
    assert tables.read_table(path)["value"].tolist() == [0.5]
    path.write_bytes(path.read_bytes()[cut])
    with pytest.raises(UsageError, match="damaged: ") as error:
        tables.read_table(path)
    assert str(error.value).endswith("make results NAME=mine")
    assert "\n" not in str(error.value)


def test_a_table_of_no_rows_has_no_wrong_cells(tmp_path):
    (tmp_path / "fronts.csv").write_text("at,value\n")
    assert tables.read_csv(tmp_path / "fronts.csv", ["at", "value"], numbers=("at", "value")).empty
    (tmp_path / "fronts.csv").write_text("at,value\n3,often\n")
    with pytest.raises(UsageError, match=r"fronts\.csv: damaged: value: some cells are no finite numbers"):
        tables.read_csv(tmp_path / "fronts.csv", ["at", "value"], numbers=("at", "value"))


SWEPT = {
    "sweep.csv": "point,state,test_accuracy,epochs,seconds,run,reason,recipe.lr\n0,done,0.5,1,2.0,r,,0.1\n",
    "importance.csv": "parameter,importance,low,high,correlation,p,n,explained\nrecipe.lr,1.0,0.9,1.0,0.5,0.1,9,0.8\n",
    "sweep.json": '{"metric": "test_accuracy", "maximize": true, "method": "grid", "scales": {"recipe.lr": "log"}}',
}


@pytest.mark.parametrize("name", SWEPT)
@pytest.mark.parametrize("show", [sweep_report.summary, sweep_report.draw_figures])
def test_a_damaged_table_of_a_sweep_is_one_line_that_names_the_sweep(tmp_path, name, show):
    tables = tmp_path / "rates" / "tables"
    tables.mkdir(parents=True)
    for table, content in SWEPT.items():
        (tables / table).write_text(content)
    assert show(tmp_path / "rates")
    (tables / name).write_text(SWEPT[name][:-9])
    with pytest.raises(UsageError) as error:
        show(tmp_path / "rates")
    assert str(error.value).startswith(f"{tables / name}: damaged: ")
    assert str(error.value).endswith("make sweep NAME=rates")


@pytest.mark.parametrize(
    ("content", "words"),
    [("[]", "it is a list, not a mapping"), ('{"a": 1}', "it has not the keys b, c"), ("{", "no JSON"), (None, "gone")],
)
def test_damaged_notes_on_tables_say_what_they_lack(tmp_path, content, words):
    path = tmp_path / "study.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UsageError, match=words):
        tables.read_about(path, ["a", "b", "c"])


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut off", b"\x93NUMPY", b"text", None])
def test_damaged_arrays_are_one_line(tmp_path, content):
    np.savez(tmp_path / "arrays.npz", a=np.arange(3), b=np.ones(2))
    assert tables.read_arrays(tmp_path / "arrays.npz")["a"].tolist() == [0, 1, 2]
    (tmp_path / "arrays.npz").unlink()
    if content is not None:
        (tmp_path / "arrays.npz").write_bytes(content)
    with pytest.raises(UsageError, match=r"arrays\.npz: damaged: ") as error:
        tables.read_arrays(tmp_path / "arrays.npz")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("left", ["", '{"epoch": 1}\n'])
def test_a_finished_run_without_its_metrics_has_those_of_the_checkpoint(tmp_path, capsys, left):
    from experiments.store.runs import Run

    run = Run.of(tmp_path, "v", {"seed": 0, "data": "d", "recipe": {"epochs": 2}})
    run.begin()
    run.save_checkpoint({"history": [{"epoch": 1}, {"epoch": 2}]})
    run.finish("done", {"test_accuracy": 0.5, "seconds": 1.0}, "cpu")
    if left:
        (run.folder / "metrics.jsonl").write_text(left)
    assert run.metrics() == [{"epoch": 1}, {"epoch": 2}]
    assert "metrics.jsonl is " in capsys.readouterr().err
