"""The ledger ``configs/claims.yaml``, read and checked: the only place where a claim is written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_args

import numpy as np

from analysis.claims import Claim, Decides
from analysis.effects import SLOT, Kind, Metric, Term
from analysis.verdict import Direction, Test
from experiments.errors import UsageError
from experiments.study.catalogue import CONFIGS
from experiments.study.strict_yaml import place_of, read_yaml

LEDGER = CONFIGS / "claims.yaml"
CLAIM_KEYS = tuple(field.name for field in fields(Claim))
OPTIONAL = ("decides",)
TERM_KEYS = ("measure", "variant", "layer", "against")
METRIC_KEYS = ("kind", "of", "minus", "over", "by", "log", "per")
TEST_KEYS = (*METRIC_KEYS, "direction", "matters", "than", "construction", "spread")


def read_claims(path: Path) -> list[Claim]:
    """Return the ledger, checked.

    Raises:
        UsageError: names the file, the claim, the key and the right values.
    """
    place = place_of(path)
    content = read_yaml(path)
    _known(content, ("claims",), ("claims",), place)
    if not isinstance(content["claims"], list) or not content["claims"]:
        raise UsageError(f"{place}: claims must be a list of claims")
    claims = [_claim(entry, f"{place}, claim", order) for order, entry in enumerate(content["claims"], 1)]
    for number, times in Counter(claim.number for claim in claims).items():
        if times > 1:
            raise UsageError(f"{place}, claim {number}: {times} claims have this number; each needs its own")
    return claims


def _claim(entry: object, place: str, order: int) -> Claim:
    number = entry.get("number") if isinstance(entry, dict) else None
    if not isinstance(entry, dict) or isinstance(number, bool) or not isinstance(number, int) or number < 1:
        what = f"number: {number!r}" if isinstance(entry, dict) else repr(entry)
        raise UsageError(f"{place} at place {order} of the list: {what} must be a mapping with a number from 1")
    place = f"{place} {number}"
    _known(entry, CLAIM_KEYS, [key for key in CLAIM_KEYS if key not in OPTIONAL], place)
    for key in ("short", "claim", "source", "against", "contradicts", "published"):
        if not isinstance(entry[key], str) or (key != "published" and not entry[key]):
            raise UsageError(f"{place}, {key}: {entry[key]!r} must be a text")
    if not isinstance(entry["tests"], list) or not entry["tests"]:
        raise UsageError(f"{place}, tests: {entry['tests']!r} must be a list of tests")
    tests = [_test(test, f"{place}, tests[{index}]") for index, test in enumerate(entry["tests"])]
    decides = _one_of(entry.get("decides", "first"), get_args(Decides), f"{place}, decides")
    given = {
        **entry,
        "decides": decides,
        "studies": _texts(entry["studies"], f"{place}, studies"),
        "tests": tuple(tests),
    }
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
    construction, spread = entry.get("construction", ""), entry.get("spread")
    if not isinstance(construction, str):
        raise UsageError(f"{place}, construction: {construction!r} must be a text: why it holds by construction")
    if spread is not None and (spread := _number(spread, f"{place}, spread")) <= 0:
        raise UsageError(f"{place}, spread: {spread:g} must be a standard deviation over seeds, above 0")
    than = _number(entry.get("than", 0), f"{place}, than")
    return Test(metric, direction, matters, than, construction, spread)  # type: ignore[arg-type]


def _fits(metric: Metric, direction: str, place: str) -> None:
    """Raise if the effect of this kind cannot be computed from the terms."""
    slots = all(SLOT in v for term in (*metric.of, *metric.minus) for v in term.variants)
    numbered = bool(metric.over) and not np.isnan(list(metric.over.values())).any()
    several = {term.layer == "each" for term in (*metric.of, *metric.minus)} == {True, False}
    wrong = {
        "of: at least one term is needed": not metric.of,
        "layer: each in one term needs it in all": several,
        "minus: a ratio is one term of, over one term minus": metric.kind == "ratio"
        and (len(metric.of), len(metric.minus)) != (1, 1),
        "of: a share is of one term, greater, and per seed": metric.kind == "share"
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
