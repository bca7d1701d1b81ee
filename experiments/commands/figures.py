"""The ``figures`` command: draws a study, the record, a sweep or a measured folder again, or connection diagrams."""

from __future__ import annotations

import gc
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from difflib import get_close_matches
from multiprocessing import get_context
from pathlib import Path

from experiments.commands.arguments import OF_RECORD, name_and_flags, runs_root, study_folder
from experiments.commands.help import CONNECTIONS
from experiments.commands.kinds import kind_of
from experiments.errors import UsageError
from experiments.name_hints import unknown_flag
from experiments.report.figure_flags import FLAGS, apply_figure_flags
from experiments.report.tables import long_table
from experiments.study.catalogue import FILE_ENDS, HOME, study_names, sweep_names
from experiments.training.run_context import usable_cores

MEASURED = "measured.json"  # file in every folder that ``measure`` wrote


def main(arguments: list[str]) -> int:
    """Draw figures from saved tables, and print the paths of the files written; returns the exit code.

    Without a name, those of all studies in the record.

    Raises:
        UsageError: there are no figures of that name, or a flag is unknown.
    """
    if arguments and not arguments[0].startswith("-"):
        name, flags = name_and_flags(arguments, "figures NAME")
        print(*_draw(name, apply_figure_flags(flags)), sep="\n")
        return 0
    root = runs_root(apply_figure_flags(arguments), "figures", FLAGS)
    for files in _draw_record([name for name in study_names() if _is_recorded(name)], root):
        print(*files, sep="\n", flush=True)
    return 0


def _draw(name: str, flags: list[str]) -> list[Path]:
    """Draw the study, sweep, folder or diagrams of that name; returns the files written."""
    if name == CONNECTIONS:
        from experiments.commands.connections import draw_connections

        return draw_connections(flags)
    if Path(name, MEASURED).is_file():
        from experiments.report.summary import draw_measured_folder

        if flags:
            raise unknown_flag(f"figures {name}", flags[0], FLAGS)
        return draw_measured_folder(Path(name))
    if name in study_names() or name.endswith(FILE_ENDS):
        from experiments.report.latex import write_latex

        folder = study_folder([name, *flags], "figures", FLAGS)
        if not long_table(folder / "tables").is_file() and _is_recorded(name):
            print(f"{folder} has no tables: drawn from the record, {HOME / 'results' / name}", file=sys.stderr)
            return next(_draw_record([name], folder.parent))
        return [*kind_of(name).draw(folder), *write_latex(folder / "tables")]
    if name in sweep_names():
        from experiments.sweep.report import draw_figures

        return draw_figures(runs_root(flags, "figures", FLAGS) / "sweeps" / name)
    known = [*study_names(), *sweep_names(), CONNECTIONS]
    near = get_close_matches(name, known, n=1, cutoff=0.4)
    hint = f"; did you mean {near[0]}? There are: " if near else "; there are: "
    raise UsageError(f"NAME={name}: no such figures{hint}{', '.join(known)}")


def _is_recorded(name: str) -> bool:
    return long_table(HOME / "results" / name).is_file()


def _draw_record(names: Sequence[str], root: Path) -> Iterator[list[Path]]:
    """Draw recorded studies side by side, one process per core; yields the files of each, in order."""
    from analysis.figures import page

    output = page.FORMATS, page.WIDTH, page.BARE
    if len(names) == 1:
        yield _draw_one(names[0], root, output)
        return
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # of each process: the cores are taken
    longest_first = sorted(names, key=lambda name: -long_table(HOME / "results" / name).stat().st_size)
    with ProcessPoolExecutor(min(usable_cores(), len(names)), get_context("spawn"), _begin_drawing) as pool:
        drawn = {name: pool.submit(_draw_one, name, root, output) for name in longest_first}
        yield from [drawn[name].result() for name in names]


def _begin_drawing() -> None:
    """Leave what is imported out of the collections of garbage, which took a tenth of the time of drawing."""
    from experiments.commands import trained  # noqa: F401

    gc.freeze()
    gc.set_threshold(100_000)


def _draw_one(name: str, root: Path, output: tuple[Sequence[str], float, bool]) -> list[Path]:
    """Draw one recorded study into the run store; returns the files written."""
    from analysis.figures import page
    from analysis.figures.registry import remove_pages
    from experiments.report.latex import write_latex

    page.set_output(*output)
    target = root / OF_RECORD / name
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / name
        try:
            kind_of(name).restore(name, HOME, folder)
            written = [*kind_of(name).draw(folder), *write_latex(folder / "tables")]
        except UsageError as error:
            raise UsageError(str(error)) from None  # which another process can be sent
        target.mkdir(parents=True, exist_ok=True)
        copies = [Path(shutil.copy(path, target / path.name)) for path in written]
        remove_pages(target, copies)
        return copies
