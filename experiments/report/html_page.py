"""The report: one self-contained HTML page with the ledger, and figures, tables, notes and provenance of studies."""

from __future__ import annotations

import shlex
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined

from analysis.claims import Claim, Finding, claims_of_study, judge_claims
from analysis.evidence import Record
from analysis.figures.registry import FIGURES
from analysis.intervals import measure_bounds, seed_estimate
from analysis.tradeoff import tradeoff_table
from experiments.report.claims import command
from experiments.report.claims_page import claimed
from experiments.report.data_names import data_names
from experiments.report.ledger import LEDGER, read_claims
from experiments.report.ledger_figure import draw_ledger
from experiments.report.pictures import embedded, figure_name
from experiments.report.records import RESULTS, find_records, read_record
from experiments.report.summary import spread, tables_folder, time_of_image
from experiments.report.tables import long_table, read_about, read_csv, read_table
from experiments.report.verdict_table import interval
from experiments.store.runs import write_atomic
from experiments.study.catalogue import study_names

MOST_BYTES = 5_000_000  # greatest size of a page
WIDTHS = (1400, 1000, 700)  # pixels of its figures: the widest with which it is small enough
PAGE = "report.html"
ALL_FIGURES = ("group-parallel", *(figure.name for figure in FIGURES))
# All that the page of all studies shows.
MAIN_FIGURES = ("overview", "separation", "nulls", "interlayer", "lesions", "tradeoff", "equal-cost")


@dataclass(frozen=True)
class Table:
    """A table of the page.

    Attributes:
        title: above it.
        source: the file that its numbers are from, and how they are made again.
        columns: headings.
        rows: cells, numbers or texts.
    """

    title: str
    source: str
    columns: tuple[str, ...]
    rows: list[list[Any]]


@dataclass(frozen=True)
class Section:
    """A study of the page.

    Attributes:
        name: name of the study.
        question: question of the study.
        tables: tables of the results, the most important first.
        figures: title and path of each.
        provenance: hardware and versions of its runs, as name and value.
        again: commands that reproduce its numbers, each with its purpose.
    """

    name: str
    question: str
    tables: list[Table]
    figures: list[tuple[str, Path]]
    provenance: list[tuple[str, str]]
    again: list[tuple[str, str]]


def write_study_page(study_folder: Path) -> Path:
    """Write the page of a study of the run store into its folder; returns its path.

    Raises:
        UsageError: the study has no tables yet, or they are damaged.
    """
    tables = tables_folder(study_folder)
    record = read_record(study_folder.name, str(study_folder.parent), tables)
    section = read_section(study_folder.name, tables, study_folder / "figures")
    return _write([section], [] if record is None else [record], study_folder / PAGE, study_folder.name)


def write_recorded_page(name: str, target: Path) -> Path:
    """Write the page of a study's record in ``results/``; returns its path."""
    record = read_record(name, "results", RESULTS / name)
    section = read_section(name, RESULTS / name, RESULTS / name)
    return _write([section], [] if record is None else [record], target, name)


def write_whole_page(runs: Path, target: Path) -> Path:
    """Write the page of all studies in ``results/``, with the ledger over runs and record; returns its path."""
    claims = read_claims(LEDGER)
    studies = dict.fromkeys(study for claim in claims for study in claim.studies)
    records = [record for study in studies for record in find_records(study, runs, RESULTS)]
    recorded = [name for name in study_names() if long_table(RESULTS / name).is_file()]
    sections = [read_section(name, RESULTS / name, RESULTS / name, whole=False) for name in recorded]
    return _write(sections, records, target, "")


def read_section(name: str, tables: Path, figures: Path, whole: bool = True) -> Section:
    """Read a study's folder of tables.

    Args:
        name: name of the study.
        tables: folder with the long table.
        figures: folder with its figures.
        whole: True if every measure is shown, by variant and layer, and every figure.
    """
    measures = read_table(long_table(tables))
    about = read_about(tables / "study.json", ["question"])
    runs = read_csv(tables / "runs.csv", ["variant"], dtype=str).fillna("")
    tables_shown = [_accuracy(measures), _runs(runs), _notes(tables)]
    if whole:
        tables_shown.insert(1, _measures(measures))
    shown = ALL_FIGURES if whole else MAIN_FIGURES
    drawn = [path for path in sorted(figures.glob("*.png")) if figure_name(path) in shown]
    return Section(
        name,
        str(about["question"]),
        [table for table in tables_shown if table is not None and table.rows],
        [(path.stem.replace("-", " "), path) for path in drawn],
        list(_provenance(runs)),
        _commands(name, about.get("overrides") or {}),
    )


def _accuracy(measures: pd.DataFrame) -> Table:
    columns = ("variant", "accuracy", "interval", "n", "difference", "its interval", "parameters", "MACs")
    rows = [
        [
            row["variant"],
            _number(row["accuracy"], 4),
            spread(row).strip(),
            int(row["n"]),
            _number(row["difference"], 4),
            spread(row, "difference_", "+.3f").strip(),
            int(row["parameters"]),
            int(row["macs"]),
            time_of_image(row),
        ]
        for _, row in tradeoff_table(measures).iterrows()
    ]
    source = "tradeoff.csv, made from measures.csv"
    return Table("Accuracy against cost", source, (*columns, "ms per image"), rows)


def _measures(measures: pd.DataFrame) -> Table:
    rows = []
    keys = ["variant", "layer", "groups", "measure", "null"]
    for key, of_cell in measures.groupby(keys, sort=False):
        unit = str(of_cell["unit"].iloc[0])
        finite = of_cell["value"][of_cell["value"].abs() < float("inf")]
        if len(finite):
            estimate = seed_estimate(finite.to_numpy(), measure_bounds(str(key[3]), unit))
            over = estimate.text(".4g").partition(" ")[2] if finite.nunique() > 1 else ""
            rows.append([*key, _number(estimate.mean, 5), over, estimate.n, unit])
    columns = (*keys, "mean", "over seeds", "n", "unit")
    return Table("Every measure, by variant and layer", "measures.csv, one row a seed there", columns, rows)


def _runs(runs: pd.DataFrame) -> Table:
    wanted = {"variant": "variant", "seed": "seed", "test_accuracy": "accuracy", "seconds": "seconds"}
    wanted |= {"epoch": "epochs", "precision": "precision", "date": "date", "config_hash": "hash"}
    there = [column for column in wanted if column in runs]
    rows = [[_cell(row[column]) for column in there] for _, row in runs.iterrows()]
    return Table("Runs", "runs.csv, one row a run", tuple(wanted[column] for column in there), rows)


def _notes(tables: Path) -> Table | None:
    if not (tables / "notes.csv").is_file():
        return None
    notes = read_csv(tables / "notes.csv", ["variant", "note"], dtype=str, keep_default_na=False)
    keys = [key for key in ("variant", "layer", "measure", "note") if key in notes]
    rows = [[*key, len(of_note)] for key, of_note in notes.groupby(keys, sort=False)]
    return Table("Notes: what could not be measured, and why", "notes.csv", (*keys, "times"), rows)


def _provenance(runs: pd.DataFrame) -> Iterator[tuple[str, str]]:
    if "dataset" in runs:
        named = data_names(runs[runs["dataset"] != ""])
        yield "dataset", "; ".join(f"{name} ({images})" if images else name for name, images in named.items())
    for column in ("data_hash", "device", "precision", "torch", "torchvision", "numpy", "python", "commit"):
        if column in runs:
            yield column.replace("_", " "), ", ".join(value for value in dict.fromkeys(runs[column]) if value)
    if "date" in runs and len(runs):
        yield "trained", " to ".join(dict.fromkeys(date[:10] for date in (runs["date"].min(), runs["date"].max())))


def _commands(name: str, overrides: Mapping[str, Any] | Sequence[str]) -> list[tuple[str, str]]:
    flags = list(overrides)
    profile = ""
    if isinstance(overrides, Mapping):
        profile = f" PROFILE={overrides['profile']}" if "profile" in overrides else ""
        flags = [f"--{key}={value}" for key, value in overrides.items() if key != "profile"]
    given = f" ARGS={shlex.quote(' '.join(flags))}" if flags else ""
    train, draw = "train what is not trained yet, measure, test and draw", "draw the figures from the tables"
    if name not in study_names():
        file = "FILE.yaml"  # the path is not kept: another machine has another
        return [
            (f"make experiment NAME={file}{profile}{given}", f"{train}; {file} is the path of the study's file"),
            (f"make figures NAME={file}", draw),
        ]
    return [
        (f"make experiment NAME={name}{profile}{given}", train),
        (f"make figures NAME={name}", draw),
        (f"make verify NAME={name}", "recompute the tables in results/ from the packed runs"),
        (f"make verify NAME={name} ARGS=--retrain", "and train one run again"),
        ("make claims ARGS=--explain", "the verdicts, with the rule and every test"),
    ]


def _ledger(claims: Sequence[Claim], findings: Sequence[Finding]) -> list[dict[str, Any]]:
    """Return one claim with its evidence for each row of the page."""
    rows = []
    for claim, finding in zip(claims, findings, strict=True):
        part, record = finding.part, finding.record
        evidence = [("claim", claim.claim), ("source", claim.source), ("against", claim.against)]
        evidence += [("contradicted by", claim.contradicts), ("published", claim.published or "nothing")]
        for number, test in enumerate(claim.tests, 1):
            evidence.append((f"test {number}", f"{test.metric}: {claimed(test)}"))
            for answer in (*finding.answers, *finding.others):
                for each in answer.parts:
                    if each.test == test:
                        n = "" if each.n is None else f", n {each.n}"
                        evidence.append(("found", f"{answer.record.study}: {interval(each)}{n}"))
        if record is not None:
            evidence.append(("hardware", record.hardware + (f"; a trial: {record.trial}" if record.trial else "")))
        evidence += [("note", finding.note)] if finding.note else []
        evidence.append(("again", command(claim)))
        rows.append(
            {
                "cells": [
                    claim.number,
                    claim.short,
                    finding.verdict,
                    "" if part is None else interval(part),
                    "" if finding.q is None else round(finding.q, 4),
                    "" if finding.n is None else finding.n,
                    "" if finding.seeds is None else finding.seeds,
                    "" if record is None else record.study,
                ],
                "evidence": evidence,
            }
        )
    return rows


def _write(sections: Sequence[Section], records: Sequence[Record], target: Path, name: str) -> Path:
    claims = claims_of_study(name, read_claims(LEDGER)) if name else read_claims(LEDGER)
    findings = judge_claims(claims, records)
    ledger = _ledger(claims, findings) if records else []
    environment = Environment(
        loader=PackageLoader("experiments.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    template = environment.get_template("page.html")
    with tempfile.TemporaryDirectory() as scratch:
        drawn = draw_ledger(claims, findings, Path(scratch))
        forest = next((embedded(path, max(WIDTHS)) for path in drawn if path.suffix == ".png"), None)
    html = ""
    for width in WIDTHS:
        pictures = {path: embedded(path, width) for section in sections for _, path in section.figures}
        html = template.render(sections=sections, ledger=ledger, forest=forest, pictures=pictures, name=name)
        if len(html.encode()) <= MOST_BYTES:
            break
    write_atomic(target, lambda file: file.write(html.encode()))
    return target


def _number(value: float, digits: int) -> float | int | str:
    """Return a number with so many significant digits; a whole number without decimals."""
    if pd.isna(value):
        return ""
    return int(value) if float(value).is_integer() else float(f"{value:.{digits}g}")


def _cell(text: str) -> float | int | str:
    """Return the number in a cell of a table of texts."""
    try:
        number = float(text)
    except ValueError:
        return text
    return int(text) if text.isdigit() and len(text) < 7 else float(f"{number:.5g}") if "." in text else text
