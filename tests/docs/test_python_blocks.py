"""The Python blocks of the pages, run one after the other as a reader would, and the notebook."""

import io
import json
import re
from contextlib import redirect_stdout

import pytest
import torch

from experiments.vision import import_torchvision
from gconv.kernels.choose import forget
from pages import DOCS, ROOT, pages

# Those of CONTRIBUTING.md are files of the reader; tests/test_recipes.py follows them.
WITH_PYTHON = [page for page in pages() if page.blocks("python") and page.name != "CONTRIBUTING.md"]
NUMBER = re.compile(r"-?\d[\d,]*\.?\d*")


@pytest.fixture(autouse=True)
def like_a_reader(tmp_path, monkeypatch):
    import_torchvision()  # pages import it, also with a torch that it was not built for
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))  # for what a page measures
    monkeypatch.chdir(ROOT)
    state = torch.get_rng_state()
    forget()
    yield
    monkeypatch.undo()
    forget()
    torch.set_rng_state(state)


@pytest.mark.parametrize("page", WITH_PYTHON, ids=lambda page: page.name)
def test_blocks_run(page, capsys):
    names: dict[str, object] = {}
    for block in page.blocks("python"):
        exec(compile(block, page.name, "exec"), names)


def test_the_notebook_prints_what_it_shows():
    cells = [cell for cell in json.loads((DOCS / "tour.ipynb").read_text())["cells"] if cell["cell_type"] == "code"]
    names: dict[str, object] = {}
    for cell in cells:
        printed = io.StringIO()
        with redirect_stdout(printed):
            exec(compile("".join(cell["source"]), "tour.ipynb", "exec"), names)
        saved = "".join("".join(output["text"]) for output in cell["outputs"] if output["output_type"] == "stream")
        assert NUMBER.sub("#", printed.getvalue()) == NUMBER.sub("#", saved)
        values = [[float(n.replace(",", "")) for n in NUMBER.findall(text)] for text in (printed.getvalue(), saved)]
        assert values[0] == pytest.approx(values[1], rel=0.05, abs=0.01)  # rounding differs between processors
