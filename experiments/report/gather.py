"""Runs that ended elsewhere, added to the folder of a study and drawn together with its runs.

The hash of a run identifies it and covers everything that decides its outcome. The names of folders and variants do not
matter. Runs that cannot be added are left out, and one line reports each of them. Runs that diverged are added too: the
ledger counts their seeds as lost.
"""

from __future__ import annotations

import shutil
import tarfile
import tempfile
import zipfile
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from experiments.errors import UsageError
from experiments.measure.table import save_table
from experiments.report import summary as report
from experiments.report.study_tables import (
    COUNTS,
    MISSING,
    check_measures,
    is_tabled,
    kept_speed,
    missing_table,
    read_missing,
    write_tables,
)
from experiments.report.summary import tables_folder
from experiments.report.tables import COMPRESSED, DamagedTableError, read_table
from experiments.report.write_record import SPEED
from experiments.store.packed import (
    DAMAGE,
    MEASURED,
    WEIGHTS,
    NotGatheredError,
    is_packed,
    read_ended,
    take,
    unpack,
)
from experiments.store.runs import Run, check_writable, config_hash
from experiments.study.config import Study, Variant, load_study, profile_names
from experiments.study.invocation import typed


@dataclass(frozen=True)
class FoundRun:
    """A run in a folder or an archive that is done, or diverged.

    Attributes:
        place: path of the run in messages.
        folder: folder with its files, perhaps unpacked.
        config: its configuration, of which the hash is taken.
        result: content of its ``result.json``.
    """

    place: str
    folder: Path
    config: dict[str, Any]
    result: dict[str, Any]

    @property
    def hash(self) -> str:
        """Hash of its configuration."""
        return config_hash(self.config)

    @property
    def done(self) -> bool:
        """False if it diverged."""
        return self.result["status"] == "done"


def gather_runs(name: str, source: Path, flags: list[str]) -> None:
    """Add runs to a study, draw it, and print the numbers of runs added and left out.

    Args:
        name: name of the study.
        source: a folder or an archive.
        flags: flags of ``run``; they decide which runs fit.

    Raises:
        UsageError: the folder or archive does not exist, or none of its runs fits.
    """
    if not source.exists():
        raise UsageError(f"gather: --from={source}: no such file or folder")
    studies = _profiles(name, flags)
    check_writable(studies[0].execution.runs_root, "runs_root")
    with tempfile.TemporaryDirectory() as scratch:
        runs, left_out = find_runs(source, Path(scratch))
        study, data, fitting, foreign = choose(runs, studies)
        left_out += foreign
        before = runs_of_folder(study, data)
        taken = []
        for run in fitting:
            reason = _take(study, run, before)
            if reason:
                left_out.append(f"{run.place}: {reason}")
            else:
                taken.append(run)
    for line in left_out:
        print(f"left out: {line}")
    if not fitting:
        raise UsageError(f"--from={source}: no run of {name} there that has ended ({len(left_out)} left out)")
    diverged = sum(not run.done for run in taken)
    of_them = f", of which {diverged} diverged" if diverged else ""
    print(f"{len(taken)} run{'s' * (len(taken) != 1)} gathered into {study.folder}{of_them}")
    _take_times(source, study.folder)
    for path in draw(study, data, source):
        print(path)


def _take_times(source: Path, study_folder: Path) -> None:
    """Copy the times of a record in ``results/``, unless times of the study were measured here."""
    if (source / SPEED).is_file() and kept_speed(study_folder).empty:
        try:
            times = read_table(source / SPEED)
        except DamagedTableError as error:
            print(f"left out: {error.damage}")
            return
        save_table(tables_folder(study_folder) / "speed-recorded.csv", times)
        print(f"times are those of {source / SPEED}")


def find_runs(source: Path, scratch: Path) -> tuple[list[FoundRun], list[str]]:
    """Find every run in a folder or an archive that is done, or diverged.

    Args:
        source: a folder with folders of runs, packed runs or archives of them; a packed run; or an archive.
        scratch: an empty folder to unpack into.

    Returns:
        The runs, and one line for each run that is damaged or has not ended.
    """
    runs, left_out = [], []
    for place, folder in _folders(source, scratch, left_out):
        try:
            run = FoundRun(place, folder, *read_ended(folder))
            if run.done and all((folder / file).is_file() for file in MEASURED):
                check_measures(folder, [] if (folder / WEIGHTS).is_file() else COUNTS)
            runs.append(run)
        except NotGatheredError as error:
            left_out.append(f"{place}: {error}")
        except DamagedTableError as error:
            left_out.append(f"{place}: damaged: {error.damage.removeprefix(f'{folder}/')}")
    return runs, left_out


def _folders(source: Path, scratch: Path, left_out: list[str]) -> Iterator[tuple[str, Path]]:
    """Yield the name and the folder of each run in a folder or archive; archives are unpacked."""
    if source.is_dir():
        if (source / "config.json").is_file():
            yield str(source), source
            return
        for path in sorted(source.iterdir()):
            archive = path.suffix in (".zip", ".tar", ".tgz", ".gz", ".xz") and path.is_file()
            if path.is_dir() or (archive and not path.name.endswith(f".csv{COMPRESSED}")):  # a record's table is none
                yield from _folders(path, scratch / path.name, left_out)
        return
    inside = scratch / "unpacked"
    try:
        if is_packed(source):
            unpack(source, inside)
            yield str(source), inside
        elif _extract(source, inside):
            for place, folder in _folders(inside, scratch / "inside", left_out):
                yield place.replace(str(inside), str(source)), folder
        else:
            left_out.append(f"{source}: neither a zip nor a tar archive, or damaged")
    except NotGatheredError as error:
        left_out.append(f"{source}: {error}")


def _extract(source: Path, folder: Path) -> bool:
    """Extract a zip or tar archive; False if the file is none, or is cut off."""
    try:
        if zipfile.is_zipfile(source):
            with zipfile.ZipFile(source) as archive:
                archive.extractall(folder)
            return True
        if tarfile.is_tarfile(source):
            with tarfile.open(source) as archive:
                archive.extractall(folder, filter="data")
            return True
    except (OSError, tarfile.TarError, *DAMAGE):
        shutil.rmtree(folder, ignore_errors=True)
    return False


def _profiles(name: str, flags: list[str]) -> list[Study]:
    """Return the study as the flags have it; without a profile among them, also with each of its profiles."""
    studies = [load_study(name, flags)]
    if not any(flag.startswith("--profile=") for flag in flags):
        studies += [load_study(name, [*flags, f"--profile={profile}"]) for profile in profile_names(name)]
    return studies


def variant_of(study: Study, config: dict[str, Any]) -> Variant | None:
    """Return the variant of a study that has the configuration of a run, by its hash, on any images."""
    wanted = config_hash(config)
    return next(
        (v for v in study.variants if config_hash(v.run_config(config["data"], config["seed"])) == wanted), None
    )


def choose(runs: Sequence[FoundRun], studies: Sequence[Study]) -> tuple[Study, str, list[FoundRun], list[str]]:
    """Choose the profile and the images that most runs have: a table never mixes them.

    Returns:
        The study in that profile, the hash of the images, the runs that fit, and one line for each that does not.
    """
    fits = [[k for k, study in enumerate(studies) if variant_of(study, run.config)] for run in runs]
    counted = Counter((k, run.config["data"]) for run, of_run in zip(runs, fits, strict=True) for k in of_run)
    if not counted:
        lines = [f"{run.place}: foreign: no run of {studies[0].name} has the hash {run.hash}" for run in runs]
        return studies[0], "", [], lines
    most = max(counted.values())
    index, data = next(key for key in sorted(counted) if counted[key] == most)
    fitting, lines = [], []
    for run, of_run in zip(runs, fits, strict=True):
        if index in of_run and run.config["data"] == data:
            fitting.append(run)
        elif not of_run:
            lines.append(f"{run.place}: foreign: no run of {studies[0].name} has the hash {run.hash}")
        elif index not in of_run:
            profile = studies[of_run[0]].overrides.get("profile")
            lines.append(f"{run.place}: of {f'PROFILE={profile}' if profile else 'no profile'}, unlike most here")
        else:
            lines.append(f"{run.place}: trained on other images than most here")
    return studies[index], data, fitting, lines


def runs_of_folder(study: Study, data: str) -> list[tuple[Run, dict[str, Any]]]:
    """Return the runs in a study's folder that have ended and fit it, with results, in the order of its tables."""
    names, runs = [v.name for v in study.variants], []
    for folder in sorted(study.folder.glob("*-seed*")):
        try:
            config, result = read_ended(folder)
        except NotGatheredError:
            continue
        variant = variant_of(study, config)
        if variant is not None and config["data"] == data:
            runs.append((Run(variant.name, config, folder), result))
    return sorted(runs, key=lambda pair: (names.index(pair[0].variant), pair[0].seed))


def _take(study: Study, run: FoundRun, before: list[tuple[Run, dict[str, Any]]]) -> str:
    """Take one run; return the reason if it cannot be taken, else an empty text."""
    variant = variant_of(study, run.config)
    assert variant is not None
    precisions = {str(result["precision"]) for _, result in before if "precision" in result}
    precision = run.result.get("precision")
    if same := next((there for there, _ in before if config_hash(there.config) == run.hash), None):
        return f"doubled: {same.folder} has the same hash"
    if precisions and precision and precision not in precisions:
        return f"trained in {precision}, the runs of {study.folder} in {', '.join(precisions)}"
    taken = Run.of(study.folder, variant.name, run.config)
    if not take(run.folder, taken):
        return "in training here, by another process"
    before.append((taken, run.result))
    return ""


def draw(study: Study, data: str, source: Path) -> list[Path]:
    """Write tables and figures of all runs of a study's folder that have ended; returns the figures.

    Args:
        study: the study.
        data: hash of its images.
        source: the folder or archive with the runs, and perhaps a table of runs that are missing there.
    """
    runs = runs_of_folder(study, data)
    done = [pair for pair in runs if pair[1]["status"] == "done"]
    measured = [pair for pair in done if is_tabled(pair[0].folder)]
    if len(measured) < len(done):
        print(f"{len(done) - len(measured)} runs with weights are not measured yet: {typed('run', study.name)} does so")
    tables = tables_folder(study.folder)
    kept = [folder / "missing.csv" for folder in (tables, source, tables_folder(source))]
    missing = missing_runs(study, data, [run for run, _ in runs], kept)
    save_table(tables / "missing.csv", missing)
    for _, row in missing.iterrows():
        print(f"{row['status']}: {row['variant']}, seed {row['seed']}: {row['reason']}")
    seen = {(run.variant, run.seed) for run, _ in runs} | set(zip(missing["variant"], missing["seed"], strict=True))
    for line in missing_seeds(study, seen):
        print(line)
    if not measured:
        return []
    overrides = dict(study.overrides)
    (dataset,) = {result["dataset"] for _, result in measured[:1]}
    if dataset not in {v.dataset for v in study.variants}:
        overrides["dataset"] = dataset
    seeds = len({run.seed for run, _ in measured} | set(missing["seed"]))
    if seeds != study.seeds:
        overrides["seeds"] = seeds
    write_tables(study.folder, [run for run, _ in measured], kept_speed(study.folder), study.question, overrides)
    return [path for path in report.draw_figures(study.folder) if path.suffix == ".png"]


def missing_runs(study: Study, data: str, runs: Sequence[Run], kept: Sequence[Path]) -> pd.DataFrame:
    """Return the runs that diverged, and those that older tables name as missing, as far as they are not there.

    Args:
        study: the study.
        data: hash of its images.
        runs: its runs that have ended.
        kept: paths of older tables of missing runs, which need not exist.
    """
    table, variants = missing_table(runs), {v.name: v for v in study.variants}
    there, rows = {config_hash(run.config) for run in runs}, []
    for path in kept:
        try:
            older = read_missing(path)
        except DamagedTableError as error:
            print(f"left out: {error.damage}")
            continue
        for _, row in older[older["variant"].isin(list(variants))].iterrows():
            wanted = config_hash(variants[row["variant"]].run_config(data, int(row["seed"])))
            if wanted not in there and row["config_hash"] in ("", wanted):  # a table without hashes is believed
                there.add(wanted)
                rows.append([row["variant"], int(row["seed"]), row["status"], row["reason"], wanted])
    return pd.DataFrame(sorted([*table.values.tolist(), *rows]), columns=pd.Index(MISSING))


def missing_seeds(study: Study, seen: Collection[tuple[str, int]]) -> list[str]:
    """Return a line for each variant without some of the seeds that another one has, or the study asks for.

    Args:
        study: the study.
        seen: variant and seed of each run that has ended, or that a line has named.
    """
    seeds = range(max([study.seeds, *(seed + 1 for _, seed in seen)]))
    lines = []
    for name in (v.name for v in study.variants):
        if lacking := [str(seed) for seed in seeds if (name, seed) not in seen]:
            lines.append(f"missing: {name}, seed{'s' * (len(lacking) > 1)} {', '.join(lacking)}")
    return lines
