"""The ``claims`` command: reads the ledger and the tables of the studies, prints verdicts.

Tables are read from runs/ first, then from results/, the record.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path
from textwrap import wrap
from typing import Any, get_args

import numpy as np
import pandas as pd

from analysis.claims import ALPHA, RULE, Claim, Direction, Finding, Record, Test, Verdict, adjust, find
from analysis.effects import SLOT, Kind, Metric, Term
from experiments.catalogue import CONFIGS, HOME, study_names
from experiments.errors import UsageError
from experiments.report import read_table
from experiments.strict_yaml import place_of, read_yaml

LEDGER = CONFIGS / "claims.yaml"
FLAGS = "--json, --explain, --runs_root=DIR"
CLAIM_KEYS = tuple(field.name for field in fields(Claim))
TERM_KEYS = ("measure", "variant", "layer", "against")
TEST_KEYS = ("kind", "of", "minus", "over", "by", "log", "per", "direction", "matters", "than")
LEFT, RIGHT = 57, 62  # columns of the ledger: the claim, and what was found


def print_claims(flags: Sequence[str]) -> None:
    """Print the ledger.

    Raises:
        UsageError: an unknown flag, or a ledger that cannot be read.
    """
    as_json = explain = False
    runs = Path("runs")
    for flag in flags:
        key, _, value = flag.partition("=")
        if key == "--runs_root" and value:
            runs = Path(value).expanduser()
        elif flag == "--json":
            as_json = True
        elif flag == "--explain":
            explain = True
        else:
            raise UsageError(f"claims: unknown flag {flag}; there are: {FLAGS}")
    claims = read_claims(LEDGER)
    records = {name: find_records(name, runs, HOME / "results") for claim in claims for name in claim.studies}
    findings = adjust([find(claim, [r for name in claim.studies for r in records[name]]) for claim in claims])
    if as_json:
        print(json.dumps([_as_json(*row) for row in zip(claims, findings, strict=True)], indent=1, ensure_ascii=False))
    elif explain:
        print("\n\n".join([RULE.rstrip(), *(_explained(*row) for row in zip(claims, findings, strict=True))]))
    else:
        print(ledger_text(claims, findings))


def study_verdicts(study: str, runs: Path) -> str:
    """What one study, by its tables in ``runs``, says to the claims that it bears on; empty where there are none."""
    claims = [claim for claim in read_claims(LEDGER) if study in claim.studies]
    record = _record(study, str(runs), runs / study / "tables")
    if not claims or record is None:
        return ""
    return ledger_text(claims, adjust([find(claim, [record]) for claim in claims]))


def find_records(study: str, runs: Path, results: Path) -> list[Record]:
    """What was measured of a study, in ``runs`` and then in ``results``."""
    places = [_record(study, str(runs), runs / study / "tables"), _record(study, "results", results / study)]
    return [record for record in places if record is not None]


def _record(study: str, place: str, folder: Path) -> Record | None:
    if not (folder / "measures.csv").is_file():
        return None
    return Record(study, place, read_table(folder / "measures.csv"), _hardware(folder / "runs.csv"))


def _hardware(path: Path) -> str:
    if not path.is_file():
        return "hardware not recorded"
    runs = pd.read_csv(path, dtype=str).fillna("unknown")
    where = dict.fromkeys(f"{r['device']}, {r['precision']}, torch {r['torch']}" for _, r in runs.iterrows())
    data, commits = dict.fromkeys(runs["dataset"]), dict.fromkeys(f"{c[:10]}{c[40:]}" for c in runs["commit"])
    return f"{'; '.join(where)}; dataset {', '.join(data)}; commit {', '.join(commits)}"


def read_claims(path: Path) -> list[Claim]:
    """The ledger, checked.

    Raises:
        UsageError: names the file, the claim, the key and what would be right.
    """
    place = place_of(path)
    content = read_yaml(path)
    _known(content, ("claims",), ("claims",), place)
    if not isinstance(content["claims"], list) or not content["claims"]:
        raise UsageError(f"{place}: claims must be a list of claims")
    claims = [_claim(entry, f"{place}, claim", order) for order, entry in enumerate(content["claims"], 1)]
    for number, times in Counter(claim.number for claim in claims).items():
        if times > 1:
            raise UsageError(f"{place}, claim {number}: number stands {times} times; each claim needs its own")
    return claims


def _claim(entry: object, place: str, order: int) -> Claim:
    number = entry.get("number") if isinstance(entry, dict) else None
    if not isinstance(entry, dict) or isinstance(number, bool) or not isinstance(number, int) or number < 1:
        what = f"number: {number!r}" if isinstance(entry, dict) else repr(entry)
        raise UsageError(f"{place} at place {order} of the list: {what} must be a mapping with a number from 1")
    place = f"{place} {number}"
    _known(entry, CLAIM_KEYS, CLAIM_KEYS, place)
    for key in ("claim", "source", "against", "published"):
        if not isinstance(entry[key], str) or (key != "published" and not entry[key]):
            raise UsageError(f"{place}, {key}: {entry[key]!r} must be a text")
    if not isinstance(entry["tests"], list) or not entry["tests"]:
        raise UsageError(f"{place}, tests: {entry['tests']!r} must be a list of tests")
    tests = [_test(test, f"{place}, tests[{index}]") for index, test in enumerate(entry["tests"])]
    given = {**entry, "studies": _texts(entry["studies"], f"{place}, studies"), "tests": tuple(tests)}
    return Claim(**given)


def _test(entry: object, place: str) -> Test:
    if not isinstance(entry, dict):
        raise UsageError(f"{place}: {entry!r} must be a mapping with {', '.join(TEST_KEYS)}")
    _known(entry, TEST_KEYS, ("kind", "of", "direction", "matters"), place)
    kind = _one_of(entry["kind"], get_args(Kind), f"{place}, kind")
    direction = _one_of(entry["direction"], get_args(Direction), f"{place}, direction")
    matters = _number(entry["matters"], f"{place}, matters")
    if matters <= 0:
        raise UsageError(f"{place}, matters: {matters:g} must be the smallest effect of interest, above 0")
    of, minus = (_terms(entry.get(key, []), f"{place}, {key}") for key in ("of", "minus"))
    over, by, log = entry.get("over", {}), entry.get("by", ""), entry.get("log", False)
    if not isinstance(by, str) or not isinstance(log, bool):
        raise UsageError(f"{place}: by must be the name of a cost and log true or false, not {by!r} and {log!r}")
    if isinstance(over, list):
        over = dict.fromkeys(_texts(over, f"{place}, over"), np.nan)
    if not isinstance(over, dict):
        raise UsageError(f"{place}, over: {over!r} must be a list of names, or names with their numbers")
    steps = {name: x if x is np.nan else _number(x, f"{place}, over.{name}") for name, x in over.items()}
    per_seed = _one_of(entry.get("per", "seed"), ("seed", "variant"), f"{place}, per") == "seed"
    metric = Metric(kind, of, minus, steps, by, log, per_seed)  # type: ignore[arg-type]
    _fits(metric, direction, place)
    return Test(metric, direction, matters, _number(entry.get("than", 0), f"{place}, than"))  # type: ignore[arg-type]


def _fits(metric: Metric, direction: str, place: str) -> None:
    """Refuse what its kind of effect cannot be computed from."""
    slots = all(SLOT in v for term in (*metric.of, *metric.minus) for v in term.variants)
    numbered = bool(metric.over) and not np.isnan(list(metric.over.values())).any()
    several = {term.layer == "each" for term in (*metric.of, *metric.minus)} == {True, False}
    wrong = {
        "of: at least one term is needed": not metric.of,
        "layer: each in one term needs it in all": several,
        "minus: a ratio is one term of, over one term minus": metric.kind == "ratio"
        and (len(metric.of), len(metric.minus)) != (1, 1),
        "of: a share is of one p, greater, and per seed": metric.kind == "share"
        and ((len(metric.of), len(metric.minus)) != (1, 0) or direction != "greater" or not metric.per_seed),
        "over: a slope needs two names or more, and {} in its variants": metric.kind == "slope"
        and (len(metric.over) < 2 or not slots),
        "by: a slope runs either against the numbers in over or against a cost": metric.kind == "slope"
        and numbered == bool(metric.by),
        "by: equal_cost compares one term with one, by a cost": metric.kind == "equal_cost"
        and ((len(metric.of), len(metric.minus)) != (1, 1) or not metric.by),
        f"over: {metric.kind} runs over nothing; a slope does": metric.kind != "slope" and bool(metric.over),
    }
    for what, is_wrong in wrong.items():
        if is_wrong:
            raise UsageError(f"{place}, {what}")


def _terms(entry: object, place: str) -> tuple[Term, ...]:
    terms = []
    for term in entry if isinstance(entry, list) else [entry]:
        if not isinstance(term, dict):
            raise UsageError(f"{place}: {term!r} must be a mapping with {', '.join(TERM_KEYS)}")
        _known(term, TERM_KEYS, ("measure", "variant"), place)
        variants = _texts(term["variant"], f"{place}, variant")
        texts = {key: _texts(term[key], f"{place}, {key}") for key in ("measure", "layer", "against") if key in term}
        for key, text in texts.items():
            if len(text) != 1:
                raise UsageError(f"{place}, {key}: {term[key]!r} must be one text")
        terms.append(Term(variants=variants, **{key: text for key, (text,) in texts.items()}))
    return tuple(terms)


def _known(entry: Mapping[str, Any], keys: Sequence[str], needed: Sequence[str], place: str) -> None:
    for key in entry:
        if key not in keys:
            near = get_close_matches(key, keys, n=1)
            hint = f"; did you mean {near[0]}?" if near else f"; there are: {', '.join(keys)}"
            raise UsageError(f"{place}: unknown key {key}{hint}")
    for key in needed:
        if key not in entry:
            raise UsageError(f"{place}: {key} is missing")


def _texts(value: object, place: str) -> tuple[str, ...]:
    texts = value if isinstance(value, list) else [value]
    named = tuple(text for text in texts if isinstance(text, str) and text)
    if not texts or len(named) < len(texts):
        raise UsageError(f"{place}: {value!r} must be a name, or a list of names")
    return named


def _one_of(value: object, allowed: Sequence[str], place: str) -> str:
    if value not in allowed:
        raise UsageError(f"{place}: {value!r} must be one of {', '.join(allowed)}")
    return str(value)


def _number(value: object, place: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not np.isfinite(value):
        raise UsageError(f"{place}: {value!r} must be a number")
    return float(value)


def ledger_text(claims: Sequence[Claim], findings: Sequence[Finding]) -> str:
    """The ledger as aligned text of at most 120 columns, with the hardware beneath."""
    letters: dict[str, str] = {}
    lines = [_row(" #", "verdict", ["claim"], [f"{'effect [interval]':<26}{'Holm':>5}{'n':>4}{'needs':>6}  study"])]
    for claim, finding in zip(claims, findings, strict=True):
        record = finding.record
        if record is not None:
            where = f"{record.place}/{record.study}: {record.hardware}"
            letter = letters.setdefault(where, _letter(len(letters)))
        else:
            letter = ""
        lines.append(
            _row(f"{claim.number:>2}", finding.verdict, wrap(claim.claim, LEFT - 17), _found(claim, finding, letter))
        )
    told = Counter(finding.verdict for finding in findings)
    counts = ", ".join(f"{told[verdict]} {verdict}" for verdict in get_args(Verdict))
    places = [
        line
        for where, letter in letters.items()
        for line in wrap(f"{letter}  {where}", LEFT + RIGHT, subsequent_indent="   ")
    ]
    rule = [
        "Holm: p adjusted for all claims tested. needs: seeds to find the smallest effect of interest with 80% power.",
        "The rule behind the verdicts, and every claim with its source and its test: make claims ARGS=--explain",
    ]
    return "\n".join([*lines, "", counts, *places, "", *rule])


def command(claim: Claim) -> str:
    """What to type for a claim that was not run."""
    known = [study for study in claim.studies if study in study_names()]
    if not known:
        return f"needs configs/{claim.studies[0]}.yaml; CONTRIBUTING.md says how"
    return f"make experiment NAME={known[0]}"


def _row(number: str, verdict: str, left: list[str], right: list[str]) -> str:
    lines = []
    for index in range(max(len(left), len(right))):
        head = f"{number} {verdict:<13} " if index == 0 else " " * 17
        claim, found = (column[index] if index < len(column) else "" for column in (left, right))
        lines.append(f"{head}{claim:<{LEFT - 17}} {found}".rstrip())
    return "\n".join(lines)


def _found(claim: Claim, finding: Finding, letter: str) -> list[str]:
    """What was found, in lines of ``RIGHT`` columns."""
    note = wrap(finding.note, RIGHT)
    if finding.effect is None or finding.record is None:
        return [*note, *wrap(command(claim), RIGHT)]
    holm = "" if finding.adjusted is None else f"{finding.adjusted:.3f}" if finding.adjusted >= 5e-4 else "<.001"
    n, needed = ("" if number is None else str(number) for number in (finding.n, finding.seeds))
    study = f"{finding.record.study} {letter}"
    first = f"{_interval(finding):<26}{holm:>5}{n:>4}{needed:>6}"
    if len(first) + 2 + len(study) <= RIGHT:
        return [f"{first}  {study}", *note]
    return [first, *wrap(f"{study}; {finding.note}" if finding.note else study, RIGHT)]


def _interval(finding: Finding) -> str:
    assert finding.effect is not None
    value = f"{finding.effect:+.3g}"
    if finding.low is None or finding.high is None or finding.low == finding.high:
        return value
    return f"{value} [{finding.low:+.2g}, {finding.high:+.2g}]"


def _letter(index: int) -> str:
    return chr(ord("a") + index) if index < 26 else str(index)


def _explained(claim: Claim, finding: Finding) -> str:
    """One claim with everything that the ledger knows of it."""
    lines = [f"{claim.number}. {claim.claim}", f"source     {claim.source}", f"against    {claim.against}"]
    lines += [f"published  {claim.published or 'nothing'}", f"studies    {', '.join(claim.studies)}"]
    for test in claim.tests:
        rule = f"within {test.than:g} ± {test.matters:g}"
        if test.direction != "within":
            away = test.matters if test.direction == "greater" else -test.matters
            rule = f"{test.direction} than {test.than:g}; smallest of interest {test.than + away:g}"
        lines += [f"effect     {test.metric}", f"claimed    {rule}"]
    told = f"{finding.verdict}{f': {_interval(finding)}' if finding.effect is not None else ''}"
    lines.append(f"verdict    {told}{f' ({finding.note})' if finding.note else ''}")
    return "\n".join(piece for line in lines for piece in wrap(line, LEFT + RIGHT, subsequent_indent=" " * 11))


def _as_json(claim: Claim, finding: Finding) -> dict[str, Any]:
    record, decided = finding.record, finding.test
    return {
        **{key: getattr(claim, key) for key in CLAIM_KEYS if key != "tests"},
        "verdict": finding.verdict,
        "survives_holm": None if finding.adjusted is None else finding.adjusted <= ALPHA,
        **{key: getattr(finding, key) for key in ("effect", "low", "high", "n", "p", "adjusted", "seeds", "note")},
        "metric": [str(test.metric) for test in claim.tests],
        "direction": [test.direction for test in claim.tests],
        "than": [test.than for test in claim.tests],
        "matters": [test.matters for test in claim.tests],
        "decided_by": None if decided is None else str(decided.metric),
        "study": None if record is None else record.study,
        "read_from": None if record is None else record.place,
        "hardware": None if record is None else record.hardware,
        "command": command(claim) if finding.verdict == "not run" else None,
    }
