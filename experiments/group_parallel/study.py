"""The study of filter groups as model parallelism: what a step costs on each device, by groups and by data.

Nothing is trained, so this study has a file, a parser and a report of its own. All that is measured goes to the long
table, as everywhere, and the figure and the verdict are drawn from that.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from analysis.figures import group_parallel as figure
from experiments.errors import RunFailedError, UsageError
from experiments.group_parallel.config import GroupParallel, load, study_parser
from experiments.group_parallel.tables import measure, measurement_key, save, summary
from experiments.group_parallel.verify import verify_record
from experiments.report.claims import study_verdicts
from experiments.report.summary import read_measures, tables_folder
from experiments.report.tables import DamagedTableError, read_about
from experiments.store import leases
from experiments.store.runs import write_atomic, write_json
from experiments.study.catalogue import locate_study
from experiments.study.invocation import typed
from experiments.study.strict_yaml import read_yaml
from experiments.training.run_context import device_name


def run(name: str, flags: Sequence[str]) -> int:
    """Measure what is not measured yet, draw and report; returns how many processes failed, 0 or 1.

    Two processes that measure at once would slow each other down. So the second waits for the tables of the first.
    """
    study = load(name, flags)
    tables = tables_folder(study.folder)
    if (by := leases.holder(tables)) is not None:
        print(f"in measurement by another process ({by.pid} on {by.host}); waiting for it", flush=True)
    with leases.wait_for_lease(tables):
        if not _is_measured(study):
            try:
                _measure(study, flags)
            except RunFailedError as error:
                print(f"failed: {error}; the same command tries again", flush=True)
                return 1
        paths = draw(study.folder)
    print(f"\n{study.question}\n\n{summary(read_measures(study.folder))}\n")
    if verdicts := study_verdicts(study.folder.name, study.folder.parent):
        print(f"Verdicts of this study alone (make claims prints the ledger)\n{verdicts}\n")
    print(f"tables:  {tables}")
    print("figures: " + "\n         ".join(str(path) for path in paths if path.suffix == ".png"))
    return 0


def _measure(study: GroupParallel, flags: Sequence[str]) -> None:
    """Measure every case and write the tables.

    Raises:
        RunFailedError: a process failed.
    """
    kept = tables_folder(study.folder) / "study.json"
    kept.unlink(missing_ok=True)
    hardware, ranks = device_name(torch.device(study.device)), max(case.devices for case in study.cases)
    print(f"measuring {len(study.cases)} variants on {ranks} processes ({hardware}) …", flush=True)
    save(study, measure(study), hardware)
    given = [flag for flag in flags if not flag.startswith("--runs_root=")]  # not where it lies
    write_json(kept, {"question": study.question, "key": measurement_key(study, hardware), "overrides": given})


def status(name: str, flags: Sequence[str]) -> dict[str, Any]:
    """Return the state of every run, in the form of ``study.status.study_status``."""
    study = load(name, flags)
    kept = tables_folder(study.folder) / "study.json"
    done = _is_measured(study)
    runs = [{"variant": case.name, "seed": 0, "state": "done" if done else "to do"} for case in study.cases]
    counts = {"done": len(runs) * done, "running": 0, "failed": 0, "to do": len(runs) * (not done)}
    other = int(kept.is_file() and not done)
    return {"study": study.name, "counts": counts, "runs": runs, "others": other, "others_running": []}


def _is_measured(study: GroupParallel) -> bool:
    """Tell if this was measured here and its table is whole; damage is reported."""
    kept = tables_folder(study.folder) / "study.json"
    try:
        hardware = device_name(torch.device(study.device))
        if not kept.is_file() or read_about(kept, []).get("key") != measurement_key(study, hardware):
            return False
        read_measures(study.folder)
    except DamagedTableError as error:
        print(f"warning: {error.damage}; it is to be measured again", file=sys.stderr, flush=True)
        return False
    return True


def verify(name: str, home: Path, flags: Sequence[str] | None) -> tuple[list[str], str]:
    """Recompute the record in ``home``; with flags, of which none is used, measure again what is no time."""
    return verify_record(name, home / "results", again=flags is not None)


def flags_help(name: str) -> str:
    """Return every flag of the study, with its type and meaning."""
    return study_parser(read_yaml(locate_study(name)[1])["model"]["name"]).format_help()


def draw(folder: Path) -> list[Path]:
    """Draw the figure from the saved table.

    Raises:
        UsageError: the study has no tables yet.
    """
    if not (tables_folder(folder) / "measures.csv").is_file():
        raise UsageError(f"{tables_folder(folder)} has no measures.csv: {typed('run', folder.name)} first")
    return figure.draw(read_measures(folder), folder / "figures")


def restore(name: str, home: Path, folder: Path) -> None:
    """Copy the tables of the record in ``home`` to a study's folder."""
    for source in (home / "results" / name).glob("*.csv"):
        content = source.read_bytes()
        write_atomic(tables_folder(folder) / source.name, lambda file, content=content: file.write(content))


def write_record(folder: Path, home: Path) -> list[Path]:
    """Copy tables, figure and summary to ``results/`` in ``home``; returns the files written.

    Raises:
        UsageError: the study has no tables yet.
    """
    figures = draw(folder)
    tables = tables_folder(folder)
    contents = {
        path.name: path.read_bytes() for path in (*sorted(tables.glob("*.csv")), *tables.glob("study.json"), *figures)
    }
    contents["summary.txt"] = f"{summary(read_measures(folder))}\n".encode()
    record = home / "results" / folder.name
    for name, content in contents.items():
        write_atomic(record / name, lambda file, content=content: file.write(content))
    return [record / name for name in contents]
