"""The ``figures`` command: draws a study, a sweep or a measured folder again, or the connection diagrams."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path

from experiments.commands.arguments import name_and_flags, runs_root, study_folder
from experiments.commands.help import CONNECTIONS
from experiments.commands.kinds import kind_of
from experiments.errors import UsageError
from experiments.report.figure_flags import apply_figure_flags
from experiments.study.catalogue import study_names, sweep_names

MEASURED = "measured.json"  # file in every folder that ``measure`` wrote


def main(arguments: list[str]) -> int:
    """Draw figures from saved tables, and print the paths of the files written; returns the exit code.

    Raises:
        UsageError: there are no figures of that name, or a flag is unknown.
    """
    name, flags = name_and_flags(arguments, "figures NAME")
    print(*_draw(name, apply_figure_flags(flags)), sep="\n")
    return 0


def _draw(name: str, flags: list[str]) -> list[Path]:
    """Draw the study, sweep, folder or diagrams of that name; returns the files written."""
    if name == CONNECTIONS:
        from experiments.commands.connections import draw_connections

        return draw_connections(flags)
    if Path(name, MEASURED).is_file():
        from experiments.report.summary import draw_measured_folder

        if flags:
            raise UsageError(f"figures {name}: unknown flag {flags[0]}; there are: --format, --width, --bare")
        return draw_measured_folder(Path(name))
    if name in study_names():
        from experiments.report.latex import write_latex

        folder = study_folder([name, *flags], "figures")
        return [*kind_of(name).draw(folder), *write_latex(folder / "tables")]
    if name in sweep_names():
        from experiments.sweep.report import draw_figures

        return draw_figures(runs_root(flags, "figures") / "sweeps" / name)
    known = [*study_names(), *sweep_names(), CONNECTIONS]
    near = get_close_matches(name, known, n=1, cutoff=0.4)
    hint = f"; did you mean {near[0]}? There are: " if near else "; there are: "
    raise UsageError(f"NAME={name}: no such figures{hint}{', '.join(known)}")
