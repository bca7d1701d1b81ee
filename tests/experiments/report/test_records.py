"""Evidence for the ledger: trials, networks at chance, mixed precision, and the record in results/."""

import json

import pandas as pd
import pytest

from analysis.claims import judge_claims
from experiments.report.claims import print_claims
from experiments.report.ledger import LEDGER, read_claims
from experiments.report.records import RESULTS, find_records
from experiments.store.runs import config_hash
from experiments.study.config import load_study

SEEDS = 8


def write(folder, *flags, accuracy=0.9, learned=0.95, seeds=SEEDS, classes=10, images=1000, data="d", precision=None):
    """Tables of quickstart as a run of it with these flags leaves them, with a clear gap between groups-2 and dense."""
    study = load_study("quickstart", list(flags))
    rows, runs = [], []
    for seed in range(seeds):
        for v in study.variants:
            gap = 0.05 * (v.name == "dense") + 0.001 * seed
            values = {"test_accuracy": accuracy - gap, "learned_filters": learned}
            values |= {"within_computed": 0.3 - gap, "between_computed": 0.1}
            rows += [{"variant": v.name, "seed": seed, "measure": m, "value": x} for m, x in values.items()]
            run = {"variant": v.name, "seed": seed, "config_hash": config_hash(v.run_config(data, seed))}
            each = (precision or ["float32"])[seed % len(precision or [1])]
            where = {"data_hash": data, "device": "abacus", "precision": each, "torch": "2", "dataset": "photos"}
            runs.append({**run, **where, "commit": "c", "classes": classes, "test_images": images})
    folder.mkdir(parents=True)
    table = pd.DataFrame(rows).assign(study="quickstart", layer="", null="", groups="", unit="")
    table.loc[table["measure"] != "test_accuracy", "layer"] = "conv1"
    table.to_csv(folder / "measures.csv", index=False)
    pd.DataFrame(runs).to_csv(folder / "runs.csv", index=False)
    (folder / "study.json").write_text(json.dumps({"overrides": study.overrides}))


def records(tmp_path, **given):
    return find_records("quickstart", tmp_path / "runs", tmp_path / "results", **given)


def tables(tmp_path):
    return tmp_path / "runs" / "quickstart" / "tables"


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--recipe.epochs=1"], "--recipe.epochs=1"),
        (["--model.width=8", "--data.labels=permuted"], "--model.width=8 --data.labels=permuted"),
        (["--measures.images=100"], "--measures.images=100"),
    ],
)
def test_a_study_that_the_command_line_changed_is_no_evidence_unless_asked_for(tmp_path, flags, said):
    write(tables(tmp_path), *flags)
    (refused,) = records(tmp_path)
    assert refused.refused == f"a trial ({said}); make claims ARGS=--trials counts it"
    (asked,) = records(tmp_path, trials=True)
    assert (asked.refused, asked.trial) == ("", said)


@pytest.mark.parametrize(
    "flags",
    [
        [],
        ["--seeds=12"],
        ["--only=dense,groups-2"],
        ["--recipe.device=cpu"],
        ["--recipe.precision=fp32"],
        ["--measures.images=1000"],
        ["--data_root=elsewhere", "--wandb=off", "--download=true"],
    ],
)
def test_what_changes_nothing_that_is_trained_is_evidence(tmp_path, flags):
    write(tables(tmp_path), *flags)
    (record,) = records(tmp_path)
    assert (record.refused, record.trial) == ("", "")


@pytest.mark.parametrize(
    ("flags", "said"),
    [(["--seeds=2"], ""), (["--recipe.device=cpu", "--seeds=1"], ""), (["--recipe.epochs=1"], "--recipe.epochs=1")],
)
def test_more_seeds_make_no_trial_of_a_study_outside_of_configs_either(tmp_path, flags, said):
    folder = tmp_path / "runs" / "mine-study" / "tables"
    write(folder, *flags)
    (record,) = find_records("mine-study", tmp_path / "runs", tmp_path / "results", trials=True)
    assert record.trial == said


def test_runs_of_an_earlier_file_are_a_trial_too(tmp_path):
    write(tables(tmp_path), "--recipe.epochs=2")
    (tables(tmp_path) / "study.json").write_text('{"overrides": {}}')
    (record,) = records(tmp_path)
    assert "other runs than configs/quickstart.yaml asks for now" in record.refused


def test_other_images_are_a_trial_unless_they_are_those_of_the_record(tmp_path):
    write(tables(tmp_path), "--dataset=folder:mine", data="mine")
    (record,) = records(tmp_path)
    assert "--dataset=folder:mine" in record.refused
    write(tmp_path / "results" / "quickstart", data="other")
    assert "--dataset=folder:mine" in records(tmp_path)[0].refused
    write(tmp_path / "again" / "quickstart", data="mine")
    same = find_records("quickstart", tmp_path / "runs", tmp_path / "again")
    assert [record.refused for record in same] == ["", ""]


def test_a_trial_never_displaces_the_record(tmp_path):
    write(tables(tmp_path), "--recipe.epochs=1", seeds=20)
    write(tmp_path / "results" / "quickstart")
    assert [bool(r.refused) for r in records(tmp_path)] == [True, False]


def test_networks_at_chance_and_filters_that_did_not_learn_are_no_evidence(tmp_path):
    write(tables(tmp_path), accuracy=0.11, learned=0.2)
    (record,) = records(tmp_path)
    assert len(record.lost) == SEEDS * 4  # .11 and .06 of 1000 images: at or below a chance of .1 by the interval
    assert record.lost["groups-2", 0] == "at chance (accuracy 0.110, 10 classes)"
    assert record.unlearned["groups-2", 0] == "learned 20% of the first filters"


def test_of_networks_at_chance_the_ledger_says_so_and_gives_no_verdict(tmp_path):
    write(tables(tmp_path), accuracy=0.1)
    claims = [claim for claim in read_claims(LEDGER) if "quickstart" in claim.studies]
    for finding in judge_claims(claims[:1], records(tmp_path)):
        assert (finding.verdict, finding.part) == ("not run", None)
        assert "no run of groups-2 is evidence: seed 0 at chance (accuracy 0.100, 10 classes)" in finding.note


def test_an_accuracy_is_above_chance_by_the_number_of_images(tmp_path):
    write(tables(tmp_path), accuracy=0.2, images=1000)
    (many,) = records(tmp_path)
    assert not many.lost  # .143 of 1000 images and more: 95% from .122
    few = tmp_path / "few"
    write(few / "quickstart" / "tables", accuracy=0.2, images=20)
    (record,) = find_records("quickstart", few, tmp_path / "none")
    assert len(record.lost) == SEEDS * 4


def test_runs_of_mixed_precision_are_no_evidence(tmp_path):
    write(tables(tmp_path), precision=["float32", "bfloat16"])
    (record,) = records(tmp_path)
    assert record.refused == "runs of mixed precision (float32, bfloat16)"


def test_the_ledger_names_why_there_is_no_evidence(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("experiments.report.claims.RESULTS", tmp_path / "results")
    write(tables(tmp_path), "--recipe.epochs=1")
    claims = [claim for claim in read_claims(LEDGER) if "quickstart" in claim.studies]
    for finding in judge_claims(claims, records(tmp_path)):
        assert finding.verdict == "not run"
        assert "runs/quickstart is no evidence: a trial (--recipe.epochs=1)" in finding.note
    print_claims([f"--runs_root={tmp_path / 'runs'}", "--trials"])
    assert "TRIAL: --recipe.epochs=1" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("name", ["measures.csv", "runs.csv", "study.json"])
def test_a_damaged_record_is_named_and_the_ledger_goes_on_with_the_others(tmp_path, capsys, name):
    write(tables(tmp_path))
    write(tmp_path / "results" / "quickstart")
    for place, command in ((tables(tmp_path), "experiment"), (tmp_path / "results" / "quickstart", "results")):
        whole = (place / name).read_bytes()
        (place / name).write_bytes(whole[: len(whole) // 2])
        (record,) = records(tmp_path)
        assert record.place == ("results" if command == "experiment" else str(tmp_path / "runs"))
        said = capsys.readouterr().err
        assert said.startswith(f"warning: {place / name}: damaged: ")
        assert said.endswith(f"make {command} NAME=quickstart; the ledger goes on without this record\n")
        assert said.count("\n") == 1
        (place / name).write_bytes(whole)
    assert len(records(tmp_path)) == 2
    assert not capsys.readouterr().err


def test_runs_of_one_family_differ_in_groups_and_widths_alone():
    runs = pd.read_csv(RESULTS / "log-groups" / "runs.csv")
    families = {frozenset(of["variant"]) for _, of in runs.groupby("family")}
    cut = {f"{kind}-{groups}" for groups in (3, 4, 5) for kind in ("uniform", "log")}
    widened = {f"uniform-{groups}-as-log-{groups}" for groups in (3, 4, 5)}
    assert families == {
        frozenset({"dense", "groups-2"} | cut | widened),
        frozenset({"dense-no-shortcut", "uniform-4-no-shortcut", "log-4-no-shortcut"}),
        frozenset({"log-4-grey"}),
    }
    for study in ("resnext-cardinality", "nin-roots", "widen"):  # other keys set their groups and widths
        assert pd.read_csv(RESULTS / study / "runs.csv")["family"].nunique() == 1, study
