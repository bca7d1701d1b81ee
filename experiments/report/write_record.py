"""The record of a study in ``results/``: tables, figures, and the packed runs that all of them are made from."""

from __future__ import annotations

import lzma
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from experiments.errors import UsageError
from experiments.measure.table import save_table
from experiments.report.marked_text import replace_block
from experiments.report.pictures import figure_name, small_png
from experiments.report.study_tables import check_measures, is_tabled, read_missing, speed_rows
from experiments.report.summary import (
    SEED_DRAWN,
    TABLES,
    check_tables,
    draw_figures,
    markdown,
    read_measures,
    summary,
    tables_folder,
)
from experiments.report.tables import COMPRESSED, LONG_TABLE, read_about, read_csv
from experiments.store.packed import NotGatheredError, pack, read_ended
from experiments.store.runs import file_name, write_atomic
from experiments.study.invocation import typed

PACKED = "runs"  # folder of the packed runs in a study's record
PAGE = Path("docs", "index.md")  # page of a checkout with the tables of some studies
ON_PAGE = ("quickstart",)  # studies whose table the page must have
SPEED = "speed.csv"  # times and memory of the architectures, which no run holds
LARGEST_FIGURE = 300_000  # bytes of all its pages; a larger one is left out, as ``make figures`` draws it again


def write_study_record(study_folder: Path, results: Path, page: Path) -> list[Path]:
    """Copy a study's tables and figures to the record, pack its runs, and write its accuracy table into a page.

    The record stays small: its figures are PNGs with a palette where that cannot be seen, those of more than
    ``LARGEST_FIGURE`` bytes are left out and named, and its long table is compressed.

    Args:
        study_folder: folder of the study in the run store.
        results: folder of the record.
        page: with a block ``results NAME``, where it has the study's table.

    Returns:
        The files written.

    Raises:
        UsageError: the study has no tables yet, or a run of them is neither there nor in the record; nothing is written
            then.
    """
    check_tables(study_folder)
    missing = _diverged(study_folder)
    record, kept = results / study_folder.name, []
    table, tables = read_measures(study_folder), tables_folder(study_folder)
    text, block = f"{summary(table)}\n".encode(), page_block(study_folder)
    _check_runs(study_folder, results)
    contents = _small_enough(draw_figures(study_folder), record)
    names = [name for name in TABLES if name not in ("measures", "missing")]
    sources = [*(tables / f"{name}.csv" for name in names), tables / "study.json"]
    contents |= {source.name: source.read_bytes() for source in sources if source.is_file()}
    for name, content in contents.items():
        target = record / name
        write_atomic(target, lambda file, content=content: file.write(content))
        kept.append(target)
    kept.append(_compress(tables / LONG_TABLE, record))
    save_table(record / SPEED, speed_rows(table))
    save_table(record / "missing.csv", missing)
    write_atomic(record / "summary.txt", lambda file: file.write(text))
    kept += [record / SPEED, record / "missing.csv", record / "summary.txt", *_keep_runs(study_folder, results)]
    if replace_block(page, f"results {record.name}", block):
        kept.append(page)
    return kept


def _diverged(study_folder: Path) -> pd.DataFrame:
    """Return the runs of a study that diverged; those that failed are named and left out: the next start tries them."""
    missing = read_missing(tables_folder(study_folder) / "missing.csv")
    diverged = missing["status"] == "diverged"
    for _, row in missing[~diverged].iterrows():
        print(f"left out: {row['variant']}, seed {row['seed']}: {row['status']}: {row['reason']}")
    return missing[diverged]


def _small_enough(pictures: list[Path], record: Path) -> dict[str, bytes]:
    """Return the PNGs of the figures that the record takes, by name; removes others from it, and names large ones."""
    pages = {path: small_png(path) for path in pictures if path.suffix == ".png"}
    sizes = Counter()
    for page, content in pages.items():
        sizes[figure_name(page)] += len(content)
    large = sorted(figure for figure, size in sizes.items() if size > LARGEST_FIGURE)
    if large:
        limit = LARGEST_FIGURE / 1e3
        print(f"left out of {record}, over {limit:.0f} KB each; make figures draws them: {', '.join(large)}")
    kept = {page.name: content for page, content in pages.items() if figure_name(page) not in large}
    for stale in {*record.glob("*.png"), *record.glob("*.pdf")} - {record / name for name in kept}:
        stale.unlink()
    return kept


def _compress(source: Path, record: Path) -> Path:
    """Write a compressed copy of a table into the record; returns its path."""
    target = record / f"{source.name}{COMPRESSED}"
    write_atomic(target, lambda file: file.write(lzma.compress(source.read_bytes())))
    (record / source.name).unlink(missing_ok=True)
    return target


def page_block(study_folder: Path) -> str:
    """Return a study's table as the page has it."""
    tables = tables_folder(study_folder)
    overrides = read_about(tables / "study.json", ["overrides"])["overrides"]
    return markdown(
        read_measures(study_folder),
        read_csv(tables / "runs.csv", ["variant", "device", "precision", "torch", "commit"]),
        overrides,
    )


def packed_runs(results: Path, config_hash: str) -> list[Path]:
    """Return the packed runs of a hash in the record, of any study."""
    return sorted(results.glob(f"*/{PACKED}/*-{config_hash}.zip"))


def _keep_runs(study_folder: Path, results: Path) -> list[Path]:
    """Pack the runs of a study's tables, and those that diverged; returns the files written.

    A run that is done and that another study's record has is not packed again.
    """
    folder = results / study_folder.name / PACKED
    kept = []
    for run, seed in _run_folders(study_folder):
        target, fresh = folder / f"{run.name}.zip", folder / f".{run.name}.zip"
        pack(run, fresh, with_arrays=seed == SEED_DRAWN)
        others = [path for path in packed_runs(results, run.name[-8:]) if path.parent != folder]
        if any(path.read_bytes() == fresh.read_bytes() for path in others):
            fresh.unlink()
            target.unlink(missing_ok=True)
        else:
            fresh.replace(target)
            kept.append(target)
    lost = list(_diverged_runs(study_folder))
    for run in lost:
        if run.is_dir():
            pack(run, target := folder / f"{run.name}.zip", with_arrays=False)
            kept.append(target)
    tabled = {config_hash for _, _, config_hash in _tabled_runs(study_folder)} | {run.name[-8:] for run in lost}
    for path in set(folder.glob("*.zip")) - set(kept):
        if path.stem[-8:] not in tabled:  # a run whose folder is gone stays packed
            path.unlink()
    return kept


def _check_runs(study_folder: Path, results: Path) -> None:
    """Raise if a run of a study's tables is damaged, or neither in its folder, measured, nor packed in the record."""
    tables, first = tables_folder(study_folder), f"{typed('run', study_folder.name)} first"
    for folder, _, config_hash in _tabled_runs(study_folder):
        if is_tabled(folder):
            check_measures(folder)
        elif not packed_runs(results, config_hash):
            raise UsageError(f"{tables / 'runs.csv'}: {folder.name} is not there, or not measured: {first}")
    for folder in _diverged_runs(study_folder):
        packed = results / study_folder.name / PACKED / f"{folder.name}.zip"
        try:
            if (folder.is_dir() or not packed.is_file()) and read_ended(folder)[1]["status"] == "done":
                raise NotGatheredError("done, not diverged")
        except NotGatheredError as error:
            raise UsageError(f"{tables / 'missing.csv'}: {folder.name}: {error}: {first}") from None


def _diverged_runs(study_folder: Path) -> Iterator[Path]:
    """Yield the folder of each run of a study that diverged."""
    missing = read_missing(tables_folder(study_folder) / "missing.csv")
    for _, row in missing[missing["status"] == "diverged"].iterrows():
        yield study_folder / f"{file_name(row['variant'])}-seed{row['seed']}-{row['config_hash']}"


def _run_folders(study_folder: Path) -> Iterator[tuple[Path, int]]:
    """Yield the folder and the seed of each run of a study's tables that is still there."""
    return ((folder, seed) for folder, seed, _ in _tabled_runs(study_folder) if is_tabled(folder))


def _tabled_runs(study_folder: Path) -> Iterator[tuple[Path, int, str]]:
    """Yield the folder, the seed and the hash of each run of a study's tables."""
    runs = tables_folder(study_folder) / "runs.csv"
    table = read_csv(runs, [], dtype=str) if runs.is_file() else pd.DataFrame()
    if not {"variant", "seed", "config_hash"} <= set(table):
        return
    for _, row in table.iterrows():
        folder = study_folder / f"{file_name(row['variant'])}-seed{row['seed']}-{row['config_hash']}"
        yield folder, int(row["seed"]), row["config_hash"]
