"""The ledger of claims: from the long tables of the studies to verdicts.

One rule, ``RULE``, gives every verdict: ``judge_claims`` is its only place. The training seed is the unit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from textwrap import fill
from typing import Literal

import numpy as np

from analysis.effects import NotMeasuredError, measure_effect
from analysis.evidence import FEW_LEARNED, Record
from analysis.stats import EXACT_SEEDS, false_discovery_rates, smallest_p
from analysis.verdict import (
    ALPHA,
    FEWEST_SEEDS,
    MOST_LOST,
    MOST_SEEDS,
    POWER,
    Part,
    Test,
    Verdict,
    seeds_to_find,
    weigh,
)

Decides = Literal["first", "every"]

_TEXT = f"""\
A claim states beforehand: an effect, a direction, the value that means "no effect" (0 unless it says another) and \
the smallest effect of interest. The training seed is the unit: one value per seed, paired where the seed is the same.

Verdicts
supported              The effect lies beyond "no effect" in the claimed direction, and is not shown to be too small.
contradicted           The effect is shown to be smaller than the smallest effect of interest, or of the other sign.
inconclusive           Neither is shown, or fewer than {FEWEST_SEEDS} seeds have a value.
holds by construction  Arithmetic or the architecture decides; no training changes it. Counted separately.
not run                No study has measured it.
A claim that two things are equal ("within") is supported if the effect lies within the margin, and contradicted if \
it lies outside.
A claim that there is no gain ("no_greater") is supported if the effect is smaller than the margin, and contradicted \
if it is greater than "no effect".

Effects
The terms of an effect are joined by seed. With "each layer" they are joined by the name of the layer, too, and the \
effect of a seed is the mean over the layers. A term of several variants, a|b|c, is their mean. "At equal macs": \
accuracy is interpolated, linearly in the logarithm of the cost, between the variants of each family; the effect is \
the mean difference over the costs that both families span. A slope is that of the least-squares line; an exponent is \
the slope of the logarithms.

Tests
With up to {EXACT_SEEDS} seeds the test tries all sign flips of the values. It needs no normal distribution. It is \
exact where a value is as likely to lie above the centre as the same distance below it, as the difference of two \
like networks is. (With 8 seeds, strongly skewed effects err in up to 12% instead of 2.5% of cases; Student's t does, \
too.) The interval (95%) holds all values that the test does not reject. With more seeds, Student's t gives both. A \
share of seeds has the exact binomial test and interval.
A claim of several parts is supported if every part is: the largest p counts. It is contradicted if one part is: the \
smallest p counts, times the number of all parts, because more parts would otherwise mean more false contradictions.

From p to verdict
Each claim has two one-sided p: for it, and against it. The p for a claim is 1 if its effect is shown to be too small.
Among many claims some are supported by chance. Therefore q decides: the false discovery rate of Benjamini and \
Hochberg. It is computed from the one-sided p: once from those for all claims tested, and once from those against \
all claims. A q is never below twice its p, so that no verdict says more than the 95% interval. A claim is supported \
if its q for the claim is at most {ALPHA:g}, and contradicted if its q against the claim is. So at most {ALPHA:.0%} \
of the claims called supported are expected to be false, and {ALPHA:.0%} of those called contradicted, where the \
tests are exact and claims are independent or depend on each other positively, as those of one study do. (Holm's \
correction would leave 8 seeds without any verdict: their smallest p is {smallest_p(8):.4f}, and Holm multiplies it \
by the number of claims.)
The table prints the q of the verdict; if the verdict is inconclusive, the q for the claim.
A p in a note is the doubled one.
"needs" is printed if the verdict is inconclusive: the number of seeds that find the smallest effect of interest with \
a probability of {POWER:.0%}. It assumes the spread seen so far (or that of a pilot) and the other claims as they are.

Lost runs
These are never evidence: a run that diverged; a network no better than chance (by the 95% interval of its accuracy \
on the test images); and, for claims about filters, a network of which fewer than {FEW_LEARNED:.0%} of the first \
filters learned.
The seed of such a run is lost, not left out. In the test for the claim it gets the value of the other seeds that \
favours the claim least; in the test against the claim, the value that favours it most. If more than \
{MOST_LOST:.0%} of the seeds are lost, nothing is decided.

The study that decides
The first study of the claim that has {FEWEST_SEEDS} seeds decides; if none has, the first that measured the claim. \
The results of the others are shown. If a claim says "every", all its studies decide together: the parts of each one \
are parts of the claim. As long as one of them has not been run, such a claim can only be contradicted.
A study counts as it stands in its file. If the command line changed what is trained (recipe, model, images), it is \
a trial and no evidence, unless you ask for it: make claims ARGS="--runs_root=DIR --trials". Its line then says what \
was changed. The number of seeds, the device, and more images to measure with do not make a trial. Other images than \
the study's own do, unless their content is that of the record in results/. The record in results/ always counts, \
and its line says what was changed.
Runs of one study in different precision are no evidence. Of runs/ and results/ the one with more seeds counts.

Counts and times
Counts (parameters, MACs) do not vary: the value itself is the interval. The interval of a timing is the quartiles \
of its repeats, which cover the median with about 95% for 15 repeats. It holds for the machine named. An effect of \
several timings, such as an exponent, has the widest bounds that their quartiles allow. Neither has a p or a q.
"""
RULE = "\n".join(line if line[:1].islower() else fill(line, 118) for line in _TEXT.splitlines())


@dataclass(frozen=True)
class Claim:
    """One claim of the ledger.

    Attributes:
        number: place in the ledger, from 1.
        short: name of at most eight words, for tables and figures.
        claim: the statement.
        source: publication or author of the statement.
        against: the null that could explain the effect.
        contradicts: the result that would contradict the claim.
        studies: names of the studies that can decide the claim, the best first.
        decides: ``first``: the first of these studies that can; ``every``: all of them together.
        published: the published value; empty if there is none.
        tests: the parts of the claim, all of which must hold.
    """

    number: int
    short: str
    claim: str
    source: str
    against: str
    contradicts: str
    studies: tuple[str, ...]
    decides: Decides
    published: str
    tests: tuple[Test, ...]


@dataclass(frozen=True)
class StudyAnswer:
    """The answer of one study to the parts of a claim.

    Attributes:
        record: the measures of the study.
        parts: the parts that were measured, in the order of the claim's tests.
        missing: why a part was not measured; empty if all were.
    """

    record: Record
    parts: tuple[Part, ...]
    missing: str

    @property
    def seeds(self) -> float:
        """The fewest seeds of any part; infinity if no part is per seed, −1 if none was measured."""
        if not self.parts:
            return -1
        return min((part.n for part in self.parts if part.n is not None), default=np.inf)


@dataclass(frozen=True)
class ChosenStudies:
    """The studies that decide a claim.

    Attributes:
        answers: the answers of these studies.
        others: the answers of other studies that measured the claim.
        note: the records that are no evidence, and the studies without any; empty otherwise.
        is_complete: True if all studies that must decide are there.
    """

    answers: tuple[StudyAnswer, ...]
    others: tuple[StudyAnswer, ...] = ()
    note: str = ""
    is_complete: bool = True


@dataclass(frozen=True)
class Finding:
    """The verdict on a claim, and the numbers behind it.

    Attributes:
        verdict: the verdict, by ``RULE``.
        part: the part that decides; None if none was measured.
        number: place of this part in the claim, from 1.
        record: the record in which this part was measured.
        n: the fewest seeds of any part; None if no part is per seed.
        p: doubled p for the claim, or against it if the verdict is "contradicted"; None if the claim was not tested.
        q: this p after the correction for all claims.
        seeds: number of seeds that would decide an open claim; None if it is unknown, or over ``MOST_SEEDS``.
        note: limits of the verdict, in plain words.
        answers: the answers of the studies that decide.
        others: the answers of other studies that measured the claim.
    """

    verdict: Verdict
    part: Part | None = None
    number: int = 1
    record: Record | None = None
    n: int | None = None
    p: float | None = None
    q: float | None = None
    seeds: int | None = None
    note: str = ""
    answers: tuple[StudyAnswer, ...] = ()
    others: tuple[StudyAnswer, ...] = ()


@dataclass(frozen=True)
class _Tested:
    """A claim before the correction for all claims.

    Attributes:
        parts: each part in each study that decides, with its number and record.
        verdict: the verdict of a claim that no p decides; None if a p decides.
        support, oppose: p for the claim and p against it; None if the claim was not tested.
    """

    parts: tuple[tuple[Part, int, Record], ...]
    verdict: Verdict | None
    support: float | None
    oppose: float | None
    chosen: ChosenStudies


def claims_of_study(study: str, claims: Sequence[Claim]) -> list[Claim]:
    """Return the claims that a study can decide, each as a claim of this study alone."""
    return [replace(claim, studies=(study,)) for claim in claims if study in claim.studies]


def judge_claims(claims: Sequence[Claim], records: Sequence[Record]) -> list[Finding]:
    """Give the verdicts on the claims of a ledger, by ``RULE``.

    Args:
        claims: all claims of the ledger, because the false discovery rate is over all that are tested.
        records: records of any studies. Of two records of one study with equally many seeds, the earlier one counts.

    Returns:
        One finding per claim, in their order.
    """
    return decide_claims(claims, [_choose(claim, records) for claim in claims])


def decide_claims(claims: Sequence[Claim], chosen: Sequence[ChosenStudies]) -> list[Finding]:
    """Give the verdicts as ``judge_claims`` does, from one ``ChosenStudies`` per claim."""
    tested = [_test(claim, studies) for claim, studies in zip(claims, chosen, strict=True)]
    support = _corrected([t.support for t in tested])
    oppose = _corrected([t.oppose for t in tested])
    supported = sum(q is not None and q <= ALPHA for q in support)
    family = sum(t.support is not None for t in tested)
    return [
        _decide(claim, t, q_for, q_against, supported, family)
        for claim, t, q_for, q_against in zip(claims, tested, support, oppose, strict=True)
    ]


def _corrected(p: Sequence[float | None]) -> list[float | None]:
    """Return the q of the p of one side: the false discovery rate, never below p doubled."""
    rates = false_discovery_rates(p)
    return [None if x is None else float(max(rate, min(1.0, 2 * x))) for x, rate in zip(p, rates, strict=True)]


def _test(claim: Claim, chosen: ChosenStudies) -> _Tested:
    answers = chosen.answers
    parts = tuple((part, claim.tests.index(part.test) + 1, s.record) for s in answers for part in s.parts)
    missing = "; ".join(dict.fromkeys(s.missing for s in answers if s.missing))
    whole = bool(answers) and not missing and chosen.is_complete
    open_ = [part for part, _, _ in parts if not part.test.construction]
    opposed = [part.oppose for part, _, _ in parts if part.oppose is not None]
    wrong = any(part.decided == "contradicted" for part, _, _ in parts)
    oppose = min(1.0, len(claim.tests) * max(1, len(answers)) * min(opposed)) if opposed else None
    support = [part.support for part in open_ if part.support is not None]
    undecided = any(part.decided == "inconclusive" for part in open_)
    verdict: Verdict | None = None
    if wrong:
        verdict, oppose, support = "contradicted", None, []
    elif not whole:
        verdict, support = "not run", []
    elif all(test.construction for test in claim.tests):
        verdict, support = "holds by construction", []
    elif undecided:
        verdict, support = "inconclusive", []
    elif not support:
        verdict = "supported"
    note = "; ".join(filter(None, (missing, chosen.note)))
    return _Tested(parts, verdict, max(support, default=None), oppose, replace(chosen, note=note))


def _choose(claim: Claim, records: Sequence[Record]) -> ChosenStudies:
    """Choose the studies that decide a claim."""
    refused, by_study = [], []
    for study in claim.studies:
        of_study = [record for record in records if record.study == study]
        refused += [f"{r.place}/{study} is no evidence: {r.refused}" for r in of_study if r.refused]
        answers = [_answer(claim, record) for record in of_study if not record.refused]
        if answers:
            by_study.append(max(answers, key=lambda s: (not s.missing, s.seeds)))  # of equals the first
    able = [s for s in by_study if not s.missing]
    enough = [s for s in able if s.seeds >= FEWEST_SEEDS]
    every = claim.decides == "every" and bool(able)
    deciding = able if every else (enough or able or by_study)[:1]
    absent = set(claim.studies) - {s.record.study for s in by_study}
    notes = list(refused)
    if every:
        notes += [s.missing for s in by_study if s.missing]
        notes += [f"{study} has not been run" for study in claim.studies if study in absent and not refused]
    elif not by_study and not refused:
        notes = [f"{' or '.join(claim.studies)} has not been run"]
    others = tuple(s for s in able if all(s is not d for d in deciding))
    return ChosenStudies(tuple(deciding), others, "; ".join(notes), not every or len(able) == len(claim.studies))


def _answer(claim: Claim, record: Record) -> StudyAnswer:
    """Return the parts of a claim on one record."""
    parts, missing = [], ""
    for test in claim.tests:
        table, lost = record.for_effect(test.metric)
        try:
            parts.append(weigh(measure_effect(table, test.metric, lost), test))
        except NotMeasuredError as error:
            missing = missing or f"{record.place}/{record.study} has {error}"
    return StudyAnswer(record, tuple(parts), missing)


def _decide(
    claim: Claim, t: _Tested, q_for: float | None, q_against: float | None, supported: int, family: int
) -> Finding:
    """Return the verdict on a claim, the part that decides it, and the numbers of this verdict."""
    verdict = t.verdict
    if verdict != "contradicted" and q_against is not None and q_against <= ALPHA:
        verdict = "contradicted"
    elif verdict is None:
        verdict = "supported" if q_for is not None and q_for <= ALPHA else "inconclusive"
    against = verdict == "contradicted"
    p, q = (t.oppose, q_against) if against else (t.support, q_for)
    seeds = [part.n for part, _, _ in t.parts if part.n is not None]
    finding = Finding(
        verdict,
        n=min(seeds, default=None),
        p=None if p is None else min(1.0, 2 * p),
        q=q,
        answers=t.chosen.answers,
        others=t.chosen.others,
    )
    if verdict == "not run":
        return replace(finding, n=None, note=t.chosen.note)
    part, number, record = max(t.parts, key=lambda place: (*_weight(place[0], against), _falls_short(place[0])))
    several = len(claim.tests) > 1
    holds = part.test.construction and not against
    notes = [f"part {number} of {len(claim.tests)} decides" if several else "", part.test.construction]
    notes += ["" if holds else part.note, t.chosen.note]
    needed = None
    if verdict == "inconclusive":
        level = min(ALPHA / 2, ALPHA * (supported + 1) / max(1, family + (t.support is None)))
        needed, note = _seeds_needed(t, level)
        if t.support is not None and 2 * t.support <= ALPHA:
            notes.append(f"clear by itself (p {2 * t.support:.2g}), not among {family} claims tested")
        if t.oppose is not None and 2 * t.oppose <= ALPHA:
            notes.append(f"against the claim by itself (p {2 * t.oppose:.2g}), not among the claims tested")
        notes.append(note)
    note = "; ".join(filter(None, notes))
    return replace(finding, part=part, number=number, record=record, seeds=needed, note=note)


def _weight(part: Part, against: bool) -> tuple[float, ...]:
    """Return how much a part decides: against a claim the clearest part, else the weakest."""
    if against:
        return (part.decided == "contradicted", -(1.0 if part.oppose is None else part.oppose))
    return (
        not part.test.construction,
        part.decided == "inconclusive",
        part.support is not None,
        part.support or 0.0,
    )


def _falls_short(part: Part) -> float:
    """Return how far an effect falls short of what is claimed, in smallest effects of interest.

    Of studies that decide together without a p, as by times, the one that saves least is shown.
    """
    if part.effect is None:
        return 0.0
    away = part.effect - part.test.than
    towards = {"greater": away, "less": -away, "within": -abs(away), "no_greater": -away}[part.test.direction]
    return -towards / part.test.matters


def _seeds_needed(t: _Tested, level: float) -> tuple[int | None, str]:
    """Return the number of seeds that an open claim needs, or a note why it is unknown."""
    wanted = []
    for part, _, _ in t.parts:
        if part.n is None or part.test.construction:
            continue
        spread = part.spread if part.spread is not None else part.test.spread
        if spread is None and part.test.metric.kind != "share":
            return None, ""
        seeds = seeds_to_find(part.test, spread, level)
        if seeds is None:
            return None, f"needs more than {MOST_SEEDS} seeds"
        wanted.append((seeds, part.n + part.lost))
    if not wanted:
        return None, ""
    needed = max(seeds for seeds, _ in wanted)
    if any(seeds > n for seeds, n in wanted):
        return needed, ""
    return None, f"{needed} seeds would find what matters: what is there is smaller, or the seeds disagree"
