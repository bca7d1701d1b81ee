"""The ``verify`` command: recomputes the record from its packed runs, and can train its quickest runs again."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from difflib import get_close_matches

from experiments.commands.kinds import kind_of
from experiments.errors import UsageError
from experiments.report.claims import BLOCK, CLAIMS_PAGE, README, judge_record, recorded_page, recorded_verdicts
from experiments.report.tables import long_table, read_text
from experiments.report.verify import compare_block, compare_texts, fault
from experiments.study.catalogue import HOME, study_file, study_names


def main(arguments: Sequence[str]) -> int:
    """Verify one study of the record, or all; returns the exit code: 1 if anything differs.

    Args:
        arguments: the name of a study, or none; ``--retrain``, and with it flags of ``run``.

    Raises:
        UsageError: no such study, none in the record, or flags without ``--retrain``.
    """
    results = HOME / "results"
    names = [argument for argument in arguments if not argument.startswith("-")]
    flags = [argument for argument in arguments if argument.startswith("-") and argument != "--retrain"]
    if len(names) > 1:
        raise UsageError(f"verify: {names[1]}: one study at a time, or all without a name")
    for flag in flags:
        if get_close_matches(flag.partition("=")[0], ["--retrain"], cutoff=0.8):
            raise UsageError(f"verify: {flag}: did you mean --retrain, which takes no value?")
    if flags and "--retrain" not in arguments:
        raise UsageError(f"verify: {flags[0]}: says how to train again; give --retrain too")
    if names:
        study_file(names[0])
        if not long_table(results / names[0]).is_file():
            raise UsageError(f"verify {names[0]}: {results / names[0]} has no measures.csv: nothing is recorded")
    recorded = names or [name for name in study_names() if long_table(results / name).is_file()]
    failed = 0
    for name in recorded:
        differences, done = kind_of(name).verify(name, HOME, flags if "--retrain" in arguments else None)
        failed += _report(name, differences, done)
    if not names:
        try:
            judged = judge_record()
            differences = compare_block(README, BLOCK, recorded_verdicts(judged))
            differences += compare_texts(CLAIMS_PAGE, read_text(CLAIMS_PAGE), recorded_page(judged))
        except (UsageError, OSError) as error:  # a table of the record is damaged, or a page is gone
            differences = [fault(error)]
        failed += _report("verdicts", differences)
    return 1 if failed else 0


def _report(name: str, differences: Sequence[str], done: str = "") -> bool:
    """Print the differences of a study, or of the verdicts; returns True if there are any."""
    for line in differences:
        print(f"error: {line}", file=sys.stderr)
    count = len(differences)
    verdict = f"{count} difference{'s' * (count > 1)}" if count else "no difference"
    print(f"{name}: {'; '.join(filter(None, [verdict, done]))}", flush=True)
    return count > 0
