"""The recipes of CONTRIBUTING, followed to the letter in a copy of the project."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch

from experiments import data
from experiments.data.sources import SOURCES
from gconv import GroupedConv2d

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"```(\w+)\n# (\S+)\n(.*?)```", re.DOTALL)
# The measures of a small network of two groups, its long table, the figures that draw the new measure; the ledger.
PROGRAM = """
import copy, sys
from contextlib import redirect_stdout
from pathlib import Path
import torch
from analysis.figures.registry import FIGURES
from analysis.figures.saved import Saved
from experiments.__main__ import main
from experiments.data.augment import Views
from experiments.measure.context import prepare
from experiments.measure.options import MeasureOptions
from experiments.measure.registry import MEASURES
from experiments.measure.table import gather
from experiments.models import build_model
from experiments.training.recipe import Recipe
from experiments.training.run_context import RunContext
from tiny_images import tiny_dataset

torch.manual_seed(0)
network = build_model("small", classes=2, groups=2, width=4)
untrained = copy.deepcopy(network)
with torch.no_grad():
    network.conv2.weight[:4] *= 3
run_context = RunContext.of(tiny_dataset(), Views(12, 12), Recipe(device="cpu"))
context = prepare(network, untrained, run_context, MeasureOptions(8, 9, 0, 0))
(measure,) = [measure for measure in MEASURES if measure.__name__ == "measure_growth"]
table = gather(measure(context), "study", "groups-2", 0, context.groups).table
folder = Path(sys.argv[1])
table.to_csv(folder / "measures.csv", index=False)
for figure in FIGURES:
    if figure.draw.__module__ == "analysis.figures.growth":
        figure.draw(Saved(table), folder)
for name, flags in {"claims": [], "explained": ["--explain"]}.items():
    with open(folder / f"{name}.txt", "w", encoding="utf-8") as file, redirect_stdout(file):
        assert main(["claims", *flags, f"--runs_root={folder}"]) == 0
"""


def inserted(text, lines):
    """A text with the ``+`` lines of a diff put between the lines around them, which occur in this order."""
    rows, place = text.splitlines(), 0
    for line, following in zip(lines, [*lines[1:], " "], strict=True):
        if not line.startswith("+"):
            place = rows.index(line[1:], place) + 1
            continue
        if not place:  # the block begins with a new line
            place = rows.index(following[1:])
        rows.insert(place, line[1:])
        place += 1
    return "\n".join(rows) + "\n"


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Files that the program writes in a copy of the project with the blocks that make the measure and the claim."""
    copy, results = tmp_path_factory.mktemp("recipes") / "checkout", tmp_path_factory.mktemp("results")
    for folder in ("analysis", "configs", "experiments", "gconv"):
        shutil.copytree(ROOT / folder, copy / folder)  # and what is compiled of them
    for language, name, content in BLOCK.findall((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")):
        path = copy / name
        if language == "diff":
            path.write_text(inserted(path.read_text(encoding="utf-8"), content.splitlines()), encoding="utf-8")
        elif language == "yaml":
            path.write_text(path.read_text(encoding="utf-8") + "\n" + content, encoding="utf-8")
        elif "growth" in name:
            assert not path.exists(), f"{name} is taken"
            path.write_text(content, encoding="utf-8")
    environment = {"PYTHONPATH": f"{copy}:{ROOT / 'tests'}", "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"}
    command = [sys.executable, "-c", PROGRAM, str(results)]
    ended = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    return results


def test_a_measure_takes_three_files_and_two_registrations(written):
    """In one of two groups of equal filters the weights are tripled: norms 3 and 1, standard deviation ½ of the mean.

    Filters differ before by their initialisation, so the value is near ½; untrained it is near 0.
    """
    table = pd.read_csv(written / "measures.csv", keep_default_na=False)
    values = table[table["layer"] == "conv2"].set_index("null")["value"]
    assert set(table["measure"]) == {"norm_spread"} and set(table["layer"]) == {"conv2", "conv3"}
    assert values[""] == pytest.approx(0.5, abs=0.15)
    assert values["untrained"] < 0.2
    assert {path.name for path in written.iterdir() if path.suffix != ".txt"} == {
        "measures.csv",
        "growth.pdf",
        "growth.png",
    }


def test_a_claim_takes_yaml_alone(written):
    out = (written / "claims.txt").read_text(encoding="utf-8")
    assert "99" in out and "not run" in out
    explained = (written / "explained.txt").read_text(encoding="utf-8")
    assert "Training makes the filter groups of a layer grow unequally." in " ".join(explained.split())


def code_of(path):
    """Names that the block of CONTRIBUTING for this file defines."""
    (content,) = [text for _, name, text in BLOCK.findall((ROOT / "CONTRIBUTING.md").read_text()) if name == path]
    names = {}
    exec(content, names)
    return names


def test_a_model_takes_its_file():
    model = code_of("experiments/models/two.py")["two"](classes=5, groups="log:3", width=8)
    assert model(torch.zeros(2, 3, 16, 16)).shape == (2, 5)
    assert sum(m.weight.numel() for m in model.modules() if isinstance(m, GroupedConv2d)) == 8 * 3 * 25 + 24 * 9


def test_a_dataset_takes_its_file(tmp_path, monkeypatch):
    monkeypatch.setitem(SOURCES, "gratings", code_of("experiments/data/gratings.py")["gratings_source"])
    loaded = data.load("gratings", 8, tmp_path, False)
    assert loaded.classes == ("upright", "flat")
    assert (len(loaded.train.labels), len(loaded.test.labels)) == (2000, 400)
    for label, along in ((0, 0), (1, 1)):  # upright: every row of an image is the same
        pixels = loaded.test.pixels[loaded.test.labels == label]
        assert (pixels == pixels.narrow(1 + along, 0, 1)).all()
