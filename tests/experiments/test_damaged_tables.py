"""Tables that were changed from outside are named; a run without its metrics has those of its checkpoint."""

import pytest

from experiments import report
from experiments.errors import UsageError

GOOD = "study,variant,seed,layer,measure,null,groups,value,unit\ns,v,0,l,m,,4,0.5,fraction\n"


def test_a_table_is_read_as_it_was_written_also_with_a_mark_and_line_ends_of_windows(tmp_path):
    for text in (GOOD, "\ufeff" + GOOD, GOOD.replace("\n", "\r\n")):
        (tmp_path / "measures.csv").write_bytes(text.encode())
        (row,) = report.read_table(tmp_path / "measures.csv").to_dict("records")
        assert (row["study"], row["groups"], row["null"], row["value"]) == ("s", "4", "", 0.5)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (GOOD.replace(",", ";"), "no column study"),
        (GOOD[:-20], "last line is cut off"),
        ("", "it is empty"),
        ("a,b\n1,2\n", "no column study"),
        (GOOD.replace("0.5", "half"), "no numbers"),
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
        report.read_table(path)
    assert str(error.value).startswith(f"{path}: damaged: ")
    assert str(error.value).endswith("make experiment NAME=mine")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("left", ["", '{"epoch": 1}\n'])
def test_a_finished_run_without_its_metrics_has_those_of_the_checkpoint(tmp_path, capsys, left):
    from experiments.store.runs import Run

    run = Run.of(tmp_path, "v", {"seed": 0, "data": "d", "recipe": {"epochs": 2}})
    run.begin()
    run.save_checkpoint({"history": [{"epoch": 1}, {"epoch": 2}]})
    run.finish("done", {}, "cpu")
    if left:
        (run.folder / "metrics.jsonl").write_text(left)
    assert run.metrics() == [{"epoch": 1}, {"epoch": 2}]
    assert "metrics.jsonl is " in capsys.readouterr().err
