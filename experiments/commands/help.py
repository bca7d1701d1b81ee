"""``--help`` of every command, with and without a name: the only place with the usage of commands."""

from __future__ import annotations

from collections.abc import Sequence

from experiments.report.figure_flags import HELP as FIGURE_FLAGS

HELP = ("-h", "--help")
CONNECTIONS = "connections"  # figures of no study
START = "usage: python -m experiments "

# Usage of each command: its forms, then its purpose in indented lines.
USAGES = {
    "list": """\
  list [--json]                     the studies: name, question, time, runs that are done
""",
    "run": """\
  run NAME [--key=value …]          train, measure, draw and report a study; NAME may be the path of a file such as
                                    runs/sweeps/NAME/best.yaml; --on=ray: train on the nodes of a Ray cluster
""",
    "sweep": """\
  sweep NAME [--runs=N] [--workers=N] [--online | --local | --on=ray] [--runs_root=DIR] [--key=value …]
                                    search configs/sweeps/NAME.yaml: with wandb's server where logged in, else here
""",
    "status": """\
  status [NAME] [--json] [--key=value …]
                                    runs that are done, running (by whom, since when, time left), failed (why), to do
""",
    "cost": """\
  cost MODEL [--key=value …]        parameters, MACs and activations of a model of the suite, of torchvision or of timm
""",
    "figures": """\
  figures [NAME] [--runs_root=DIR] [--format=pdf,svg] [--width=column|page|CM] [--bare]
                                    draw the figures of a study or sweep again from its saved tables, and
                                    write its LaTeX tables; a study that was not run here, or all without a
                                    name: from results/, into runs/figures
  figures FOLDER                    draw the figures of a folder that measure wrote again
  figures connections [--key=value …]
                                    draw the connections of layers, and the wiring of a network
""",
    "results": """\
  results NAME [--runs_root=DIR] [--replace]
                                    copy a study's tables, figures and packed runs to results/, and its table to
                                    docs/index.md if that page shows the study;
                                    --replace: also over a record of more seeds, or with overridden keys
""",
    "gather": """\
  gather NAME --from=PATH [--profile=P] [--key=value …]
                                    add the runs of a study in a folder or archive, packed or not, and draw the study
""",
    "verify": """\
  verify [NAME] [--retrain [--dataset=folder:PATH] [--key=value …]]
                                    recompute the tables of results/ from its packed runs, and name what differs;
                                    --retrain: train the quickest run of each study again, too
""",
    "report": """\
  report [NAME] [--runs_root=DIR]   one HTML page: ledger, figures, tables, notes, provenance; of all recorded studies
                                    without a name
""",
    "measure": """\
  measure --model=NAME --checkpoint=WEIGHTS --data=FOLDER [--key=value …]
                                    every measure on a network that was trained elsewhere
""",
    "claims": """\
  claims [--json] [--explain] [--figure] [--markdown] [--readme] [--trials] [--runs_root=DIR]
                                    the claims about filter groups, and the verdicts of the studies
""",
}

USAGE = f"{START}COMMAND …\n\n{''.join(USAGES.values())}\nCOMMAND --help and COMMAND NAME --help list the flags.\n"

SWEEP_FLAGS = """
  --runs=N         points at most; by default the file's run_cap, all of a grid, or 12
  --workers=N      points at a time
  --online         use wandb's server and agents; --local: do not; by default online if you are logged in
  --on=ray         train on the nodes of a Ray cluster
  --runs_root=DIR  folder of the run store; the sweep goes to sweeps/NAME in it
  --key=value      any key of the study that the file's command names
"""

GATHER_FLAGS = """
  --from=PATH      a folder with folders of runs (runs/NAME of another machine), packed runs (results/NAME/runs) or
                   archives of them; or one such archive, zip or tar
  --profile=P      profile of the runs to add; by default the one that most of the runs have
  --runs_root=DIR  folder of the run store; runs by default
"""


def wants_help(arguments: Sequence[str]) -> bool:
    """Return True if ``-h`` or ``--help`` is among the arguments of a command."""
    return any(flag in arguments for flag in HELP)


def command_help(command: str, arguments: Sequence[str]) -> str:
    """Return the help of a command: its usage, and the flags of the study, sweep or model that the arguments name.

    Raises:
        UsageError: the arguments name a study, sweep or model that does not exist.
    """
    flags = [flag for flag in arguments if flag not in HELP]
    name = flags[0] if flags and not flags[0].startswith("-") else None
    usage = f"usage of python -m experiments {command}\n\n{USAGES[command]}"
    if command == "run":
        return usage + "\n" + (_of_study(name) if name else f"{_studies()}\nrun NAME --help lists a study's keys.\n")
    if command == "status":
        keys = _of_study(name) if name else f"{_studies()}\nThe keys are those of run.\n"
        return f"{usage}\n  --json           print JSON\n\n{keys}"
    if command == "sweep":
        return usage + SWEEP_FLAGS + "\n" + (_of_sweep(name) if name else _sweeps())
    if command == "cost":
        if name:
            from experiments.commands.cost import cost_help

            return f"{usage}\n{cost_help(name)}"
        from experiments.models import MODELS

        return f"{usage}\nThe models: {', '.join(MODELS)}, torchvision:NAME.\ncost MODEL --help lists a model's keys.\n"
    if command == "measure":
        from experiments.foreign.flags import help_text

        return help_text(flags)
    if command == "figures" and name == CONNECTIONS:
        from experiments.commands.connections import connections_help

        return f"{usage}\n{FIGURE_FLAGS}\n{connections_help(flags[1:])}"
    if command == "gather":
        keys = _of_study(name) if name else f"{_studies()}\nThe other keys are those of run.\n"
        return f"{usage}{GATHER_FLAGS}\n{keys}"
    if command in ("figures", "results"):
        if name:
            from experiments.study.catalogue import study_file
            from experiments.sweep.file import sweep_names

            if command == "results" or name not in sweep_names():
                study_file(name)
        more = FIGURE_FLAGS if command == "figures" else ""
        return f"{usage}\n  --runs_root=DIR  folder of the run store; runs by default\n{more}\n{_studies()}"
    return usage


def _studies() -> str:
    from experiments.study.catalogue import study_names

    return f"The studies: {', '.join(study_names())}.\n"


def _sweeps() -> str:
    from experiments.sweep.file import sweep_names

    return f"The sweeps: {', '.join(sweep_names())}.\nsweep NAME --help lists its study's keys too.\n"


def _of_study(name: str) -> str:
    """Return the keys of a study of ``configs/``, or of the study in a file."""
    from experiments.commands.kinds import kind_of

    return kind_of(name).flags_help(name)


def _of_sweep(name: str) -> str:
    """Return the keys of the study that a sweep's file names."""
    from experiments.sweep.file import read_sweep, sweep_path

    sweep = read_sweep(sweep_path(name))
    return f"{sweep.place} searches over {', '.join(sweep.parameters)}.\n\n{_of_study(sweep.study)}"
