"""The ledger as a page: of each claim the verdict, the test, the seeds, and the error rate and power of the rule.

The rates are those of ``benchmarks.null_studies``: simulated networks, through the measures and the rule.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from textwrap import fill

import numpy as np
import pandas as pd

from analysis.claims import RULE, Claim, Finding
from analysis.verdict import ALPHA, MOST_SEEDS, POWER, Test, seeds_to_find
from experiments.errors import UsageError
from experiments.report.verdict_table import cell, claimed, nulls_of, part_text, verdict_text, whole_table

EVERY = " (every study counts)"
MEANINGS = {
    "smooth": "smooth random filters without any rest of the initialisation",
    "clustered": "filters in six clusters that do not depend on the groups",
    "growth": "filters and whole groups that have grown unevenly",
    "shared": "filters of which most is the initialisation, which all networks of a seed share",
    "grey": "filters as of grey images, which have grown unevenly and keep part of the initialisation",
}
PLANTED, ACCURACY = "planted", "accuracy"
MEANING_OF_PLANTED = "conv1 splits by colour, then by frequency; groups leave out what they have in common"
COLUMNS = ("kind", "claim", "part", "runs", "studies", "seeds", "sd", "matters", "part_alone", "alone", "power")
SHOWN = """\
A claim is contradicted only if the result under *contradicted by* is shown: by its q, or, for a count or a time, by its
whole interval. An effect whose interval reaches further does not show it."""
WEAK = 0.5  # power below which a study will probably miss the smallest effect of interest


def read_rates(path: Path) -> pd.DataFrame:
    """Return the table that ``benchmarks.null_studies`` writes.

    Raises:
        UsageError: it is not there, or lacks a column.
    """
    how = f"python -m benchmarks.null_studies --csv={path}"
    if not path.is_file():
        raise UsageError(f"claims: --markdown needs {path}, which is not there; {how} writes it")
    rates = pd.read_csv(path)
    missing = [column for column in COLUMNS if column not in rates]
    if missing:
        raise UsageError(f"claims: {path} has no column {', '.join(missing)}; {how} writes it anew")
    return rates


def write_page(claims: Sequence[Claim], findings: Sequence[Finding], rates: pd.DataFrame) -> str:
    """Return the page in Markdown.

    Args:
        claims: claims of the ledger.
        findings: the verdict on each claim.
        rates: rates of wrong verdicts and of power; see ``read_rates``.
    """
    of_claims = [(claim, _of_claim(claim, rates)) for claim in claims]
    simulated = rates[rates["kind"] != ACCURACY]
    runs, studies, seeds = (int(simulated[column].max()) for column in ("runs", "studies", "seeds"))
    head = f"""\
# The ledger of claims

Written by `make claims ARGS=--markdown > docs/claims.md` from `configs/claims.yaml`, the studies in `results/` and the
simulated rates in `results/null-studies/rates.csv`; do not edit it. `make claims` counts your own runs, too.

## Verdicts

All studies are small: images of 16 to 80 pixels, 2 to 15 epochs, one processor. A verdict holds at this scale and does
not refute a published result. Of a claim with several parts, the row shows the part that decides. A claim is
contradicted if one of its parts is: [each claim](#each-claim) has the others, which may agree with it.

- **effect**: with its 95% interval, in this **unit**. Of a time: with the bounds that the quartiles allow.
  *Per step*: the slope over variants; a step is a doubling of the number of groups.
- **claimed**: the direction, and the smallest effect of interest. Both were fixed before any verdict was computed.
- **against**: the null that the effect is compared with. A `name` is a variant of the study. *Share 0.8*, *slope 0*
  and *exponent 0* are fixed numbers. **n**: seeds.
- **q**: false discovery rate over all claims, by [the rule](#the-rule); a verdict over seeds needs {ALPHA:g} or less.
- **needs**: seeds that decide an open claim with a power of {POWER:.0%}, if the smallest effect of interest exists.

{whole_table(claims, findings)}

## Seeds, errors and power

- **seeds**: number of seeds that finds the smallest effect of interest with a power of {POWER:.0%}, before the
  correction for other claims. It comes from the spread that a pilot measured; of several parts the largest number
  counts. A plus: a part has no pilot, and may need more. In brackets: the least and the greatest number by the spreads
  of the kinds of simulated networks, which may all be above or below that of the pilot.
- **wrong**: how often the claim is *supported* if there is no effect, in percent of studies of {seeds} seeds. Each
  claim is judged by itself. This is the worst case: the correction for all claims only lowers the rate. Five numbers
  are those of five kinds of simulated networks, measured as trained ones are: {", ".join(MEANINGS)}.
  One number is that of a claim about accuracy alone, for which no network was simulated. Its effects are normal
  random numbers with the spread of the pilot. If it claims "the same" or "no gain", they are drawn around the margin,
  where the claim is just false.
- **power**: how often the claim is *supported* if each part has the smallest effect of interest, in percent of studies
  of {seeds} seeds. Each claim is judged by itself. The range is that of all kinds of networks.
- A dash: nothing was simulated. Counts and timings have no seeds, and claim 1 holds by construction.

| # | claim | decided by | against | seeds | wrong, % | power, % |
|---|---|---|---|---|---|---|"""
    lines = [head]
    for claim, of_claim in of_claims:
        cells = (
            claim.claim,
            _measures(claim),
            "; ".join(nulls_of(claim.tests)),
            _seeds(claim, of_claim),
            _wrong(of_claim),
        )
        lines.append(f"| {claim.number} | " + " | ".join(cell(text) for text in (*cells, _power(of_claim))) + " |")
    lines += ["", "Simulated networks without effects:", ""]
    lines += [f"- *{kind}*: {meaning}" for kind, meaning in MEANINGS.items()]
    lines += ["", "Simulated networks with effects:", "", f"- *{PLANTED}*: {MEANING_OF_PLANTED}"]
    lines += ["", "## Limits", "", *_limits(of_claims, runs, studies, seeds), "", "## Each claim", ""]
    lines += [SHOWN, ""]
    for (claim, of_claim), finding in zip(of_claims, findings, strict=True):
        lines += [*_details(claim, of_claim, finding), ""]
    return "\n".join([*lines, "## The rule", "", "```text", RULE.rstrip(), "```"])


def planned(claim: Claim) -> str:
    """Return the seeds that a claim needs, from its pilots."""
    open_ = _open_parts(claim)
    if not open_:
        return "none: no seed changes it"
    known = [test for test in open_ if test.spread is not None or test.metric.kind == "share"]
    if not known:
        return "not known: no pilot"
    most = _number(_most_seeds([(test, test.spread) for test in known]))
    return most if len(known) == len(open_) else f"{most} or more: a part has no pilot"


def _open_parts(claim: Claim) -> list[Test]:
    return [test for test in claim.tests if test.metric.per_seed and not test.construction]


def _most_seeds(parts: Sequence[tuple[Test, float | None]]) -> int:
    """Return the seeds of the part that needs most; one above ``MOST_SEEDS`` where that is more."""
    return max(seeds_to_find(test, spread) or MOST_SEEDS + 1 for test, spread in parts)


def _number(seeds: int) -> str:
    return f"more than {MOST_SEEDS}" if seeds > MOST_SEEDS else str(seeds)


def _of_claim(claim: Claim, rates: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of a claim that fit it as it is today: a part that was changed since has no rates."""
    rows = rates[(rates["claim"] == claim.number) & (rates["part"] <= len(claim.tests))]
    today = [claim.tests[part - 1].matters for part in rows["part"]]
    return rows[np.isclose(rows["matters"], today)]


def _vary(of_claim: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of the kinds of networks in which each part has a spread: without one there is no test."""
    return of_claim[of_claim.groupby("kind")["sd"].transform("min") > 0]


def _simulated_seeds(claim: Claim, of_claim: pd.DataFrame) -> list[int]:
    """Return the seeds that a claim needs by the spreads of each kind of simulated networks, in rising order."""
    by_kind = _vary(of_claim[of_claim["kind"] != ACCURACY]).groupby("kind")
    seeds = []
    for _, of_kind in by_kind:
        parts = [claim.tests[part - 1] for part in of_kind["part"]]
        seeds.append(_most_seeds(list(zip(parts, of_kind["sd"], strict=True))))
    return sorted(seeds)


def _seeds(claim: Claim, of_claim: pd.DataFrame) -> str:
    pilot = planned(claim)
    seeds = _simulated_seeds(claim, of_claim)
    short = {"none: no seed changes it": "—", "not known: no pilot": "no pilot"}.get(pilot, pilot.split(" or more")[0])
    short += "+" if "or more" in pilot else ""
    if not seeds or _number(seeds[0]) == _number(seeds[-1]) == pilot:
        return short
    return f"{short} ({'–'.join(dict.fromkeys((_number(seeds[0]), _number(seeds[-1]))))})"


def _wrong(of_claim: pd.DataFrame) -> str:
    by_kind = of_claim.groupby("kind")["alone"].first()
    kinds = [kind for kind in (*MEANINGS, ACCURACY) if kind in by_kind]
    return " · ".join(f"{100 * by_kind[kind]:.3g}" for kind in kinds) or "—"


def _power(of_claim: pd.DataFrame) -> str:
    power = _vary(of_claim)["power"]
    if power.empty:
        return "—"
    return "–".join(dict.fromkeys(f"{100 * x:.0f}" for x in (power.min(), power.max())))


def _measures(claim: Claim) -> str:
    terms = [term for test in claim.tests for term in (*test.metric.of, *test.metric.minus)]
    parts = f" ({len(claim.tests)} parts)" if len(claim.tests) > 1 else ""
    return ", ".join(f"`{name}`" for name in dict.fromkeys(term.measure for term in terms)) + parts


def _limits(of_claims: Sequence[tuple[Claim, pd.DataFrame]], runs: int, studies: int, seeds: int) -> list[str]:
    """Return sentences on the meaning of the rates for a study with this number of seeds."""
    most = {
        claim.number: (power.max(), f"{claim.number} ({power.max():.0%}; seeds: {_seeds(claim, of_claim)})")
        for claim, of_claim in of_claims
        if len(power := _vary(of_claim)["power"])
    }
    weak = [text for power, text in most.values() if power < WEAK]
    fair = [text for power, text in most.values() if WEAK <= power < POWER]
    wrong = {claim.number: of_claim.loc[of_claim["kind"] != PLANTED, "alone"].max() for claim, of_claim in of_claims}
    number = max((n for n in wrong if wrong[n] >= 0), key=lambda n: wrong[n])
    limits = [
        f"**Too few seeds.** In a study of {seeds} seeds these claims stay *inconclusive* more often than not, even if "
        f"the smallest effect of interest exists: {'; '.join(weak)}. In brackets: the greatest power, and the seeds "
        f"needed. An inconclusive verdict on them is no evidence against them. Power below {POWER:.0%}: "
        f"{'; '.join(fair)}.",
        f"**Wrong support.** In simulated networks without effects, no claim is supported in more than "
        f"{wrong[number]:.1%} of the studies (claim {number}). {studies} studies were drawn from {runs} simulated runs "
        "of each kind. They share runs: a rate of 0 means below about 1%, and a rate of 5% may be 3% or 7%.",
        "**Wrong contradiction.** If the smallest effect of interest exists, a claim is contradicted in at most "
        f"{ALPHA / 2:.1%} of studies, however many parts it has.",
        "**Skew.** Both rates hold for effects that are about as likely to lie above their centre as below it. "
        "Strongly skewed effects err in up to 12% of studies of 8 seeds, for the claim or against it; Student's t "
        "does, too.",
        "**Spread.** The spread of simulated networks is not that of trained ones. After a study, `make claims` gives "
        "the seeds needed by the measured spread.",
    ]
    return [fill(f"- {text}", 118, subsequent_indent="  ", break_on_hyphens=False) for text in limits]


def _details(claim: Claim, of_claim: pd.DataFrame, finding: Finding) -> list[str]:
    lines = [f"### {claim.number}. {claim.claim}", "", f"- verdict: {verdict_text(finding)}"]
    lines += [f"- source: {claim.source}", f"- against: {claim.against}", f"- contradicted by: {claim.contradicts}"]
    lines += [f"- published: {claim.published or 'nothing'}"]
    lines += [f"- studies: {', '.join(claim.studies)}{EVERY if claim.decides == 'every' else ''}"]
    lines += [f"- seeds by the pilot: {planned(claim)}"]
    for kind, of_kind in of_claim.groupby("kind", sort=False):
        rate = of_kind.iloc[0]
        outcome = "supported" if kind == PLANTED else "wrongly supported"
        power = f"power {rate['power']:.1%}" if len(_vary(of_kind)) else "values without spread: no test"
        spreads = ", ".join(f"{sd:.2g}" for sd in of_kind["sd"])
        lines.append(f"- {kind}: {outcome} {rate['alone']:.1%}; {power}; SD over seeds {spreads}")
    for number, test in enumerate(claim.tests, 1):
        why = f"; holds by construction: {test.construction}" if test.construction else ""
        part = f"part {number}: " if len(claim.tests) > 1 else ""
        lines.append(f"- {part}`{test.metric}`: {claimed(test)}{why}")
        for answer in (*finding.answers, *finding.others):
            lines += [f"  - {answer.record.study}: {part_text(p)}" for p in answer.parts if p.test == test]
    return lines
