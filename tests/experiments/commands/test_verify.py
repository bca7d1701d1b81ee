"""The record is recomputed from its packed runs, and what was edited by hand is named."""

import csv
import json
import lzma
import shutil
import zipfile
from types import SimpleNamespace

import pytest

from experiments.commands import verify
from experiments.errors import UsageError
from experiments.report.retrain import compare, next_seed_interval
from experiments.report.write_record import PAGE, write_study_record
from experiments.store.packed import pack
from experiments.store.runs import config_hash
from small_runs import NAME

pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture
def home(trained, tmp_path, monkeypatch):
    """A checkout with the record of the study, and with its table in a page."""
    (tmp_path / "docs").mkdir()
    (tmp_path / PAGE).write_text(f"# Title\n<!-- results {NAME} -->\n<!-- end results {NAME} -->\nmore\n")
    write_study_record(trained, tmp_path / "results", tmp_path / PAGE)
    monkeypatch.setattr("experiments.commands.verify.HOME", tmp_path)
    return tmp_path


def change(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_what_was_kept_is_what_the_packed_runs_give(home, capsys):
    assert verify.main([NAME]) == 0
    out, err = capsys.readouterr()
    assert (out, err) == (f"{NAME}: no difference; recomputed from 4 packed runs\n", "")
    assert len(list((home / "results" / NAME / "runs").glob("*.zip"))) == 4


def test_numbers_that_were_edited_by_hand_are_named_with_file_and_line(home, capsys):
    expected = set()
    for name in ("measures.csv.xz", "runs.csv", "curves.csv", "layers.csv", "tradeoff.csv"):
        path = home / "results" / NAME / name
        opened = lzma.open if path.suffix == ".xz" else open
        with opened(path, "rt") as file:
            head, first, *rest = file.read().splitlines()
        column, number = next((k, c) for k, c in enumerate(first.split(",")) if c.replace(".", "").isdigit())
        cells = first.split(",")
        cells[column] = "777"
        with opened(path, "wt") as file:
            file.write("\n".join([head, ",".join(cells), *rest]) + "\n")
        expected.add(f"error: {path}: line 2, {head.split(',')[column]}: 777; the runs give {number}")
    assert verify.main([NAME]) == 1
    assert expected <= set(capsys.readouterr().err.splitlines())


@pytest.mark.parametrize(
    "change_row", [lambda row: row.rpartition(",")[0], lambda row: f"{row},777"], ids=["cut", "more"]
)
def test_a_row_with_other_cells_is_named(home, change_row, capsys):
    path = home / "results" / NAME / "curves.csv"
    head, *rows = path.read_text().splitlines()
    path.write_text("\n".join([head, *map(change_row, rows)]) + "\n")
    assert verify.main([NAME]) == 1
    wrong = len(change_row(rows[0]).split(","))
    assert f"error: {path}: line 2: has {wrong} cells; the runs give {len(head.split(','))}" in capsys.readouterr().err


@pytest.mark.parametrize("missing", ["run", "hash"])
def test_a_packed_run_that_is_gone_is_named(home, missing, capsys):
    record = home / "results" / NAME
    packed = min((record / "runs").glob("*.zip"))
    if missing == "run":
        packed.unlink()
    else:
        change(record / "runs.csv", packed.stem[-8:], "")
    assert verify.main([NAME]) == 1
    what = packed.stem[-8:] if missing == "run" else "an empty cell"
    start = f"error: {record / 'runs.csv'}: damaged: {what} is the hash of no packed run"
    assert capsys.readouterr().err.startswith(start)


@pytest.fixture
def diverged(home):
    """The name of a run of the record that diverged: seed 2 of dense, with the configuration of seed 0."""
    record = home / "results" / NAME
    (first,) = (record / "runs").glob("dense-seed0-*.zip")
    with zipfile.ZipFile(first) as archive:
        config, result = (json.loads(archive.read(name)) for name in ("config.json", "result.json"))
    config["seed"] = 2
    digest = config_hash({key: value for key, value in config.items() if key != "variant"})
    folder = home / f"dense-seed2-{digest}"
    folder.mkdir()
    result = {"status": "diverged", "reason": "the loss became nan", "seed": 2, "config_hash": digest}
    for name, content in (("config.json", config), ("result.json", result)):
        (folder / name).write_text(json.dumps(content))
    pack(folder, record / "runs" / f"{folder.name}.zip", with_arrays=False)
    with open(record / "missing.csv", "a", encoding="utf-8") as file:
        file.write(f"dense,2,diverged,the loss became nan,{digest}\n")
    return folder.name


def test_a_run_that_diverged_is_recomputed_too(home, diverged, capsys):
    assert verify.main([NAME]) == 0
    assert capsys.readouterr().out == f"{NAME}: no difference; recomputed from 5 packed runs\n"


@pytest.mark.parametrize("row", ["dense,0,diverged,invented,", "log-4,7,diverged,invented,00000000", "x,1,failed,y,"])
def test_an_invented_run_that_diverged_is_a_difference(home, row, capsys):
    path = home / "results" / NAME / "missing.csv"
    path.write_text(f"{path.read_text()}{row}\n")
    assert verify.main([NAME]) == 1
    assert capsys.readouterr().err == f"error: {path}: has 1 rows, and the runs give 0\n"


def test_a_run_that_diverged_and_is_left_out_is_a_difference(home, diverged, capsys):
    path = home / "results" / NAME / "missing.csv"
    path.write_text(path.read_text().splitlines()[0] + "\n")
    assert verify.main([NAME]) == 1
    assert capsys.readouterr().err == f"error: {path}: has 0 rows, and the runs give 1\n"


def test_a_packed_run_without_a_row_and_a_row_of_one_that_diverged_are_named(home, diverged, capsys):
    path = home / "results" / NAME / "runs.csv"
    whole = path.read_text()
    head, first, *rest = whole.splitlines()
    digest = next(csv.DictReader([head, first]))["config_hash"]
    path.write_text("\n".join([head, *rest]) + "\n")
    assert verify.main([NAME]) == 1
    (packed,) = path.parent.glob(f"runs/*-{digest}.zip")
    words = f"damaged: no row has the hash of {packed.name}, which is done"
    assert capsys.readouterr().err == f"error: {path}: {words}\n"
    path.write_text(whole.replace(digest, diverged[-8:], 1))
    assert verify.main([NAME]) == 1
    words = f"damaged: {diverged[-8:]} is the hash of a run that diverged"
    assert capsys.readouterr().err == f"error: {path}: {words}\n"


def test_a_table_that_is_no_text_is_named(home, capsys):
    path = home / "results" / NAME / "measures.csv.xz"
    path.write_bytes(lzma.compress(b"study,\xff\n"))
    assert verify.main([NAME]) == 1
    assert capsys.readouterr().err.startswith(f"error: {path}: damaged: 'utf-8' codec can't decode")


@pytest.mark.parametrize(
    ("edited", "old", "new", "words"),
    [
        ("results/{}/study.json", b'"overrides": {', b'"overrides": 4, "more": {', "overrides 4: not keys and values"),
        ("results/{}/summary.txt", b"n=2", b"n=\xff", "'utf-8' codec can't decode byte 0xff"),
        (str(PAGE), b"more", b"\xff", "no UTF-8 text: 'utf-8' codec can't decode byte 0xff"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(home, edited, old, new, words, capsys):
    path = home / edited.format(NAME)
    content = path.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new, 1))
    assert verify.main([NAME]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {path}: ")
    assert words in line


def test_a_doubled_row_of_the_runs_is_named(home, capsys):
    path = home / "results" / NAME / "runs.csv"
    head, first, *rest = path.read_text().splitlines()
    path.write_text("\n".join([head, first, first, *rest]) + "\n")
    twice, *_ = csv.DictReader([head, first])
    assert verify.main([NAME]) == 1
    out, err = capsys.readouterr()
    assert err == f"error: {path}: damaged: two rows have the hash {twice['config_hash']}\n"
    assert out == f"{NAME}: 1 difference\n"


@pytest.mark.parametrize(
    ("cell", "words"),
    [
        (",foo,7,", "groups foo: not as 4, log:4 or 8,4,4"),
        (",4,inf,", "value: some cells are no finite numbers"),
    ],
)
def test_cells_that_no_study_writes_are_named_where_no_runs_are_packed(home, cell, words, capsys):
    record = home / "results" / NAME
    shutil.rmtree(record / "runs")
    path = record / "measures.csv.xz"
    rows = lzma.decompress(path.read_bytes()).decode()
    path.write_bytes(lzma.compress(f"{rows}{NAME},dense,0.0,,macs,{cell}\n".encode()))
    assert verify.main([NAME]) == 1
    assert capsys.readouterr().err == f"error: {path}: damaged: {words}\n"


def test_a_damaged_table_of_the_ledger_is_one_difference_of_the_verdicts(home, monkeypatch, capsys):
    shutil.copytree(home / "results" / NAME, home / "ledger" / "widen")
    path = home / "ledger" / "widen" / "measures.csv.xz"
    path.write_bytes(path.read_bytes()[:99])
    monkeypatch.setattr("experiments.report.claims.RESULTS", home / "ledger")
    assert verify.main([]) == 1
    out, err = capsys.readouterr()
    assert err.splitlines()[-1].startswith(f"error: {path}: damaged: ")
    assert out.splitlines()[-1] == "verdicts: 1 difference"


def test_nothing_is_recorded_from_a_run_with_damaged_arrays(home, trained, tmp_path):
    folder = tmp_path / "runs" / NAME
    shutil.copytree(trained, folder)
    (arrays,) = folder.glob("dense-seed0-*/arrays.npz")
    arrays.write_bytes(arrays.read_bytes()[:-200])
    before = {path: path.read_bytes() for path in home.rglob("*") if path.is_file()}
    with pytest.raises(UsageError, match=rf"{arrays}: damaged: "):
        write_study_record(folder, home / "results", home / PAGE)
    assert before == {path: path.read_bytes() for path in home.rglob("*") if path.is_file()}


def test_an_edited_text_is_named_with_its_line(home, capsys):
    change(home / PAGE, "| groups-2 | ", "| groups-2 | 9")
    change(home / "results" / NAME / "summary.txt", "n=2", "n=8")
    assert verify.main([NAME]) == 1
    err = capsys.readouterr().err
    assert f"{home / PAGE}: line 6: 9" in err
    assert f"{home / 'results' / NAME / 'summary.txt'}: line 4: n=8; the runs give n=2" in err


@pytest.mark.parametrize("mark", [f"<!-- results {NAME} -->\n", f"<!-- end results {NAME} -->\n"])
def test_a_page_without_the_block_of_the_study_is_a_difference(home, mark, capsys):
    change(home / PAGE, mark, "")
    assert verify.main([NAME]) == 1
    words = f"has no lines <!-- results {NAME} --> and <!-- end results {NAME} -->"
    assert capsys.readouterr().err == f"error: {home / PAGE}: {words}\n"


def test_a_page_that_is_gone_is_a_difference(home, capsys):
    (home / PAGE).unlink()
    assert verify.main([NAME]) == 1
    assert capsys.readouterr().err == f"error: {home / PAGE}: No such file or directory\n"


@pytest.mark.parametrize("readme", ["without marks", "gone"])
def test_a_readme_without_the_verdicts_is_a_difference(home, readme, monkeypatch, capsys):
    path = home / "README.md"
    if readme == "without marks":
        path.write_text("# Title\n")
    monkeypatch.setattr(verify, "README", path)
    monkeypatch.setattr(verify, "kind_of", lambda name: SimpleNamespace(verify=lambda *_: ([], "")))
    assert verify.main([]) == 1
    words = (
        "No such file or directory" if readme == "gone" else "has no lines <!-- verdicts --> and <!-- end verdicts -->"
    )
    assert capsys.readouterr().err == f"error: {path}: {words}\n"


def test_the_record_keeps_a_run_whose_folder_is_gone_and_wants_every_other(home, trained, tmp_path):
    folder = tmp_path / "runs" / NAME
    shutil.copytree(trained, folder)
    record = home / "results" / NAME
    first, second = sorted(path.name for path in (record / "runs").glob("*.zip"))[:2]
    shutil.rmtree(folder / first.removesuffix(".zip"))
    write_study_record(folder, home / "results", home / PAGE)
    assert verify.main([NAME]) == 0
    shutil.rmtree(folder / second.removesuffix(".zip"))
    (record / "runs" / second).unlink()
    before = {path: path.read_bytes() for path in home.rglob("*") if path.is_file()}
    with pytest.raises(UsageError, match=f"{second.removesuffix('.zip')} is not there, or not measured"):
        write_study_record(folder, home / "results", home / PAGE)
    assert before == {path: path.read_bytes() for path in home.rglob("*") if path.is_file()}


def test_without_packed_runs_the_derived_tables_are_verified_alone(home, capsys):
    shutil.rmtree(home / "results" / NAME / "runs")
    assert verify.main([NAME]) == 0
    assert "recomputed from measures.csv alone, since no runs are packed" in capsys.readouterr().out


def test_a_damaged_packed_run_is_named(home, capsys):
    path = next((home / "results" / NAME / "runs").glob("*.zip"))
    path.write_bytes(path.read_bytes()[:-40])
    assert verify.main([NAME]) == 1
    assert capsys.readouterr().err.startswith(f"error: {path}: damaged: ")


def test_a_run_of_another_study_in_the_record_is_packed_once(home, trained):
    shutil.copytree(trained, home / "again" / "widen")
    write_study_record(home / "again" / "widen", home / "results", home / "no.md")
    assert not list((home / "results" / "widen").glob("runs/*.zip"))


def test_a_retrained_run_has_the_bits_that_were_recorded(home, capsys):
    with pytest.raises(UsageError, match=r"unknown key recipe\.lrr"):
        verify.main([NAME, "--retrain", "--recipe.lrr=1"])
    assert verify.main([NAME, "--retrain"]) == 0
    assert "the same bits" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "contradicted", "words"),
    [
        ({}, False, "the same bits"),
        ({"torch": "9", "kernels": "other"}, False, "the same bits"),
        ({"test_loss": 0.4}, True, "test_loss 0.4, recorded 0.5, on the same platform"),
        ({"test_loss": 0.4, "kernels": "other"}, False, "expected in [0.4032, 1.3968], with other kernels"),
        ({"test_accuracy": 0.3, "kernels": "other"}, True, "accuracy 0.3000, another seed is expected in"),
        ({"test_loss": 0.4, "device": "other", "kernels": "other"}, False, "on another platform"),
    ],
)
def test_equal_bits_are_expected_of_the_same_kernels_on_the_same_platform(changes, contradicted, words):
    recorded = {"device": "d", "precision": "float32", "torch": "2", "kernels": "k", "test_loss": 0.5, "seconds": 3.0}
    recorded |= {"test_accuracy": 0.9}
    is_contradicted, comparison = compare(recorded | {"seconds": 9.0} | changes, recorded, [0.8, 0.9, 1.0])
    assert (is_contradicted, words in comparison) == (contradicted, True), comparison


def test_another_seed_is_expected_in_a_known_interval():
    low, high = next_seed_interval([0.8, 0.9, 1.0])  # sd 0.1, t(2, 97.5%) = 4.3027
    assert (low, high) == pytest.approx((0.9 - 0.49683, 0.9 + 0.49683), abs=1e-4)
    assert next_seed_interval([0.8, 0.9]) == (float("-inf"), float("inf"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nothing"], "NAME=nothing: no such study"),
        (["widen"], "has no measures.csv"),
        ([NAME, "--seeds=1"], "--seeds=1: says how to train again; give --retrain too"),
        ([NAME, "widen"], "one study at a time"),
    ],
)
def test_wrong_arguments_are_one_clear_line(home, arguments, words):
    with pytest.raises(UsageError, match=words):
        verify.main(arguments)
