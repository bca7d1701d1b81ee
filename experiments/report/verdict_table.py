"""The verdicts of the ledger as Markdown tables, and the words for an effect: its interval, its unit, its nulls."""

from __future__ import annotations

from collections.abc import Sequence

from analysis.claims import Claim, Finding
from analysis.effects import SLOT, Metric
from analysis.verdict import Part, Test, Verdict

OPEN: tuple[Verdict, ...] = ("inconclusive", "not run")
QUANTITIES = {  # of measures whose name does not say it
    "test_accuracy": "accuracy",
    "clean_train_accuracy": "accuracy",
    "lesion_interaction": "accuracy",
    "lesion_interaction_any_split": "accuracy",
    "within_computed": "mean |r|",
    "between_computed": "mean |r|",
    "within_input_of_dense": "mean |r|",
    "between_input_of_dense": "mean |r|",
    "mean_abs_correlation": "mean |r|",
    "latent_colour_correlation": "r",
    "colour_difference": "colour index",
    "separation_colour_auc": "AUC",
    "separation_frequency_auc_within_colour": "AUC",
    "cka_between": "CKA",
    "on_block_share": "share of energy",
    "specialisation_smallest_group": "variances of a filter",
    "specialisation_largest_group": "variances of a filter",
    "macs": "MACs",
    "latency": "time",
    "memory_per_device": "memory",
    "sent_into_grouped": "share of bytes",
}


def decided_table(claims: Sequence[Claim], findings: Sequence[Finding]) -> str:
    """Return the decided claims as a table, and a line with the numbers of the others."""
    lines = _head("", "claim", "verdict", "effect", "unit", "against", "n")
    for claim, finding in zip(claims, findings, strict=True):
        if (part := finding.part) is not None and finding.verdict not in OPEN:
            effect = interval(part), quantity(part.test.metric), _first_null(part.test)
            lines.append(_row(claim.number, claim.short, finding.verdict, *effect, _number(finding.n)))
    still_open = []
    for verdict in OPEN:
        numbers = [str(c.number) for c, f in zip(claims, findings, strict=True) if f.verdict == verdict]
        still_open += [f"{verdict.capitalize()}: {', '.join(numbers)}."] if numbers else []
    return "\n".join([*lines, "", " ".join(still_open)])


def whole_table(claims: Sequence[Claim], findings: Sequence[Finding]) -> str:
    """Return all claims as a table with the verdict, what was claimed and found, and the study that decides."""
    lines = _head("#", "claim", "verdict", "effect", "unit", "claimed", "against", "n", "q", "needs", "study")
    for claim, finding in zip(claims, findings, strict=True):
        cells = [claim.number, claim.short, finding.verdict]
        if (part := finding.part) is not None and finding.record is not None:
            cells += [interval(part), quantity(part.test.metric), claimed(part.test), _first_null(part.test)]
            cells += [_number(finding.n), q_text(finding.q), _number(finding.seeds), finding.record.study]
        lines.append(_row(*cells, *[""] * (11 - len(cells))))
    return "\n".join(lines)


def _head(*names: str) -> list[str]:
    return [_row(*names), "|".join(["", *["---"] * len(names), ""])]


def _row(*cells: object) -> str:
    return "|".join(["", *(cell(str(text)) for text in cells), ""])


def cell(text: str) -> str:
    """Return a text that ends no cell of a Markdown table."""
    return text.replace("|", "\\|")


def _number(value: int | str | None) -> str:
    return "" if value is None else str(value)


def _first_null(test: Test) -> str:
    null, *others = nulls_of([test])
    return f"{null}; …" if others else null


def nulls_of(tests: Sequence[Test]) -> list[str]:
    """Return the nulls and the variants that some parts of a claim are compared with, by their names."""
    nulls: dict[str, None] = {}
    for test in tests:
        terms = (*test.metric.of, *test.metric.minus)
        nulls |= dict.fromkeys(term.against for term in terms if term.against)
        others = [v for term in terms for v in term.variants if v not in test.metric.of[0].variants]
        nulls |= dict.fromkeys(f"`{v.replace(SLOT, name)}`" for v in others for name in test.metric.over or ("",))
        if not test.metric.minus:
            nulls[f"{'exponent' if test.metric.log else test.metric.kind} {test.than:g}"] = None
    return list(nulls) or ["nothing"]


def claimed(test: Test) -> str:
    """Return the direction of a part and its smallest effect of interest, in words."""
    if test.direction == "within":
        return f"within {test.than:g} ± {test.matters:g}"
    if test.direction == "no_greater":
        return f"smaller than {test.than + test.matters:g}; there is something if it is above {test.than:g}"
    away = test.matters if test.direction == "greater" else -test.matters
    return f"{test.direction} than {test.than:g}; smallest of interest {test.than + away:.4g}"


def interval(part: Part) -> str:
    """Return an effect and its interval as text."""
    tiny = part.effect and abs(part.effect) < 1e-4
    value = f"{part.effect:+.5f}" if tiny else f"{part.effect:+.3g}"
    if part.low is None or part.high is None or part.low == part.high:
        return value
    return f"{value} [{part.low:+.2g}, {part.high:+.2g}]"


def part_text(part: Part) -> str:
    """Return the finding of another study on a part, in words; with a verdict only if the part has no p."""
    verdict = part.decided or ""
    n = "" if part.n is None else f"n {part.n}"
    return ", ".join(filter(None, (interval(part), n, verdict if part.n is None else "")))


def verdict_text(finding: Finding) -> str:
    """Return a verdict with its q and the limits of it."""
    q = f", q {q_text(finding.q)}" if finding.q is not None else ""
    return f"{finding.verdict}{q}{f' ({finding.note})' if finding.note else ''}"


def q_text(q: float | None) -> str:
    """Return a q with three decimals; empty without one."""
    return "" if q is None else f"{q:.3f}" if q >= 5e-4 else "<.001"


def quantity(metric: Metric) -> str:
    """Return what an effect is measured in, in plain words: ``accuracy``, ``exponent of MACs``, ``share of seeds``."""
    measure = metric.of[0].measure
    name = QUANTITIES.get(measure, measure.replace("_", " "))
    if metric.kind == "slope":
        return f"exponent of {name}" if metric.log else f"{name} per step"
    return {"share": "share of seeds", "ratio": f"ratio of {name}"}.get(metric.kind, name)
