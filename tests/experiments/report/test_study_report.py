"""The text at the end of a study fits one screen and says what is next."""

import re
from dataclasses import replace

import pandas as pd
import pytest

from analysis.evidence import Record
from experiments.report.records import RESULTS, read_record
from experiments.report.study_report import (
    LINES,
    WIDTH,
    command_again,
    finding_lines,
    path_lines,
    remarks_on_images,
    remarks_on_notes,
    study_report,
)
from experiments.report.tables import read_csv
from tiny_images import tiny_dataset

NAME = "quickstart"
COLUMNS = ["variant", "seed", "status", "reason"]


@pytest.fixture(scope="module")
def record():
    return read_record("quickstart", "results", RESULTS / "quickstart")


def seconds(record):
    rows = record.table[record.table["measure"] == "test_accuracy"]
    return rows[["variant"]].assign(seconds=60.0)


def test_a_study_of_many_variants_with_many_remarks_fits_one_screen(record, tmp_path):
    tables = [record.table]
    for k in range(12):
        name = f"groups-2 with a name that is long {k}"
        tables.append(record.table[record.table["variant"] == "groups-2"].assign(variant=name))
    many = replace(record, table=pd.concat(tables, ignore_index=True), trial="--recipe.epochs=1", refused="")
    remarks = [f"remark {k} " + "long " * 40 for k in range(9)]
    text = study_report(NAME, "A question? " * 30, many.table, many, seconds(many), remarks, {})
    lines = [*text.splitlines(), "", *path_lines(tmp_path, tmp_path / "report.html")]
    assert len(lines) <= LINES
    assert max(map(len, text.splitlines())) <= WIDTH
    assert "… and 9 more variants in tables/tradeoff.csv" in text
    assert "a trial, no evidence for the ledger: --recipe.epochs=1" in text


def test_it_says_what_was_found_and_what_would_settle_the_rest(record):
    text = study_report(NAME, "Why?", record.table, record, seconds(record), [], {"seeds": 8})
    rows = record.table.query("variant == 'dense' and measure == 'test_accuracy'")
    assert re.search(rf"^dense  +{rows['value'].mean():.3f} \[0\.\d+, 0\.\d+\] +8 ", text, re.MULTILINE)
    assert re.search(
        r"^contradicted: 2 Training widens that gap: -0\.\d+ \[-0\.\d+, -0\.\d+\], q 0\.\d+$", text, re.MULTILINE
    )
    six = replace(record, table=record.table[~(record.table["seed"] >= 6)])
    text = study_report(NAME, "Why?", six.table, six, seconds(six), [], {"seeds": 6})
    more, minutes, seeds = re.search(
        r"^(\d+) more seeds? for claims? [\d, ]+, (\d+) min: make experiment NAME=quickstart ARGS=--seeds=(\d+)",
        text,
        re.MULTILINE,
    ).groups()
    assert int(minutes) == 4 * int(more)  # 4 variants, a minute each
    assert int(seeds) == 6 + int(more)


NULLS = {"": 1.5, "untrained": 1.0, "random filters": 1.2, "rotated filters": 1.45}


def test_a_sentence_has_the_effect_its_interval_and_its_nulls():
    rows = [("groups-2", seed, null, value) for seed in range(6) for null, value in NULLS.items()]
    table = pd.DataFrame(rows, columns=["variant", "seed", "null", "value"])
    table = table.assign(study="s", layer="conv2", measure="ratio_computed", groups="", unit="")
    assert finding_lines(table)[1] == (
        "Correlation within / between groups: 1.50 [1.50, 1.50]; untrained 1.00, rotated filters 1.45."
    )


def test_images_that_lack_are_remarked():
    tiny = tiny_dataset()
    assert remarks_on_images([tiny]) == []
    lacking = replace(tiny, classes=("red", "blue", "green"), broken=("a.png",))
    assert remarks_on_images([lacking]) == [
        "class green: no images",
        "1 of 37 images are broken and left out: a.png, …",
    ]
    only = replace(tiny, test=replace(tiny.test, labels=tiny.test.labels * 0))
    assert remarks_on_images([only]) == ["class blue: training images only, no test images"]


def test_runs_at_chance_and_filters_that_did_not_learn_are_remarked(record):
    lost = {("dense", 0): "at chance (accuracy 0.1, 10 classes)", ("dense", 1): "at chance (accuracy 0.1, 10 classes)"}
    worse = Record(
        "quickstart", "runs", record.table, lost=lost, unlearned={("log-4", 2): "learned 20% of its filters"}
    )
    text = study_report(NAME, "Why?", record.table, worse, seconds(record), [], {})
    assert "2 runs at chance, no evidence: dense 0, dense 1" in text
    assert "1 run learned 20% of its filters, no evidence: log-4 2" in text


def test_notes_and_missing_runs_are_counted():
    notes = read_csv(RESULTS / "quickstart" / "notes.csv", ["note"])
    missing = pd.DataFrame(
        [["dense", 3, "diverged", "no longer finite"]], columns=["variant", "seed", "status", "reason"]
    )
    assert remarks_on_notes(notes, missing) == [
        "not in these tables: dense, seed 3: diverged: no longer finite",
        f"{len(notes)} notes on what could not be measured: tables/notes.csv",
    ]


@pytest.mark.parametrize(
    ("overrides", "command"),
    [
        ({}, "make experiment NAME=log-groups ARGS=--seeds={seeds}"),
        ({"profile": "photos", "seeds": 2}, "make experiment NAME=log-groups PROFILE=photos ARGS=--seeds={seeds}"),
        ({"recipe.epochs": 1}, "the same command with --seeds={seeds}"),
    ],
)
def test_more_seeds_are_of_the_same_study(overrides, command):
    assert command_again("log-groups", overrides) == command
