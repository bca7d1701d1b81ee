"""The ``claims`` command: reads the ledger and the tables of the studies, prints verdicts.

Tables are read from runs/ and from results/, the record; ``records.py`` decides which of them are evidence.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from textwrap import wrap
from typing import Any, NamedTuple, get_args

from analysis.claims import RULE, Claim, Finding, StudyAnswer, claims_of_study, judge_claims
from analysis.verdict import ALPHA, Verdict
from experiments.errors import UsageError
from experiments.name_hints import unknown_flag
from experiments.report.claims_page import EVERY, planned, read_rates, write_page
from experiments.report.ledger import CLAIM_KEYS, LEDGER, read_claims
from experiments.report.ledger_figure import draw_ledger
from experiments.report.marked_text import replace_block
from experiments.report.records import RESULTS, find_records, read_record, where_measured
from experiments.report.verdict_table import claimed, decided_table, interval, part_text, q_text, verdict_text
from experiments.study.catalogue import HOME, study_names

RATES = RESULTS / "null-studies" / "rates.csv"
FORMS = ("--json", "--explain", "--figure", "--markdown", "--readme")  # of what is printed: one at a time
FLAGS = (*FORMS, "--trials", "--runs_root=DIR")
README, BLOCK = HOME / "README.md", "verdicts"  # the block of the README that ``--readme`` writes
CLAIMS_PAGE = HOME / "docs" / "claims.md"  # what ``--markdown`` prints
WIDTH = 120
CLAIM, RIGHT = 40, 62  # widths of the columns of the ledger: the claim, and the finding
VERDICT = 13
HEAD = f"{'effect [95% interval]':<26}{'q':>6}{'n':>4}{'needs':>6}  study"


def print_claims(flags: Sequence[str]) -> None:
    """Print the ledger.

    Raises:
        UsageError: an unknown flag, a folder that is not there, or a ledger that cannot be read.
    """
    runs, given = Path("runs"), set()
    for flag in flags:
        key, has_value, value = flag.partition("=")
        if key == "--runs_root" and has_value:
            runs = Path(value).expanduser()
            if not runs.is_dir():
                raise UsageError(f"claims: {flag}: no such folder")
        elif flag in FLAGS:
            given.add(flag)
        else:
            raise unknown_flag("claims", flag, FLAGS)
    if len(forms := [form for form in FORMS if form in given]) > 1:
        raise UsageError(f"claims: {' '.join(forms)}: give one of them")
    claims = read_claims(LEDGER)
    if "--markdown" in given:
        print(recorded_page(judge_record()))
        return
    if "--readme" in given:
        if not replace_block(README, BLOCK, recorded_verdicts(judge_record())):
            raise UsageError(f"claims: {README} has no lines <!-- {BLOCK} --> and <!-- end {BLOCK} -->")
        print(README)
        return
    studies = dict.fromkeys(study for claim in claims for study in claim.studies)
    records = [record for study in studies for record in find_records(study, runs, RESULTS, trials="--trials" in given)]
    findings = judge_claims(claims, records)
    if "--json" in given:
        rows = [_as_json(*row) for row in zip(claims, findings, strict=True)]
        print(json.dumps(rows, indent=1, ensure_ascii=False))
    elif "--figure" in given:
        print(*draw_ledger(claims, findings, runs / "figures"), sep="\n")
    elif "--explain" in given:
        print("\n\n".join([RULE.rstrip(), *(_explanation(*row) for row in zip(claims, findings, strict=True))]))
    else:
        print(ledger_text(claims, findings))


def study_verdicts(study: str, runs: Path) -> str:
    """Return the verdicts of one study alone, by its tables in ``runs``, on its claims; empty without any.

    A trial is judged too, since it was asked for by name, and is called one.
    """
    claims = claims_of_study(study, read_claims(LEDGER))
    record = read_record(study, str(runs), runs / study / "tables")
    if not claims or record is None:
        return ""
    return ledger_text(claims, judge_claims(claims, [record]))


class JudgedRecord(NamedTuple):
    """The claims, what the record alone says of each, and the names of their studies."""

    claims: list[Claim]
    findings: list[Finding]
    studies: list[str]


def judge_record() -> JudgedRecord:
    """Judge the ledger by the record alone.

    Raises:
        UsageError: the ledger or a table of the record cannot be read.
    """
    claims = read_claims(LEDGER)
    studies = list(dict.fromkeys(study for claim in claims for study in claim.studies))
    records = [read_record(study, "results", RESULTS / study) for study in studies]
    findings = judge_claims(claims, [record for record in records if record is not None])
    return JudgedRecord(claims, findings, studies)


def recorded_verdicts(judged: JudgedRecord) -> str:
    """Return the verdicts of the record for the README: the decided claims, and which are open."""
    devices, images = map(", ".join, where_measured(judged.studies))
    table = decided_table(judged.claims, judged.findings)
    return f"{table} Measured on {devices}. [Images](results/datasets.yaml): {images}."


def recorded_page(judged: JudgedRecord) -> str:
    """Return the ledger as a page in Markdown, with the verdicts of the record.

    Raises:
        UsageError: the simulated rates cannot be read.
    """
    return write_page(judged.claims, judged.findings, read_rates(RATES))


def ledger_text(claims: Sequence[Claim], findings: Sequence[Finding]) -> str:
    """Return the ledger as aligned text of at most 120 columns, with the hardware beneath."""
    places = _StudyLetters()
    lines = [_row(" #", ["verdict"], ["claim"], [HEAD])]
    for claim, finding in zip(claims, findings, strict=True):
        verdict = wrap(finding.verdict, VERDICT)
        lines.append(_row(f"{claim.number:>2}", verdict, wrap(claim.claim, CLAIM), _found(claim, finding, places)))
    counted = Counter(finding.verdict for finding in findings)
    counts = ", ".join(f"{counted[verdict]} {verdict}" for verdict in get_args(Verdict) if verdict != "not run")
    legend = [
        f"q: false discovery rate over all claims tested; a verdict needs {ALPHA:g} or less. n: seeds. needs: seeds "
        "that decide an open claim with 80% power, if the smallest effect that matters is there.",
        "The rule, and every claim with its source, its test and what would contradict it: make claims ARGS=--explain",
    ]
    below = [line for text in legend for line in wrap(text, WIDTH)]
    return "\n".join([*lines, "", f"{counts}, {counted['not run']} not run", *places.lines(), "", *below])


def command(claim: Claim) -> str:
    """Return the command that runs a claim's study, or the file that is missing."""
    known = [study for study in claim.studies if study in study_names()]
    if not known:
        return f"needs configs/{claim.studies[0]}.yaml; CONTRIBUTING.md says how"
    return f"make experiment NAME={known[0]}"


class _StudyLetters:
    """Letters for the place and the hardware of each study, in the order of their first use."""

    def __init__(self) -> None:
        self._letters: dict[str, str] = {}

    def letter(self, answer: StudyAnswer) -> str:
        record = answer.record
        trial = f"; a TRIAL: {record.trial}" if record.trial else ""
        where = f"{record.place}/{record.study}: {record.hardware}{trial}"
        index = len(self._letters)
        return self._letters.setdefault(where, chr(ord("a") + index) if index < 26 else str(index))

    def lines(self) -> list[str]:
        return [
            line
            for where, letter in self._letters.items()
            for line in wrap(f"{letter}  {where}", WIDTH, subsequent_indent="   ")
        ]


def _row(number: str, verdict: list[str], claim: list[str], finding: list[str]) -> str:
    lines = []
    for index in range(max(map(len, (verdict, claim, finding)))):
        cells = (column[index] if index < len(column) else "" for column in ([number], verdict, claim, finding))
        lines.append("{:<3}{:<14}{:<41}{}".format(*cells).rstrip())
    return "\n".join(lines)


def _found(claim: Claim, finding: Finding, places: _StudyLetters) -> list[str]:
    """Return the finding in lines of ``RIGHT`` columns."""
    note = wrap(finding.note, RIGHT)
    if finding.part is None:
        measured = any(answer.parts for answer in finding.answers)
        return [*note, *wrap(command(claim) + (" measures what is missing" if measured else ""), RIGHT)]
    decides = next(answer for answer in finding.answers if answer.record is finding.record)
    numbers = "".join(
        f"{'' if value is None else value:>{width}}" for value, width in ((finding.n, 4), (finding.seeds, 6))
    )
    first = f"{interval(finding.part):<26}{q_text(finding.q):>6}{numbers}"
    study = f"{decides.record.study} {places.letter(decides)}"
    fits = len(first) + 2 + len(study) <= RIGHT
    lines = [f"{first}  {study}"] if fits else [first, *wrap(study, RIGHT)]
    lines += note
    for other in (*finding.answers, *finding.others):
        if other is not decides and len(other.parts) >= finding.number:
            part = other.parts[finding.number - 1]
            lines += wrap(
                f"{other.record.study} {places.letter(other)}: {part_text(part)}", RIGHT, subsequent_indent="  "
            )
    return lines


def _explanation(claim: Claim, finding: Finding) -> str:
    """Return one claim with all that the ledger holds on it."""
    lines = [f"{claim.number}. {claim.claim}", f"source     {claim.source}", f"against    {claim.against}"]
    lines += [f"contradict {claim.contradicts}", f"published  {claim.published or 'nothing'}"]
    lines += [f"studies    {', '.join(claim.studies)}{EVERY if claim.decides == 'every' else ''}"]
    lines += [f"seeds      {planned(claim)}"]
    for number, test in enumerate(claim.tests, 1):
        lines += [f"part {number:<5} {test.metric}", f"claimed    {claimed(test)}"]
        if test.construction:
            lines.append(f"           holds by construction: {test.construction}")
        for answer in (*finding.answers, *finding.others):
            part = next((part for part in answer.parts if part.test == test), None)
            if part is not None:
                lines.append(f"found      {answer.record.place}/{answer.record.study}: {part_text(part)}")
    lines.append(f"verdict    {verdict_text(finding)}")
    return "\n".join(piece for line in lines for piece in wrap(line, WIDTH, subsequent_indent=" " * 11))


def _as_json(claim: Claim, finding: Finding) -> dict[str, Any]:
    record, part = finding.record, finding.part
    return {
        **{key: getattr(claim, key) for key in CLAIM_KEYS if key != "tests"},
        "verdict": finding.verdict,
        "effect": None if part is None else part.effect,
        "low": None if part is None else part.low,
        "high": None if part is None else part.high,
        **{key: getattr(finding, key) for key in ("n", "p", "q", "seeds", "note")},
        "lost": None if part is None else part.lost,
        "metric": [str(test.metric) for test in claim.tests],
        "direction": [test.direction for test in claim.tests],
        "than": [test.than for test in claim.tests],
        "matters": [test.matters for test in claim.tests],
        "decided_by": None if part is None else str(part.test.metric),
        "study": None if record is None else record.study,
        "read_from": None if record is None else record.place,
        "trial": None if record is None else record.trial,
        "hardware": None if record is None else record.hardware,
        "parts": [
            {
                "study": answer.record.study,
                "read_from": answer.record.place,
                "metric": str(each.test.metric),
                **{key: getattr(each, key) for key in ("effect", "low", "high", "n", "lost")},
            }
            for answer in (*finding.answers, *finding.others)
            for each in answer.parts
        ],
        "command": command(claim) if finding.verdict == "not run" else None,
    }
