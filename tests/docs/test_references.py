"""Whatever the pages name is there: files, anchors, targets of make, flags, rooms, and what is generated."""

import re
import subprocess

import pandas as pd
import pytest
import yaml

from analysis.tradeoff import tradeoff_table
from experiments.__main__ import main
from experiments.report.claims import BLOCK, judge_record, recorded_page, recorded_verdicts
from experiments.report.marked_text import read_block
from experiments.report.study_report import accuracy_lines
from experiments.report.tables import read_table
from experiments.study.catalogue import study_file, study_names, sweep_names
from pages import DOCS, ROOT, page, pages

FOLDERS = ("configs", "results", "gconv", "analysis", "experiments", "benchmarks", "tests", "docs")
PACKAGES = ("gconv", "analysis", "experiments")
HELPS = (
    ["run", "quickstart"],
    ["run", "alexnet-groups"],
    ["run", "group-parallel"],
    ["sweep", "photos-bayes"],
    ["cost", "alexnet"],
    ["figures", "connections"],
    ["status"],
    ["results"],
    ["gather"],
    ["measure"],
    ["claims"],
    ["verify"],
)
ALL = pytest.mark.parametrize("page", pages(), ids=lambda page: page.name)


def test_the_record_stays_small():
    files = [path for path in (ROOT / "results").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 30e6


@ALL
def test_links_lead_somewhere(page):
    for link in page.links():
        target, _, anchor = link.partition("#")
        if target.startswith(("http:", "https:", "mailto:")):
            continue
        path = (page.path.parent / target).resolve() if target else page.path
        assert path.exists(), f"{page.name}: {link}"
        if anchor:
            other = next(one for one in pages() if one.path == path)
            assert anchor in other.anchors(), f"{page.name}: {link}"


@ALL
def test_files_that_are_named_are_there(page):
    for code in page.code():
        if code.startswith(tuple(f"{folder}/" for folder in FOLDERS)) and not re.search(r"[<*\s]|NAME", code):
            assert (ROOT / code).exists(), f"{page.name}: {code}"


@ALL
def test_targets_of_make_are_there(page):
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for code in page.code():
        if match := re.match(r"make ([a-z0-9-]+)", code):
            assert match[1] in targets, f"{page.name}: {code}"
        if match := re.search(r"\bNAME=([a-z0-9-]+)$", code):
            assert match[1] in (*study_names(), *sweep_names(), "connections"), f"{page.name}: {code}"


def test_flags_are_those_of_a_command(capsys):
    for arguments in HELPS:
        main([*arguments, "--help"])
    known = set(re.findall(r"--[\w.]+", capsys.readouterr().out)) | {"--help"}
    for one in pages():
        for code in [code for code in one.code() if not code.startswith(("srun", "torchrun"))]:
            unknown = set(re.findall(r"(?<![\w-])--[a-z_][\w.]*", code)) - known
            assert not unknown, f"{one.name}: {code}"


def test_the_rooms_are_those_of_the_tree():
    rooms = {
        code
        for line in page("docs/architecture.md").prose().splitlines()
        if line.startswith("| `")
        for code in re.findall(r"`((?:gconv|analysis|experiments)/[\w./]*)`", line.split("|")[1])
    }
    files = subprocess.run(["git", "ls-files", *PACKAGES], cwd=ROOT, capture_output=True, text=True)
    if files.returncode:
        pytest.skip("not a git checkout")
    tree = set()
    for name in files.stdout.splitlines():
        package, first, *more = name.split("/")
        if more:
            tree.add(f"{package}/{first}/")
        elif first != "__init__.py":
            tree.add(f"{package}/{first}")
    assert rooms == tree


def test_the_picture_of_the_rooms_shows_rooms():
    picture = (DOCS / "assets" / "architecture.svg").read_text()
    names = re.findall(r'class="(?:name|sub)"[^>]*>(\w+(?:\.py|/))<', picture)
    assert len(names) > 20
    assert all(any((ROOT / package / name).exists() for package in (*PACKAGES, "")) for name in names)


def test_every_study_is_listed_with_its_question_one_link_from_the_readme():
    assert "(docs/studies.md#all-studies)" in page("README.md").text
    (listing,) = re.findall(r"^## All studies\n(.*?)^## ", page("docs/studies.md").text, re.MULTILINE | re.DOTALL)
    listed = dict(re.findall(r"^- `([\w-]+)`: (.*)$", listing, re.MULTILINE))
    assert listed == {name: yaml.safe_load(study_file(name).read_text())["question"] for name in study_names()}


def test_the_sweeps_are_listed():
    assert set(re.findall(r"^\| `([\w-]+)` \|", page("docs/sweeps.md").text, re.MULTILINE)) == set(sweep_names())


@pytest.fixture(scope="module")
def judged():
    return judge_record()


@pytest.fixture
def verdicts(judged):
    return recorded_verdicts(judged)


def test_the_page_of_claims_is_the_one_that_the_command_writes(judged):
    assert page("docs/claims.md").text == recorded_page(judged) + "\n", "make claims ARGS=--markdown > docs/claims.md"


def test_the_readme_has_the_verdicts_of_the_record(verdicts):
    assert read_block(ROOT / "README.md", BLOCK) == verdicts, "make claims ARGS=--readme"


def test_the_readme_prints_what_the_record_gives_for_three_seeds():
    table = read_table(ROOT / "results" / "quickstart" / "measures.csv.xz")
    printed = accuracy_lines(tradeoff_table(table[table["seed"].isna() | (table["seed"] < 3)]))
    (block,) = page("README.md").blocks("text")
    documented = [line for line in block.splitlines() if line.startswith(("variant ", "dense ", "groups-", "log-"))]
    assert len(documented) == 4
    assert set(documented) <= set(printed)


def test_the_caption_of_the_readme_is_what_the_record_found(verdicts):
    assert "So does a narrower dense network of [equal cost](results/alexnet-groups/equal_cost.csv)" in " ".join(
        page("README.md").text.split()
    )
    assert re.search(r"^\|12\|Two groups match dense accuracy\|supported\|", verdicts, re.MULTILINE)
    table = pd.read_csv(ROOT / "results" / "alexnet-groups" / "equal_cost.csv")
    against = table[table["variant"] == "dense-as-groups-2"].groupby("baseline")["p_equivalent"].max()
    assert set(against.index) == {"dense", "groups-2"}
    assert (against < 0.05).all(), "within a point of both"


def test_the_readme_is_short():
    assert len(page("README.md").text.split()) <= 600
