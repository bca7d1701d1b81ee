"""Results name their images for what they are, not by a path of the machine that had them."""

import pandas as pd
import pytest

from experiments.errors import UsageError
from experiments.report import data_names as names
from experiments.report.data_names import data_names
from experiments.report.records import RESULTS, where_measured

RUNS = sorted(RESULTS.glob("*/runs.csv"))


@pytest.fixture(autouse=True)
def read_again():
    yield
    names._named.cache_clear()


def test_a_folder_has_the_name_of_its_images_and_an_unknown_one_keeps_its_own():
    runs = pd.DataFrame(
        {
            "dataset": ["folder:PATH", "folder:PATH", "folder:PATH", "photos", "noise"],
            "data_hash": ["15b015f7c7d7605b", "15b015f7c7d7605b", "0123456789abcdef", "46111302b9bf2687", None],
        }
    )
    assert list(data_names(runs)) == ["imagenette", "folder:PATH", "photos", "noise"]
    assert "ImageNet" in data_names(runs)["imagenette"]
    assert data_names(runs)["photos"] == ""
    assert list(data_names(runs.drop(columns="data_hash"))) == ["folder:PATH", "photos", "noise"]


@pytest.mark.parametrize("path", RUNS, ids=[path.parent.name for path in RUNS])
def test_every_recorded_study_names_its_images(path):
    assert "folder:PATH" not in data_names(pd.read_csv(path, dtype=str))


def test_the_record_names_each_device_once_and_images_by_their_content(tmp_path):
    for study, device, data in (("a", "Abacus, 1 threads", "1"), ("b", "Abacus, 2 threads", "15b015f7c7d7605b")):
        (tmp_path / study).mkdir()
        table = pd.DataFrame({"variant": ["v"], "device": [device], "dataset": ["folder:PATH"], "data_hash": [data]})
        table.to_csv(tmp_path / study / "runs.csv", index=False)
    assert where_measured(["a", "b", "none"], tmp_path) == (["Abacus"], ["folder:PATH", "imagenette"])


@pytest.mark.parametrize(
    "text",
    [
        "- a",
        "a: {name: b}",
        "a: b",
        "a: 5",
        "a: {name: null, images: b}",
        "[]",
        "{",
        "",
        "a: {name: b, images: \udcff}",
    ],
)
def test_a_damaged_list_of_names_is_one_line(tmp_path, monkeypatch, text):
    monkeypatch.setattr(names, "NAMED", tmp_path / "datasets.yaml")
    names._named.cache_clear()
    (tmp_path / "datasets.yaml").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(UsageError, match=r"^[^\n]*datasets\.yaml: write [^\n]*what they are$"):
        data_names(pd.DataFrame({"dataset": ["folder:PATH"], "data_hash": ["a"]}))


def test_without_the_list_a_folder_keeps_its_name(tmp_path, monkeypatch):
    monkeypatch.setattr(names, "NAMED", tmp_path / "datasets.yaml")
    names._named.cache_clear()
    assert list(data_names(pd.DataFrame({"dataset": ["folder:PATH"], "data_hash": ["a"]}))) == ["folder:PATH"]
