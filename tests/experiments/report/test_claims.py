"""The ledger as it ships, the ``claims`` command, and what it says to a ledger that cannot be read."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from scipy import stats

from analysis.claims import judge_claims
from analysis.effects import Metric, Term
from experiments.errors import UsageError
from experiments.report import claims as command
from experiments.report.claims import print_claims
from experiments.report.claims_page import read_rates, write_page
from experiments.report.ledger import LEDGER, read_claims
from experiments.report.tables import read_table
from experiments.report.verdict_table import quantity
from experiments.study.catalogue import CONFIGS, study_file, study_names

CLAIMS = read_claims(LEDGER)


def variants(claim, test):
    terms = [*test.metric.of, *test.metric.minus]
    names = test.metric.over or {"": 0}
    return {variant.replace("{}", name) for term in terms for variant in term.variants for name in names}


def test_the_ledger_is_no_study():
    assert "claims" not in study_names()


def test_the_claims_stand_in_the_order_of_their_numbers():
    assert [claim.number for claim in CLAIMS] == list(range(1, len(CLAIMS) + 1))


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: str(claim.number))
def test_every_variant_of_a_claim_is_one_of_its_studies_or_the_study_is_announced(claim):
    head = LEDGER.read_text().split("\nclaims:")[0]
    for study in claim.studies:
        if study not in study_names():
            assert study in head
            continue
        known = yaml.safe_load(study_file(study).read_text())["variants"]
        for test in claim.tests:
            assert variants(claim, test) <= set(known), study


def test_every_measure_of_a_claim_is_taken_today_or_announced_with_its_meaning():
    table = read_table(CONFIGS.parent / "results" / "quickstart" / "measures.csv.xz")
    head = LEDGER.read_text().split("\nclaims:")[0]
    for claim in CLAIMS:
        for test in claim.tests:
            for term in (*test.metric.of, *test.metric.minus):
                assert term.measure in set(table["measure"]) or re.search(rf"\b{term.measure}\b", head), term.measure


def write_study(folder: Path, accuracy: dict[str, list[float]], parameters: dict[str, int]) -> None:
    rows = [
        {"variant": v, "seed": s, "measure": m, "value": x}
        for v, values in accuracy.items()
        for s, value in enumerate(values)
        for m, x in (("test_accuracy", value), ("parameters", parameters[v]))
    ]
    table = pd.DataFrame(rows).assign(study=folder.name, layer="", null="", groups="", unit="")
    (folder / "tables").mkdir(parents=True)
    table.to_csv(folder / "tables" / "measures.csv", index=False)
    runs = {"device": "abacus", "precision": "float32", "torch": "2", "dataset": "d", "commit": "c", "classes": 10}
    rows = [{"variant": v, "seed": s, "test_images": 10_000, **runs} for v in accuracy for s in range(len(accuracy[v]))]
    pd.DataFrame(rows).to_csv(folder / "tables" / "runs.csv", index=False)


def planted_nin(folder: Path, loss: float, seeds: int = 8) -> None:
    rng = np.random.default_rng(1)
    orig = 0.92 + rng.normal(0, 0.001, seeds)
    write_study(
        folder / "nin-roots",
        {"orig": list(orig), "root-8": list(orig - loss + rng.normal(0, 0.001, seeds))},
        {"orig": 966_986, "root-8": 314_954},
    )


def ledger(capsys, *flags):
    print_claims(["--json", *flags])
    return {claim["number"]: claim for claim in json.loads(capsys.readouterr().out)}


@pytest.mark.usefixtures("nothing_recorded")
@pytest.mark.parametrize(("loss", "verdict"), [(0.0, "supported"), (0.02, "contradicted")])
def test_what_is_planted_in_the_tables_is_what_the_ledger_says(tmp_path, capsys, loss, verdict):
    planted_nin(tmp_path, loss)
    ledger_rows = ledger(capsys, f"--runs_root={tmp_path}")
    assert (ledger_rows[14]["verdict"], ledger_rows[14]["n"], ledger_rows[14]["study"]) == (
        verdict,
        8,
        "nin-roots",
    )
    assert ledger_rows[14]["read_from"] == str(tmp_path)
    assert ledger_rows[14]["effect"] == pytest.approx(-loss, abs=0.001)
    assert "abacus" in ledger_rows[14]["hardware"]
    assert ledger_rows[14]["q"] >= ledger_rows[14]["p"]
    assert ledger_rows[5]["verdict"] == "not run"
    assert "no variant root-4" in ledger_rows[5]["note"]


@pytest.fixture
def nothing_recorded(tmp_path, monkeypatch):
    monkeypatch.setattr(command, "RESULTS", tmp_path / "nothing")


@pytest.fixture
def one_study_recorded(tmp_path, monkeypatch):
    (tmp_path / "record").mkdir()
    (tmp_path / "record" / "quickstart").symlink_to(command.RESULTS / "quickstart")
    monkeypatch.setattr(command, "RESULTS", tmp_path / "record")


@pytest.mark.usefixtures("one_study_recorded")
def test_results_serve_where_there_are_no_runs(tmp_path, capsys):
    ledger_rows = ledger(capsys, f"--runs_root={tmp_path}")
    assert {claim["read_from"] for claim in ledger_rows.values() if claim["effect"] is not None} == {"results"}


@pytest.mark.usefixtures("nothing_recorded")
def test_a_claim_without_runs_and_results_names_the_command_that_tests_it(tmp_path, capsys):
    ledger_rows = ledger(capsys, f"--runs_root={tmp_path}")
    assert {claim["verdict"] for claim in ledger_rows.values()} == {"not run"}
    assert ledger_rows[14]["command"] == "make experiment NAME=nin-roots"
    assert ledger_rows[14]["note"] == "nin-roots has not been run"
    assert command.command(CLAIMS[25]) == "make experiment NAME=group-parallel"
    assert "configs/unwritten.yaml" in command.command(replace(CLAIMS[25], studies=("unwritten",)))


@pytest.mark.usefixtures("nothing_recorded")
def test_the_ledger_fits_120_columns_and_counts_its_verdicts(tmp_path, capsys):
    planted_nin(tmp_path, 0.02)
    print_claims([f"--runs_root={tmp_path}"])
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 120
    table = text.split("\n\n")[0]
    verdict_of = dict(re.findall(r"(?m)^ ?(\d+) (supported|contradicted|inconclusive|holds by|not run)", table))
    assert len(verdict_of) == len(CLAIMS)
    verdicts = ("supported", "contradicted", "inconclusive", "holds by construction", "not run")
    counts = re.search(", ".join(rf"(\d+) {verdict}" for verdict in verdicts), text)
    assert counts is not None
    assert [int(n) for n in counts.groups()] == [
        list(verdict_of.values()).count(v.removesuffix(" construction")) for v in verdicts
    ]
    assert verdict_of["14"] == "contradicted"
    assert "abacus" in text
    assert "make experiment NAME=resnext-cardinality" in text


@pytest.mark.usefixtures("nothing_recorded")
def test_explain_states_the_rule_once_and_every_claim_with_source_and_test(capsys):
    print_claims(["--explain"])
    text = capsys.readouterr().out
    assert text.count("fewer than 6 seeds have a value") == 1
    assert text.count("\nsource     ") == text.count("\ncontradict ") == len(CLAIMS)
    assert "within 0 ± 0.01" in text
    assert max(map(len, text.splitlines())) <= 120


@pytest.mark.usefixtures("one_study_recorded")
def test_the_ledger_is_drawn_on_request(tmp_path, capsys):
    print_claims(["--figure", f"--runs_root={tmp_path}"])
    drawn = str(tmp_path / "figures" / "ledger.png")
    assert drawn in capsys.readouterr().out.splitlines()


def test_the_page_shows_every_claim_with_its_verdict_and_what_decides(tmp_path, capsys, monkeypatch):
    """Root-8 loses .05 ± .001 of accuracy where .005 matters, and has a third of the parameters: contradicted."""
    planted_nin(tmp_path / "runs", 0.05)
    (tmp_path / "runs" / "nin-roots" / "tables").rename(tmp_path / "nin-roots")
    monkeypatch.setattr(command, "RESULTS", tmp_path)
    print_claims(["--markdown"])
    page = capsys.readouterr().out
    rows = [line.split("|")[1:-1] for line in page.splitlines() if re.match(r"\|\d", line)]
    assert [int(row[0]) for row in rows] == list(range(1, len(CLAIMS) + 1))
    _, _, verdict, effect, unit, claimed, null, n, _, needs, study = rows[13]
    assert (verdict, unit, claimed, null, n, needs) == (
        "contradicted",
        "accuracy",
        "within 0 ± 0.005",
        "`orig`",
        "8",
        "",
    )
    assert float(effect.split()[0]) == pytest.approx(-0.05, abs=0.001)
    assert study == "nin-roots"
    assert {row[2] for row in (rows[0], *rows[16:])} == {"not run"}
    assert page.count("\n- verdict: ") == len(CLAIMS)


RATES = """\
kind,claim,part,runs,studies,seeds,effect,sd,matters,part_alone,alone,ledger,power
smooth,2,1,50,400,8,0.01,0.04,0.02,0.1,0.03,0,0.21
smooth,2,2,50,400,8,0.01,0.01,0.02,0.1,0.03,0,0.21
grey,2,1,50,400,8,0.01,0.02,0.02,0.1,0.01,0,0.44
grey,2,2,50,400,8,0.01,0.01,0.02,0.1,0.01,0,0.44
planted,2,1,50,400,8,0.01,0.02,0.02,1,1,1,0.4
grey,8,1,50,400,8,0,0,0.15,0,0,0,0
accuracy,13,1,20000,400,8,0,0.012,0.01,0.02,0.02,0,0.53
accuracy,14,1,20000,400,8,0,0.012,0.007,0.02,0.04,0,0.99
"""


def t_test_power(effect, n):
    """Power of a one-sided t test at 2.5%, less the 2.5% in which an effect of just what matters seems too small."""
    return stats.nct.sf(stats.t.isf(0.025, n - 1), n - 1, effect * np.sqrt(n)) - 0.025


def page_of(tmp_path, numbers):
    path = tmp_path / "rates.csv"
    path.write_text(RATES)
    claims = [claim for claim in CLAIMS if claim.number in numbers]
    page = write_page(claims, judge_claims(claims, []), read_rates(path))
    rows = [[cell.strip() for cell in line.split(" | ")] for line in page.splitlines() if re.match(r"\| \d", line)]
    return page, {int(row[0].strip("| ")): [cell.strip("| ") for cell in row[4:]] for row in rows}


def test_the_table_of_claims_has_seeds_wrong_verdicts_and_power_of_each_kind(tmp_path):
    """Seeds by hand: one-sided t tests of 80% power, 2.5% + 2.5%, at effect / SD of .02 / .04 and of .02 / .02."""
    page, table = page_of(tmp_path, (2, 8, 13, 14, 25))
    seeds, wrong, power = table[2]
    assert seeds.startswith("11 (")  # of the pilot, in the ledger
    least, most = map(int, re.findall(r"\((\d+)–(\d+)\)", seeds)[0])
    assert t_test_power(1.0, least) >= 0.8 > t_test_power(1.0, least - 1)
    assert t_test_power(0.5, most) >= 0.8 > t_test_power(0.5, most - 1)
    assert (wrong, power) == ("3 · 1", "21–44")
    assert table[8] == ["41", "0", "—"]  # equal values, no test: no power to speak of
    assert table[13] == ["15", "2", "53"]
    assert table[14][1:] == ["—", "—"]  # what matters has changed since the simulation
    assert table[25] == ["—", "—", "—"]
    limits = " ".join(page[page.index("## Limits") : page.index("## Each claim")].split())
    assert f"2 (44%; seeds: {seeds})" in limits
    assert "in more than 3.0% of the studies (claim 2)" in limits
    assert "50 simulated runs" in limits


def test_rates_that_are_not_there_or_too_old_are_one_line(tmp_path):
    with pytest.raises(UsageError, match=r"--markdown needs .*rates\.csv.*benchmarks\.null_studies.* writes it"):
        read_rates(tmp_path / "rates.csv")
    (tmp_path / "rates.csv").write_text("kind,claim\nsmooth,2\n")
    with pytest.raises(UsageError, match=r"rates\.csv has no column part, runs"):
        read_rates(tmp_path / "rates.csv")


def test_every_claim_says_what_would_contradict_it():
    assert all(len(claim.contradicts.split()) >= 8 for claim in CLAIMS)


def test_every_claim_has_a_short_name_of_its_own():
    names = [claim.short for claim in CLAIMS]
    assert len(set(names)) == len(names)
    assert all(len(name.split()) <= 8 and len(name) <= 48 and name[-1] != "." for name in names)


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UsageError, match=r"--runs_root=.*nowhere: no such folder"):
        print_claims([f"--runs_root={tmp_path / 'nowhere'}"])


def test_an_unknown_flag_is_named():
    flags = "--json, --explain, --figure, --markdown, --readme, --trials, --runs_root=DIR$"
    with pytest.raises(UsageError, match=f"claims: unknown flag --yaml; there are: {flags}"):
        print_claims(["--yaml"])


TERM = {"measure": "m", "variant": "a"}
TEST = {"kind": "difference", "of": TERM, "direction": "greater", "matters": 1}
CLAIM = {
    "number": 3,
    "short": "n",
    "claim": "c",
    "source": "s",
    "against": "a",
    "contradicts": "x",
    "studies": ["quickstart"],
    "published": "",
    "tests": [TEST],
}


def read(tmp_path, content):
    path = tmp_path / "configs" / "claims.yaml"
    path.parent.mkdir()
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False))
    return read_claims(path)


def test_the_smallest_claim_is_read(tmp_path):
    (claim,) = read(tmp_path, {"claims": [CLAIM]})
    assert (claim.number, claim.studies, claim.tests[0].than) == (3, ("quickstart",), 0)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"number": "three"}, ["place 1", "'three'", "number"]),
        ({"sorce": "s"}, ["claim 3", "sorce", "did you mean source"]),
        ({"claim": 7}, ["claim 3", "claim: 7", "text"]),
        ({"source": ""}, ["claim 3", "source", "text"]),
        ({"studies": []}, ["claim 3", "studies", "names"]),
        ({"tests": []}, ["claim 3", "tests", "list of tests"]),
        ({"tests": ["x"]}, ["claim 3", "tests[0]", "'x'", "mapping"]),
        (
            {"tests": [TEST, {**TEST, "direction": "up"}]},
            ["tests[1], direction", "'up'", "greater, less, within, no_greater"],
        ),
        ({"tests": [{**TEST, "kind": "quotient"}]}, ["tests[0], kind", "quotient", "ratio"]),
        ({"tests": [{**TEST, "matters": 0}]}, ["tests[0], matters", "above 0"]),
        ({"tests": [{**TEST, "matters": "half"}]}, ["tests[0], matters", "'half'", "number"]),
        ({"tests": [{**TEST, "of": {"measure": "m"}}]}, ["tests[0], of", "variant is missing"]),
        ({"tests": [{**TEST, "of": {**TERM, "null": "untrained"}}]}, ["tests[0], of", "unknown key null", "against"]),
        ({"tests": [{**TEST, "of": {**TERM, "variant": [1]}}]}, ["tests[0], of, variant", "[1]", "names"]),
        ({"tests": [{**TEST, "of": []}]}, ["tests[0], of", "at least one term"]),
        ({"tests": [{**TEST, "kind": "ratio"}]}, ["tests[0], minus", "a ratio"]),
        ({"tests": [{**TEST, "kind": "slope"}]}, ["tests[0], over", "two names"]),
        ({"tests": [{**TEST, "over": {"a": 1}}]}, ["tests[0], over", "a slope does"]),
        ({"tests": [{**TEST, "kind": "equal_cost"}]}, ["tests[0], by", "by a cost"]),
        ({"tests": [{**TEST, "kind": "share", "direction": "less"}]}, ["tests[0], of", "share"]),
        ({"tests": [{**TEST, "minus": {**TERM, "layer": "each"}}]}, ["tests[0], layer", "each"]),
        ({"tests": [{**TEST, "per": "run"}]}, ["tests[0], per", "'run'", "seed, variant"]),
        ({"decides": "all"}, ["claim 3", "decides", "'all'", "first, every"]),
        ({"contradicts": ""}, ["claim 3", "contradicts", "text"]),
        ({"tests": [{**TEST, "spread": 0}]}, ["tests[0], spread", "above 0"]),
        ({"tests": [{**TEST, "construction": True}]}, ["tests[0], construction", "True", "why"]),
        ({"tests": [{**TEST, "log": "yes please"}]}, ["tests[0]", "true or false", "yes please"]),
    ],
    ids=lambda value: str(value)[:60],
)
def test_a_malformed_claim_is_one_line_with_file_claim_and_key(tmp_path, change, words):
    with pytest.raises(UsageError) as error:
        read(tmp_path, {"claims": [{**CLAIM, **change}]})
    for word in ("configs/claims.yaml", *words):
        assert word in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"claim": []}, ["unknown key claim", "did you mean claims"]),
        ({"claims": []}, ["a list of claims"]),
        ({"claims": [CLAIM, CLAIM]}, ["claim 3", "2 claims have this number"]),
        ({"claims": [{k: v for k, v in CLAIM.items() if k != "against"}]}, ["claim 3", "against is missing"]),
        ("claims: [1", ["line"]),
        ("claims:\n  - {number: 1, number: 2}\n", ["line 2", "number is given twice"]),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_malformed_ledger_is_one_line(tmp_path, content, words):
    with pytest.raises(UsageError) as error:
        read(tmp_path, content)
    for word in ("configs/claims.yaml", *words):
        assert word in str(error.value)
    assert "\n" not in str(error.value)


def test_the_command_takes_no_ledger_that_cannot_be_read(tmp_path, monkeypatch):
    monkeypatch.setattr(command, "LEDGER", tmp_path / "claims.yaml")
    with pytest.raises(UsageError, match=r"claims\.yaml: cannot be read"):
        print_claims([])


@pytest.mark.parametrize(
    ("metric", "text"),
    [
        (Metric("difference", (Term("test_accuracy", ("a",)),)), "accuracy"),
        (Metric("difference", (Term("colour_split", ("a",)),)), "colour split"),
        (Metric("difference", (Term("within_computed", ("a",)),)), "mean |r|"),
        (Metric("slope", (Term("macs", ("{}",)),), over={"a": 1, "b": 2}, log=True), "exponent of MACs"),
        (Metric("slope", (Term("test_accuracy", ("{}",)),), over={"a": 1, "b": 2}), "accuracy per step"),
        (Metric("ratio", (Term("latency", ("a",)),), (Term("latency", ("b",)),)), "ratio of time"),
        (Metric("share", (Term("colour_split", ("a",)),)), "share of seeds"),
    ],
)
def test_an_effect_says_what_it_is_measured_in(metric, text):
    assert quantity(metric) == text
