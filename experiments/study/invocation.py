"""Commands for a user to type, so that they work as they are typed: from make in the checkout, else from Python."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path

from experiments.study.catalogue import CONFIGS

TARGETS = {"run": "experiment"}  # of make, where they are not called as the command


def typed(command: str, name: str = "") -> str:
    """Return the line that runs a command on a study, sweep or file, in the folder where this process runs."""
    name = shlex.quote(name) if name else ""
    if Path.cwd() == CONFIGS.parent and (CONFIGS.parent / "Makefile").is_file():
        return f"make {TARGETS.get(command, command)}" + (f" NAME={name}" if name else "")
    return f"{_python()} -m experiments {command} {name}".rstrip()


def _python() -> str:
    """Name of this interpreter: as short as the shell finds it."""
    python = shutil.which("python")
    if python and os.path.abspath(python) == os.path.abspath(sys.executable):
        return "python"
    return shlex.quote(sys.executable)
