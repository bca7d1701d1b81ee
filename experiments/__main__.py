"""The command line; the commands are the keys of ``commands`` below.

Nothing heavy is imported before it is known to be needed, so that ``list`` and ``--help`` answer at once.
"""

from __future__ import annotations

import atexit
import json
import os
import sys
from difflib import get_close_matches
from pathlib import Path
from typing import NoReturn

from experiments.commands.help import CONNECTIONS, HELP, USAGE, command_help, wants_help
from experiments.errors import UsageError
from experiments.store.stop_signal import install_handlers
from experiments.terminal import show_every_sign

MEASURED = "measured.json"  # in a folder that ``measure`` wrote
SUITE = (  # modules of the extra ``suite`` that no command goes without
    "PIL",
    "jinja2",
    "jsonargparse",
    "matplotlib",
    "pandas",
    "scipy",
    "seaborn",
    "skimage",
    "sklearn",
    "torchvision",
    "tqdm",
    "tueplots",
    "yaml",
)


def main(arguments: list[str]) -> int:
    """Run one command; returns the exit code: 0 done, 1 a run failed, 2 wrong usage, 130 interrupted."""
    commands = {
        "list": list_studies,
        "run": run,
        "sweep": sweep,
        "status": status,
        "cost": cost,
        "figures": figures,
        "results": results,
        "gather": gather,
        "verify": verify,
        "report": report,
        "measure": measure,
        "claims": claims,
    }
    if not arguments or arguments[0] in (*HELP, "help"):
        print(USAGE, end="")
        return 0
    name, *rest = arguments
    if name not in commands:
        raise UsageError(f"{name}: no such command; there are: {', '.join(commands)}")
    if wants_help(rest):
        print(command_help(name, rest), end="")
        return 0
    return commands[name](rest)


def _find_cluster(flags: list[str]) -> None:
    """A cluster that is not there is told before torch is loaded."""
    if "--on=ray" in flags:
        from experiments.execution.cluster import find_cluster

        find_cluster()


def list_studies(arguments: list[str]) -> int:
    """Print the studies."""
    from experiments.study.catalogue import studies

    for flag in arguments:
        if flag != "--json":
            raise UsageError(f"list: unknown flag {flag}; there is: --json")
    done = {}
    if Path("runs").is_dir():  # else there is no need to load torch
        from experiments.commands.status import runs_done

        done = runs_done(Path("runs"))
    found = studies(done)
    if "--json" in arguments:
        print(json.dumps(found, indent=1))
    else:
        for study in found:
            done = f"{study['runs_done']} of {study['runs']} runs done"
            print(f"{study['name']:<20}{study['question']}\n{'':<20}{study['time']}\n{'':<20}{done}\n")
    return 0


def run(arguments: list[str]) -> int:
    """Run a study, or the one run of a sweep that a wandb agent asks for."""
    name, flags = _name(arguments, "run NAME")
    if name.endswith((".yaml", ".yml")):
        return _run_file(Path(name), flags)
    from experiments.study.catalogue import GROUP_PARALLEL, study_file

    study_file(name)  # a misspelt name is told before torch is loaded
    _find_cluster(flags)
    if name == GROUP_PARALLEL:
        from experiments.group_parallel.study import run_group_parallel

        return run_group_parallel(flags)
    from experiments.study.config import load_study
    from experiments.tracking import called_by_agent

    if called_by_agent():
        from experiments.sweep.command import run_for_agent

        return 1 if run_for_agent(name, flags) else 0
    from experiments.launch import run_on_devices

    return run_on_devices(load_study(name, flags), ["run", *arguments])


def _run_file(path: Path, flags: list[str]) -> int:
    """Run a study whose file lies outside ``configs/``; it is called after the file and its folder."""
    from experiments.study.strict_yaml import read_yaml

    read_yaml(path)  # a file that cannot be read is told before torch is loaded
    from experiments.launch import run_on_devices
    from experiments.study.config import load_study_file

    study = load_study_file(path, flags)
    return run_on_devices(study, ["run", str(path), *flags])


def sweep(arguments: list[str]) -> int:
    """Search over the parameters of a sweep file."""
    if not arguments or arguments[0].startswith("-"):
        raise UsageError("sweep NAME: the name is missing; the sweeps are in configs/sweeps")
    from experiments.sweep.file import sweep_path

    sweep_path(arguments[0])  # a misspelt name is told before torch is loaded
    _find_cluster(arguments[1:])
    from experiments.sweep.command import run_sweep

    return 1 if run_sweep(arguments[0], arguments[1:]) else 0


def status(arguments: list[str]) -> int:
    """Print where the studies stand."""
    if arguments and not arguments[0].startswith("-") and not arguments[0].endswith((".yaml", ".yml")):
        from experiments.study.catalogue import study_file

        study_file(arguments[0])  # a misspelt name is told before torch is loaded
    from experiments.commands.status import print_status

    print_status(arguments)
    return 0


def cost(arguments: list[str]) -> int:
    """Print what a model costs."""
    name, flags = _name(arguments, "cost MODEL")
    from experiments.commands.cost import print_cost

    print_cost(name, flags)
    return 0


def figures(arguments: list[str]) -> int:
    """Draw the figures of a study again, or the connection diagrams, which belong to none."""
    name, flags = _name(arguments, "figures NAME")
    from experiments.report.figure_flags import apply_figure_flags

    flags = apply_figure_flags(flags)
    if name == CONNECTIONS:
        from experiments.commands.connections import draw_connections

        print(*draw_connections(flags), sep="\n")
        return 0
    from experiments.study.catalogue import GROUP_PARALLEL, study_names

    if Path(name, MEASURED).is_file():
        from experiments.report.summary import draw_measured_folder

        if flags:
            raise UsageError(f"figures {name}: unknown flag {flags[0]}")
        print(*draw_measured_folder(Path(name)), sep="\n")
        return 0
    from experiments.sweep.file import sweep_names

    if name in sweep_names() and name not in study_names():
        from experiments.sweep.report import draw_figures as draw_sweep

        print(*draw_sweep(_runs_root(flags, "figures") / "sweeps" / name), sep="\n")
        return 0
    if name not in study_names():
        known = [*study_names(), *sweep_names(), CONNECTIONS]
        near = get_close_matches(name, known, n=1, cutoff=0.4)
        hint = f"; did you mean {near[0]}? There are: " if near else "; there are: "
        raise UsageError(f"NAME={name}: no such figures{hint}{', '.join(known)}")
    folder = _study_folder([name, *flags], "figures")
    if name == GROUP_PARALLEL:
        from experiments.group_parallel.study import draw_figures
    else:
        from experiments.report.summary import draw_figures
    from experiments.report.latex import write_latex

    print(*draw_figures(folder), *write_latex(folder / "tables"), sep="\n")
    return 0


def results(arguments: list[str]) -> int:
    """Copy what a study found to the record."""
    folder = _study_folder([a for a in arguments if a != "--replace"], "results")
    from experiments.report.replacement import check_replaces
    from experiments.study.catalogue import GROUP_PARALLEL, HOME

    if "--replace" not in arguments:
        check_replaces(folder / "tables", HOME / "results" / folder.name)
    if folder.name == GROUP_PARALLEL:
        from experiments.group_parallel.study import keep_results as keep

        print(*keep(folder, HOME / "results"), sep="\n")
        return 0
    from experiments.report.keep import PAGE, keep_results

    print(*keep_results(folder, HOME / "results", HOME / PAGE), sep="\n")
    return 0


def gather(arguments: list[str]) -> int:
    """Take runs of a study that were trained elsewhere."""
    name, flags = _name(arguments, "gather NAME")
    from experiments.study.catalogue import study_file

    study_file(name)  # a misspelt name is told before torch is loaded
    from experiments.commands.gather import gather as gather_runs

    gather_runs(name, flags)
    return 0


def verify(arguments: list[str]) -> int:
    """Recompute the record from its packed runs."""
    from experiments.commands.verify import main as verify_record

    return verify_record(arguments)


def report(arguments: list[str]) -> int:
    """Write the page of a study, or of all."""
    from experiments.commands.report import main as write_report

    return write_report(arguments)


def measure(arguments: list[str]) -> int:
    """Measure a network that was trained elsewhere."""
    from experiments.foreign.command import measure_checkpoint

    measure_checkpoint(arguments)
    return 0


def claims(arguments: list[str]) -> int:
    """Print the ledger of claims."""
    from experiments.report.claims import print_claims

    print_claims(arguments)
    return 0


def _study_folder(arguments: list[str], command: str) -> Path:
    name, flags = _name(arguments, f"{command} NAME")
    from experiments.study.catalogue import study_file

    study_file(name)
    return _runs_root(flags, command) / name


def _runs_root(flags: list[str], command: str) -> Path:
    root = "runs"
    for flag in flags:
        key, _, value = flag.partition("=")
        if key != "--runs_root" or not value:
            raise UsageError(f"{command}: unknown flag {flag}; there is: --runs_root=DIR")
        root = value
    return Path(root).expanduser()


def _name(arguments: list[str], usage: str) -> tuple[str, list[str]]:
    if not arguments or arguments[0].startswith("-"):
        from experiments.study.invocation import typed

        hint = f"; `{typed('list')}` shows the studies" if "NAME" in usage else ""
        raise UsageError(f"{usage}: the name is missing{hint}")
    return arguments[0], arguments[1:]


def entry() -> int:
    """``main`` with every expected failure told in one line."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # repeatable matrix products on CUDA
    install_handlers()
    show_every_sign()
    try:
        return main(sys.argv[1:])
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in SUITE:
            raise
        print(f"error: {error.name} is not installed here: pip install 'grouped-convolution[suite]'", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        if "TORCHELASTIC_RUN_ID" not in os.environ:  # who has started several processes tells it once
            print("\ninterrupted: what was trained is saved; the same command goes on from there", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of a pipe, such as `head`, has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.filename is None or error.errno is None:
            raise
        print(f"error: {error.filename}: {error.strerror}; nothing was half-written", file=sys.stderr)
        return 1


def end(code: int) -> NoReturn:
    """End this process; one of several that share a run does so without the destructors of torch's libraries.

    Threads of gloo may abort the process in them once all is done (torch 2.13: 3 of 12 programs of plain layers), and
    its launcher would take that for a lost rank.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        sys.exit(code)
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    end(entry())
