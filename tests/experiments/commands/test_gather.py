"""Runs packed without their weights, gathered from elsewhere, and found by their hash in other studies."""

import json
import shutil
import tarfile
import zipfile

import numpy as np
import pytest

from experiments.commands import gather
from experiments.errors import UsageError
from experiments.pipeline import run_study
from experiments.report import summary as report
from experiments.report.records import read_record
from experiments.report.summary import tables_folder
from experiments.report.write_record import write_study_record
from experiments.store.packed import MARK, is_packed, pack
from experiments.study.plan import plan
from small_runs import NAME, SMALL, small

pytestmark = pytest.mark.usefixtures("quick")


def with_diverged(trained, root):
    """The study with one more run, seed 1 of groups-2 diverged instead of done, as ``run`` leaves it."""
    folder = root / NAME
    shutil.copytree(trained, folder)
    (run,) = folder.glob("groups-2-seed1-*")
    result = json.loads((run / "result.json").read_text())
    for path in run.iterdir():
        if path.name not in ("config.json", "checkpoint.pt"):
            path.unlink()
    ended = {"status": "diverged", "reason": "the loss became nan", "epoch": 0}
    kept = ("seed", "dataset", "precision", "config_hash", "data_hash")
    (run / "result.json").write_text(json.dumps(ended | {key: result[key] for key in kept}))
    row = f"groups-2,1,diverged,the loss became nan,{run.name[-8:]}"
    return folder, run, f"variant,seed,status,reason,config_hash\n{row}\n"


def lost(folder):
    record = read_record(NAME, "there", folder)
    assert record is not None
    return record.lost


def packed(trained, folder):
    """Every run of the study, packed into a folder."""
    for run in sorted(trained.glob("*-seed*")):
        pack(run, folder / f"{run.name}.zip", with_arrays="-seed0-" in run.name)
    return folder


def gathered(source, root, *flags):
    gather.main([NAME, f"--from={source}", f"--runs_root={root}", *SMALL, "--seeds=2", *flags])


def texts(folder):
    """The tables, without what was timed here."""
    names = ("runs", "curves", "layers", "notes")
    return {name: (folder / f"{name}.csv").read_text() for name in names}


def values(folder):
    table = report.read_measures(folder)
    return table[table["seed"].notna()].reset_index(drop=True).astype({"seed": int})


def test_a_packed_run_is_small_and_the_same_bytes_each_time(trained, tmp_path):
    first, again = (packed(trained, tmp_path / name) for name in ("first", "again"))
    for path in sorted(first.iterdir()):
        assert is_packed(path)
        assert path.read_bytes() == (again / path.name).read_bytes()
        assert path.stat().st_size < 100_000
        names = zipfile.ZipFile(path).namelist()
        assert "checkpoint.pt" not in names
        assert ("arrays.npz" in names) == ("-seed0-" in path.name)


def test_what_is_gathered_gives_the_tables_of_where_it_was_trained(trained, tmp_path, capsys):
    gathered(packed(trained, tmp_path / "packed"), tmp_path / "runs")
    there = tmp_path / "runs" / NAME
    assert capsys.readouterr().out == f"4 runs gathered into {there}\n"
    assert texts(tables_folder(there)) == texts(tables_folder(trained))
    assert values(there).equals(values(trained))
    ours, theirs = (np.load(tables_folder(folder) / "dense-seed0.npz") for folder in (there, trained))
    assert {name: ours[name].tobytes() for name in ours} == {name: theirs[name].tobytes() for name in theirs}


def test_a_record_is_gathered_whole_with_its_times(trained, tmp_path, capsys):
    write_study_record(trained, tmp_path / "results", tmp_path / "no.md")
    capsys.readouterr()
    record, there = tmp_path / "results" / NAME, tmp_path / "runs" / NAME
    gathered(record, tmp_path / "runs")
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f"4 runs gathered into {there}", f"times are those of {record / 'speed.csv'}"]
    assert report.read_measures(there).equals(report.read_measures(trained))
    gathered(record, tmp_path / "runs")
    assert "times" not in capsys.readouterr().out


@pytest.mark.parametrize("how", ["folder", "packed"])
def test_a_run_that_diverged_is_gathered_and_its_seed_is_lost(trained, tmp_path, capsys, how):
    source, run, missing = with_diverged(trained, tmp_path / "there")
    if how == "packed":
        source = packed(source, tmp_path / "packed")
    gathered(source, tmp_path / "runs")
    there = tmp_path / "runs" / NAME
    assert capsys.readouterr().out.splitlines() == [
        f"4 runs gathered into {there}, of which 1 diverged",
        "diverged: groups-2, seed 1: the loss became nan",
    ]
    assert {path.name for path in (there / run.name).iterdir()} == {"config.json", "result.json", MARK}
    assert (tables_folder(there) / "missing.csv").read_text() == missing
    assert lost(tables_folder(there))["groups-2", 1] == "diverged"
    assert json.loads((tables_folder(there) / "study.json").read_text())["overrides"]["seeds"] == 2
    gathered(source, tmp_path / "runs")
    assert capsys.readouterr().out.count(": doubled: ") == 4
    assert (tables_folder(there) / "missing.csv").read_text() == missing


@pytest.mark.parametrize("hashed", [True, False])
def test_missing_runs_of_a_source_are_kept_until_they_are_there(trained, tmp_path, capsys, hashed):
    source, run, missing = with_diverged(trained, tmp_path / "there")
    shutil.rmtree(run)
    other = "groups-2,0,diverged,of another configuration,00000000\n" if hashed else ""
    foreign = "groups-77,0,diverged,of another study,\n"
    text = missing + other + foreign
    if not hashed:
        text = "\n".join(line.rpartition(",")[0] for line in text.splitlines()) + "\n"
    (tables_folder(source) / "missing.csv").write_text(text)
    there = tables_folder(tmp_path / "runs" / NAME)
    gathered(source, tmp_path / "runs")
    assert (there / "missing.csv").read_text() == missing
    capsys.readouterr()
    gathered(next(trained.glob("dense-seed0-*")), tmp_path / "runs")
    assert "missing: " not in capsys.readouterr().out, "it is named already"
    assert (there / "missing.csv").read_text() == missing
    gathered(trained, tmp_path / "runs")
    assert (there / "missing.csv").read_text() == missing.splitlines()[0] + "\n"


def test_a_damaged_table_of_missing_runs_is_left_out_in_a_line(trained, tmp_path, capsys):
    source, _, missing = with_diverged(trained, tmp_path / "there")
    path = tables_folder(source) / "missing.csv"
    path.write_text(missing.replace(",1,", ",one,"))
    gathered(source, tmp_path / "runs")
    assert f"left out: {path}: damaged: seed: some cells are no finite numbers" in capsys.readouterr().out
    assert (tables_folder(tmp_path / "runs" / NAME) / "missing.csv").read_text() == missing


@pytest.mark.parametrize(
    ("key", "words"),
    [("reason", "damaged: result.json has no reason why the run diverged"), ("config_hash", "damaged: config.json is")],
)
def test_a_diverged_run_with_a_damaged_record_is_left_out(trained, tmp_path, capsys, key, words):
    source, run, _ = with_diverged(trained, tmp_path / "there")
    result = json.loads((run / "result.json").read_text())
    del result[key]
    (run / "result.json").write_text(json.dumps(result))
    gathered(source, tmp_path / "runs")
    out = capsys.readouterr().out
    assert f"left out: {run}: {words}" in out
    assert "missing: groups-2, seed 1" in out


def test_the_record_has_the_runs_that_diverged_and_gives_them_to_who_gathers_it(trained, tmp_path, capsys):
    folder, run, missing = with_diverged(trained, tmp_path / "there")
    gathered(folder, tmp_path / "runs")
    results, there = tmp_path / "results", tmp_path / "runs" / NAME
    write_study_record(there, results, tmp_path / "no.md")
    record = results / NAME
    assert (record / "missing.csv").read_text() == missing
    with zipfile.ZipFile(record / "runs" / f"{run.name}.zip") as archive:
        assert set(archive.namelist()) == {"config.json", "result.json", MARK}
    gathered(record, tmp_path / "again")
    assert ("groups-2", 1) in lost(tables_folder(tmp_path / "again" / NAME))
    shutil.rmtree(there / run.name)
    write_study_record(there, results, tmp_path / "no.md")
    assert (record / "runs" / f"{run.name}.zip").is_file(), "a run whose folder is gone stays packed"
    (record / "runs" / f"{run.name}.zip").unlink()
    with pytest.raises(UsageError, match=rf"missing.csv: {run.name}: not done: config.json is not there: .* first"):
        write_study_record(there, results, tmp_path / "no.md")


@pytest.mark.parametrize("tables", ["without the table", "with a run that failed"])
def test_a_record_keeps_no_row_of_a_run_that_did_not_diverge(trained, tmp_path, capsys, tables):
    folder = tmp_path / "there" / NAME
    shutil.copytree(trained, folder)
    record, head = tmp_path / "results" / NAME, "variant,seed,status,reason,config_hash\n"
    record.mkdir(parents=True)
    (record / "missing.csv").write_text(f"{head}dense,0,diverged,stale,00000000\n")
    if tables == "without the table":
        (tables_folder(folder) / "missing.csv").unlink()
    else:
        (tables_folder(folder) / "missing.csv").write_text(f"{head}dense,2,failed,OSError: full,00000000\n")
    write_study_record(folder, tmp_path / "results", tmp_path / "no.md")
    assert (record / "missing.csv").read_text() == head
    assert ("left out: dense, seed 2: failed: OSError: full" in capsys.readouterr().out) == ("failed" in tables)


def test_damaged_times_of_a_record_are_left_out(trained, tmp_path, capsys):
    write_study_record(trained, tmp_path / "results", tmp_path / "no.md")
    record, there = tmp_path / "results" / NAME, tmp_path / "runs" / NAME
    change = (record / "speed.csv").read_text()[:-9]
    (record / "speed.csv").write_text(change)
    capsys.readouterr()
    gathered(record, tmp_path / "runs")
    assert capsys.readouterr().out.splitlines() == [
        f"4 runs gathered into {there}",
        f"left out: {record / 'speed.csv'}: damaged: its last line is cut off",
    ]
    assert values(there).equals(values(trained))


def test_a_study_goes_on_around_packed_runs(trained, tmp_path, capsys):
    gathered(packed(trained, tmp_path / "packed"), tmp_path / "runs")
    study = small(tmp_path / "runs", "--seeds=3")
    assert run_study(study) == 0
    out = capsys.readouterr().out
    assert "4 of 6 runs done" in out
    assert out.count("(done before)") == 4
    table = report.read_measures(study.folder)
    assert set(table.loc[table["measure"] == "test_accuracy", "seed"]) == {0, 1, 2}


def test_without_weights_nothing_is_measured_anew(trained, tmp_path, capsys):
    gathered(packed(trained, tmp_path / "packed"), tmp_path / "runs")
    assert run_study(small(tmp_path / "runs", "--measures.images=6")) == 0
    said = capsys.readouterr().err.splitlines()
    assert said == [
        "warning: 4 runs were packed without weights and measured otherwise than now: what was measured is kept "
        "(dense, seeds 0, 1; groups-2, seeds 0, 1)"
    ]
    assert values(tmp_path / "runs" / NAME).equals(values(trained))


def test_what_cannot_be_taken_is_said_in_a_line_each(trained, tmp_path, capsys):
    source = packed(trained, tmp_path / "packed")
    first, second, third, fourth = sorted(source.iterdir())
    shutil.copy(first, source / "a-copy.zip")
    content = bytearray(second.read_bytes())
    content[len(content) // 2] ^= 0xFF
    second.write_bytes(content)
    third.write_bytes(b"no archive")
    with zipfile.ZipFile(fourth) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(fourth, "w") as archive:
        for name, text in (files | {MARK: b'{"schema": 99}'}).items():
            archive.writestr(name, text)
    foreign = source / "other"
    shutil.copytree(next(trained.glob("dense-seed1-*")), foreign)
    config = json.loads((foreign / "config.json").read_text())
    (foreign / "config.json").write_text(json.dumps({**config, "seed": 17}))
    gathered(source, tmp_path / "runs")
    lines = capsys.readouterr().out.splitlines()
    left_out = [line for line in lines if line.startswith("left out: ")]
    assert len(left_out) == 5
    for words in (
        f"{second}: damaged: ",
        f"{third}: neither a zip nor a tar archive, or damaged",
        f"{fourth}: packed with schema 99; this version reads schemas 1 and 2",
        f"{foreign}: damaged: config.json is not the configuration",
        f"{first}: doubled: ",
    ):
        assert sum(words in line for line in left_out) == 1, words
    assert f"1 run gathered into {tmp_path / 'runs' / NAME}" in lines
    assert "missing: dense, seed 1" in lines
    assert "missing: groups-2, seeds 0, 1" in lines


@pytest.mark.parametrize(
    ("file", "edit", "reason"),
    [
        ("metrics.jsonl", lambda text: b"[1]\n" * 9, "metrics.jsonl is gone or incomplete"),
        ("result.json", lambda text: json.dumps(json.loads(text) | {"test_accuracy": "high"}).encode(), "no number"),
    ],
)
def test_a_run_with_a_damaged_record_is_left_out_and_not_stored(trained, tmp_path, capsys, file, edit, reason):
    source = tmp_path / "packed"
    packed(trained, source)
    path = next(source.glob("dense-seed1-*"))
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in (files | {file: edit(files[file])}).items():
            archive.writestr(name, text)
    gathered(source, tmp_path / "runs")
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("left out: ")]
    assert line.startswith(f"left out: {path}: damaged: ")
    assert reason in line
    assert len(list((tmp_path / "runs" / NAME).glob("*-seed*"))) == 3


def test_runs_of_another_study_are_foreign(trained, tmp_path, capsys):
    source = packed(trained, tmp_path / "packed")
    with pytest.raises(UsageError, match=r"no run of widen there that has ended \(4 left out\)"):
        gather.main(["widen", f"--from={source}", f"--runs_root={tmp_path / 'runs'}"])
    assert capsys.readouterr().out.count("foreign: no run of widen has the hash") == 4


def test_runs_in_another_precision_are_left_out(trained, tmp_path, capsys):
    source = packed(trained, tmp_path / "packed")
    gathered(sorted(source.iterdir())[0], tmp_path / "runs")
    other = tmp_path / "other"
    shutil.copytree(next(trained.glob("groups-2-seed1-*")), other)
    result = json.loads((other / "result.json").read_text())
    (other / "result.json").write_text(json.dumps({**result, "precision": "bfloat16"}))
    capsys.readouterr()
    gathered(other, tmp_path / "runs")
    assert "trained in bfloat16, the runs of" in capsys.readouterr().out


def test_an_archive_of_a_folder_of_runs_is_gathered_with_its_weights(trained, tmp_path, capsys):
    with tarfile.open(tmp_path / "runs.tar.gz", "w:gz") as archive:
        archive.add(trained, NAME)
    gathered(tmp_path / "runs.tar.gz", tmp_path / "runs")
    assert "4 runs gathered" in capsys.readouterr().out
    for p in plan(small(tmp_path / "runs")):
        assert p.run.load_checkpoint() is not None


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([], "--from=PATH is missing"),
        (["--from=/nowhere"], "--from=/nowhere: no such file or folder"),
        (["--from=."], "no run of quickstart there that has ended"),
    ],
)
def test_bad_sources_are_one_clear_line(tmp_path, monkeypatch, flags, words):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=words):
        gather.main([NAME, *flags])


def test_a_run_of_the_same_hash_in_another_study_is_taken_from_there(trained, tmp_path, capsys):
    shutil.copytree(trained, tmp_path / "another-study")
    study = small(tmp_path)
    assert run_study(study) == 0
    out = capsys.readouterr().out
    assert out.count("(done before)") == 4
    assert f"dense, seed 0: taken from {tmp_path / 'another-study'}" in out
    assert values(study.folder).equals(values(trained))
    assert plan(study)[0].run.load_checkpoint() is not None


def test_runs_with_weights_that_are_not_measured_yet_are_taken_and_said_to_be_so(trained, tmp_path, capsys):
    shutil.copytree(trained, tmp_path / "there")
    for folder in (tmp_path / "there").glob("dense-*"):
        (folder / "measured.json").unlink()
    gathered(tmp_path / "there", tmp_path / "runs")
    out = capsys.readouterr().out
    assert "4 runs gathered" in out
    assert "2 runs with weights are not measured yet: make experiment NAME=quickstart does so" in out
    assert set(values(tmp_path / "runs" / NAME)["variant"]) == {"groups-2"}
