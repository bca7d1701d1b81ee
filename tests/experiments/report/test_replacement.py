"""Guard of the record in results/: tests of what may replace it."""

import json

import pandas as pd
import pytest

from experiments.commands import results
from experiments.errors import UsageError
from experiments.report.replacement import check_replaces


def tables(folder, seeds, overrides):
    folder.mkdir(parents=True)
    (folder / "measures.csv").write_text("study\n")
    (folder / "study.json").write_text(json.dumps({"overrides": overrides}))
    runs = [{"variant": variant, "seed": seed} for variant, count in seeds.items() for seed in range(count)]
    pd.DataFrame(runs).to_csv(folder / "runs.csv", index=False)
    return folder


@pytest.mark.parametrize(
    ("seeds", "overrides", "words"),
    [
        ({"dense": 2, "groups-2": 3}, {}, "3 seeds of dense"),
        ({"dense": 3}, {}, "3 seeds of groups-2"),
        ({"dense": 3, "groups-2": 3}, {"recipe.epochs": 1}, "--recipe.epochs=1"),
    ],
    ids=["fewer seeds", "a variant less", "overridden keys"],
)
def test_a_trial_does_not_replace_the_record(tmp_path, seeds, overrides, words):
    record = tables(tmp_path / "results", {"dense": 3, "groups-2": 3}, {})
    with pytest.raises(UsageError, match=words) as error:
        check_replaces(tables(tmp_path / "runs" / "tables", seeds, overrides), record)
    assert "--replace" in str(error.value)


def test_as_many_seeds_of_the_same_study_replace_the_record(tmp_path):
    record = tables(tmp_path / "results", {"dense": 3}, {"download": True})
    check_replaces(tables(tmp_path / "a" / "tables", {"dense": 3, "log-4": 3}, {}), record)
    check_replaces(tables(tmp_path / "b" / "tables", {"dense": 4}, {"download": True}), record)
    check_replaces(tables(tmp_path / "c" / "tables", {"dense": 1}, {"x": 1}), tmp_path / "none yet")


def test_more_seeds_than_the_record_are_no_override_and_fewer_are_refused(tmp_path):
    record = tables(tmp_path / "results", {"dense": 3}, {})
    check_replaces(tables(tmp_path / "more" / "tables", {"dense": 5}, {"seeds": 5}), record)
    with pytest.raises(UsageError, match="has 3 seeds of dense"):
        check_replaces(tables(tmp_path / "fewer" / "tables", {"dense": 2}, {"seeds": 2}), record)


def test_a_study_without_tables_is_told_to_be_run_and_not_to_have_fewer_seeds(tmp_path):
    with pytest.raises(UsageError) as error:
        results.main(["quickstart", f"--runs_root={tmp_path}"])
    tables_there = tmp_path / "quickstart" / "tables"
    assert str(error.value).startswith(f"{tables_there} has no measures.csv: run the study first")
