"""The command line; the commands are the keys of ``COMMANDS``.

Nothing heavy is imported before it is known to be needed, so that ``list`` and ``--help`` answer at once.
"""

from __future__ import annotations

import atexit
import os
import re
import sys
from errno import ENOSPC
from importlib import import_module
from itertools import pairwise
from typing import NoReturn

from experiments.commands.help import HELP, USAGE, command_help, wants_help
from experiments.errors import UsageError
from experiments.store.stop_signal import install_handlers
from experiments.terminal import replace_unencodable

# The module of each command; its ``main`` takes the arguments and returns the exit code.
COMMANDS = {
    "list": "experiments.commands.list",
    "run": "experiments.commands.run",
    "sweep": "experiments.commands.sweep",
    "status": "experiments.commands.status",
    "cost": "experiments.commands.cost",
    "figures": "experiments.commands.figures",
    "results": "experiments.commands.results",
    "gather": "experiments.commands.gather",
    "verify": "experiments.commands.verify",
    "report": "experiments.commands.report",
    "measure": "experiments.commands.measure",
    "claims": "experiments.commands.claims",
}
RESUMED = ("run", "sweep")  # commands that save what they have done
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
    if not arguments or arguments[0] in (*HELP, "help"):
        print(USAGE, end="")
        return 0
    name, *rest = arguments
    if name not in COMMANDS:
        raise UsageError(f"{name}: no such command; there are: {', '.join(COMMANDS)}")
    if wants_help(rest):
        print(command_help(name, rest), end="")
        return 0
    for flag, following in pairwise([*rest, "-"]):
        if re.fullmatch(r"--[\w.]+=", flag) or (flag.startswith("--") and following == ""):
            raise UsageError(f"{name}: {flag}: the value is missing")
    return import_module(COMMANDS[name]).main(rest)


def entry() -> int:
    """Run the command line; every expected failure is reported in one line. Returns the exit code."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # repeatable matrix products on CUDA
    install_handlers()
    replace_unencodable()
    try:
        code = main(sys.argv[1:])
        sys.stdout.flush()  # what fails here is told below, not while the process ends
        return code
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in SUITE:
            raise
        print(f"error: {error.name} is not installed here: pip install 'grouped-convolution[suite]'", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        if "TORCHELASTIC_RUN_ID" not in os.environ:  # their launcher reports it once
            saves = len(sys.argv) > 1 and sys.argv[1] in RESUMED
            rest = ": what was trained is saved; the same command goes on from there" if saves else ""
            print(f"\ninterrupted{rest}", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of a pipe, such as `head`, has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.filename is None and error.errno == ENOSPC:  # of standard output, which is flushed again at the end
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            print(f"error: standard output: {error.strerror}", file=sys.stderr)
            return 1
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
