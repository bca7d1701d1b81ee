"""Run a target of the Makefile as from a shell, also where the tests themselves were started by make."""

import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]


def run_make(*arguments: str) -> subprocess.CompletedProcess[str]:
    """``make`` in the checkout, without what a make above it hands down, and without setting up the environment."""
    environment = {
        name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")
    }
    command = ["make", "--old-file=.venv/.ready", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
