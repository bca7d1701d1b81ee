"""The text at the end of a study: one screen with accuracy against cost, findings, verdicts and next steps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from textwrap import shorten, wrap

import pandas as pd

from analysis.claims import Claim, Finding, claims_of_study, judge_claims
from analysis.evidence import Record
from analysis.intervals import measure_bounds, seed_estimate
from analysis.nulls import ROTATED_FILTERS
from analysis.tradeoff import disturbed, tradeoff_table
from analysis.verdict import FEWEST_SEEDS
from experiments.data.datasets import Dataset
from experiments.report.ledger import LEDGER, read_claims
from experiments.report.summary import NULLS, spread
from experiments.report.verdict_table import interval
from experiments.study.catalogue import study_names
from experiments.study.invocation import typed
from experiments.terminal import duration

WIDTH, LINES = 110, 40
VARIANTS, SENTENCES, VERDICTS, REMARKS = 8, 6, 7, 4  # most lines of each part of the report
BROKEN = 0.01  # share of a dataset's images from which on it is reported
FOUND = {  # measures of the sentences, the first with their own nulls
    "ratio_computed": ("correlation within / between groups", ROTATED_FILTERS),
    "colour_difference": ("difference of colour index between groups", "labels permuted"),
    **NULLS,
}


def study_report(
    study: str,
    question: str,
    table: pd.DataFrame,
    record: Record | None,
    seconds: pd.DataFrame,
    remarks: Sequence[str],
    overrides: Mapping[str, object],
) -> str:
    """Return the report at the end of a study, in at most 36 lines of 110 characters; the paths of its files follow.

    Args:
        study: its name.
        question: question of the study.
        table: its long table.
        record: the same as evidence.
        seconds: variant and seconds of each run.
        remarks: further notes, a line each.
        overrides: keys that the command line changed.
    """
    again = command_again(study, overrides)
    claims = claims_of_study(study, read_claims(LEDGER)) if record is not None else []
    findings = judge_claims(claims, [record]) if record is not None else []
    remarks = [*(_of_record(record) if record is not None else []), *_of_times(table), *remarks]
    parts = [
        wrap(question, WIDTH)[:2],
        accuracy_lines(tradeoff_table(table)),
        finding_lines(table),
        [*verdict_lines(claims, findings), *settle_lines(claims, findings, seconds, again)],
        _most([_line(remark) for remark in remarks], REMARKS, "remarks in tables/notes.csv and the report"),
    ]
    return "\n\n".join("\n".join(lines) for lines in parts if lines)


def accuracy_lines(rows: pd.DataFrame) -> list[str]:
    """Return accuracy and costs of each variant, the difference to the first one, and their intervals over seeds."""
    if rows.empty:
        return []
    first = shorten(str(rows["variant"].iloc[0]), 14, placeholder="…")
    lines = [f"{'variant':<22}{'accuracy':<24}{'n':>3}  {f'- {first}':<26}{'parameters':>11}{'MACs':>14}{'ms':>8}"]
    for _, row in rows.iterrows():
        accuracy = f"{row['accuracy']:.3f}{spread(row)}"
        known = not pd.isna(row["difference"])
        difference = f"{row['difference']:+.3f}{spread(row, 'difference_', '+.3f')}" if known else ""
        time = "-" if pd.isna(row["latency"]) else f"{row['latency']:.3f}"
        name = str(row["variant"]) if len(str(row["variant"])) < 22 else f"{str(row['variant'])[:20]}…"
        costs = f"{row['parameters']:>11,.0f}{row['macs']:>14,.0f}{time:>8}"
        lines.append(f"{name:<22}{accuracy:<24}{row['n']:>3}  {difference:<26}{costs}"[:WIDTH])
    return _most(lines, VARIANTS + 1, "variants in tables/tradeoff.csv")


def finding_lines(table: pd.DataFrame) -> list[str]:
    """Return up to six sentences on the first variant of each measure: the value, its interval and its nulls."""
    lines, first = [], ""
    for measure, (label, other) in FOUND.items():
        rows = table[table["measure"] == measure]
        trained_rows = rows[(rows["null"] == "")]
        if trained_rows.empty:
            continue
        variant = trained_rows["variant"].iloc[0]
        of_variant = rows[rows["variant"] == variant]
        texts = {
            null: seed_estimate(values.to_numpy(), measure_bounds(measure, str(rows["unit"].iloc[0]))).text(".2f")
            for null, of_null in of_variant.groupby("null")
            if len(values := of_null.groupby("seed")["value"].mean().dropna()) and values.abs().max() < float("inf")
        }
        nulls = [f"{null} {texts[null].partition(' ')[0]}" for null in ("untrained", other) if null in texts]
        if "" in texts and nulls:
            first = first or variant
            where = "" if variant == first else f" in {variant}"
            lines.append(_line(f"{label[0].upper()}{label[1:]}{where}: {texts['']}; {', '.join(nulls)}."))
    heading = (
        [_line(f"What was found in {first}, the first with groups (mean over layers and seeds; then its nulls)")]
        if lines
        else []
    )
    return [*heading, *lines[:SENTENCES]]


def verdict_lines(claims: Sequence[Claim], findings: Sequence[Finding]) -> list[str]:
    """Return the verdict on each claim that the study bears on, those that are decided first."""
    lines = []
    order = ("supported", "contradicted", "holds by construction", "inconclusive")
    pairs = [pair for pair in zip(claims, findings, strict=True) if pair[1].part is not None]
    for claim, finding in sorted(
        pairs, key=lambda pair: order.index(pair[1].verdict) if pair[1].verdict in order else 9
    ):
        assert finding.part is not None
        q = "" if finding.q is None else f", q {finding.q:.3f}"
        needs = "" if finding.seeds is None else f", needs {finding.seeds} seeds"
        lines.append(_line(f"{finding.verdict}: {claim.number} {claim.short}: {interval(finding.part)}{q}{needs}"))
    if lines:
        lines = ["Verdicts of this study alone (effect [95% interval], false discovery rate)", *lines]
    return _most(lines, VERDICTS + 1, "verdicts in the report")


def settle_lines(claims: Sequence[Claim], findings: Sequence[Finding], seconds: pd.DataFrame, again: str) -> list[str]:
    """Return lines on the open claims: the number of seeds that would settle them, their time, and the command.

    Args:
        claims, findings: claims of the study, and their findings.
        seconds: variant and seconds of each run.
        again: the command with ``{seeds}`` in the place of their number.
    """
    needs = {}
    for claim, finding in zip(claims, findings, strict=True):
        if finding.verdict == "inconclusive" and finding.n is not None:
            wanted = max(finding.seeds or 0, FEWEST_SEEDS)
            if wanted > finding.n:
                needs[claim.number] = wanted
    if not needs:
        return []
    there = int(seconds.groupby("variant").size().max())
    each = float(seconds.groupby("variant")["seconds"].median().sum())
    lines = []
    for seeds in sorted({min(needs.values()), max(needs.values())}):
        claims_of = [str(number) for number, wanted in needs.items() if wanted <= seeds]
        more = seeds - there
        if more > 0:
            which = f"claim{'s' * (len(claims_of) > 1)} {', '.join(claims_of)}"
            command = again.format(seeds=seeds)
            lines.append(_line(f"{more} more seeds for {which}, {duration(more * each)}: {command}"))
    return lines


def command_again(study: str, overrides: Mapping[str, object]) -> str:
    """Return the command of a study with ``{seeds}`` in the place of the number of seeds.

    Args:
        study: its name.
        overrides: keys that the command line changed; of these only a profile is repeated.
    """
    if study not in study_names() or set(overrides) - {"seeds", "profile"}:
        return "the same command with --seeds={seeds}"
    command, profile = typed("run", study), overrides.get("profile")
    if command.startswith("make"):
        return f"{command}{f' PROFILE={profile}' if profile else ''} ARGS=--seeds={{seeds}}"
    return f"{command}{f' --profile={profile}' if profile else ''} --seeds={{seeds}}"


def remarks_on_images(datasets: Iterable[Dataset]) -> list[str]:
    """Return remarks on classes without images, in one split only, and on broken images."""
    remarks: dict[str, None] = {}
    for dataset in datasets:
        counts = [
            images.labels.bincount(minlength=len(dataset.classes)).tolist() for images in (dataset.train, dataset.test)
        ]
        for name, train, test in zip(dataset.classes, *counts, strict=True):
            if not train and not test:
                remarks[f"class {name}: no images"] = None
            elif not train or not test:
                where, other = ("test", "training") if not train else ("training", "test")
                remarks[f"class {name}: {where} images only, no {other} images"] = None
        whole = len(dataset.train.labels) + len(dataset.test.labels) + len(dataset.broken)
        if len(dataset.broken) >= max(1, BROKEN * whole):
            remarks[f"{len(dataset.broken)} of {whole} images are broken and left out: {dataset.broken[0]}, …"] = None
    return list(remarks)


def remarks_on_notes(notes: pd.DataFrame, missing: pd.DataFrame) -> list[str]:
    """Return remarks on runs without a result and on notes."""
    remarks = [
        f"not in these tables: {row['variant']}, seed {row['seed']}: {row['status']}: {row['reason']}"
        for _, row in missing.iterrows()
    ]
    if len(notes):
        remarks.append(f"{len(notes)} note{'s' * (len(notes) > 1)} on what could not be measured: tables/notes.csv")
    return remarks


def path_lines(study_folder: Path, page: Path) -> list[str]:
    """Return the paths of tables, figures and report."""
    return [f"tables   {study_folder / 'tables'}", f"figures  {study_folder / 'figures'}", f"report   {page}"]


def _of_record(record: Record) -> list[str]:
    lines = [record.refused] if record.refused else []
    if record.trial:
        lines.append(f"a trial, no evidence for the ledger: {record.trial}")
    for lost in (record.lost, record.unlearned):
        for why, count in Counter(reason.split(" (")[0] for reason in lost.values()).items():
            which = ", ".join(f"{name} {seed}" for (name, seed), reason in lost.items() if reason.startswith(why))
            lines.append(f"{count} run{'s' * (count > 1)} {why}, no evidence: {which}")
    return lines


def _of_times(table: pd.DataFrame) -> list[str]:
    loud = disturbed(table)
    return [f"times were disturbed by other work: {', '.join(loud)}"] if loud else []


def _line(text: str) -> str:
    return text if len(text) <= WIDTH else f"{text[: WIDTH - 2].rstrip()} …"


def _most(lines: list[str], most: int, rest: str) -> list[str]:
    """Return the first of many lines, and how many more there are."""
    return lines if len(lines) <= most else [*lines[: most - 1], f"… and {len(lines) - most + 1} more {rest}"]
