"""Commands of the pages and of the heads in ``configs/``: targets, names and flags are there; cheap ones are run."""

import re
import shlex
import tomllib
from pathlib import Path

import pytest

from experiments.__main__ import main
from experiments.errors import UsageError
from experiments.sweep.file import read_sweep, sweep_path
from pages import ROOT, commands, pages
from run_make import run_make

COMMANDS = commands()
OF_MAKE = [command for command in COMMANDS if command.startswith("make ")]
CHEAP = ("list", "cost", "claims", "status")  # run as they are
OF_A_SWEEP = ("--runs", "--workers", "--online", "--local", "--on")
NO_RUNS = "photos-bayes"  # a sweep; it has no record
MADE_LATER = ("my-study.yaml", "runs/sweeps/")  # files that the reader writes, or a sweep


def started(command: str) -> list[list[str]]:
    """Arguments of what a make command starts: module and its arguments."""
    ran = run_make("-n", *shlex.split(command)[1:])
    assert ran.returncode == 0, ran.stderr
    lines = [line for line in ran.stdout.splitlines() if " -m " in line or " -m\t" in line]
    return [shlex.split(line.split(" -m ", 1)[1]) for line in lines if "pip" not in line]


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory):
    return tmp_path_factory.mktemp("elsewhere")


@pytest.mark.parametrize("command", OF_MAKE)
def test_a_make_command_is_understood(command, elsewhere, monkeypatch, capsys):
    monkeypatch.chdir(elsewhere)  # nothing is written to the checkout
    monkeypatch.setattr("experiments.commands.figures._draw_record", lambda *_: iter([[]]))  # it takes a minute
    monkeypatch.setattr("experiments.report.claims.RESULTS", elsewhere)  # to judge the whole record takes seconds
    monkeypatch.setattr("experiments.report.claims.README", elsewhere / "README.md")  # not the real one
    for module, *arguments in started(command):
        if module == "experiments":
            understood(arguments)


def understood(arguments: list[str]) -> None:
    name, *rest = arguments
    if "--help" in rest or name in CHEAP or (name == "figures" and rest[:1] != [NO_RUNS]):
        assert main([argument for argument in arguments if argument != "--measure"]) == 0  # nothing is timed
    elif name == "run":
        if not rest[0].startswith(MADE_LATER):
            assert main(["status", *rest]) == 0  # takes what run takes, and trains nothing
    elif name == "sweep":
        sweep = read_sweep(sweep_path(rest[0]))
        keys = [flag for flag in rest[1:] if flag.partition("=")[0] not in OF_A_SWEEP]
        assert main(["status", sweep.study, *keys]) == 0
    elif name == "measure":
        with pytest.raises(UsageError, match=r"weights\.pth.*(no such file|not there)"):
            main(arguments)
    elif name == "verify":
        assert main([name, "--help"]) == 0  # it takes minutes
    elif name in ("figures", "results", "gather", "report"):
        with pytest.raises((UsageError, FileNotFoundError)) as error:
            main(arguments)
        assert "unknown" not in str(error.value)
    else:
        raise AssertionError(f"a command without a check: {name}")


def test_other_commands_start_what_is_there():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for command in sorted(set(COMMANDS) - set(OF_MAKE)):
        first = shlex.split(command)[0]
        assert first.removeprefix(".venv/bin/") in ("pip", "ray", "torchrun", "python"), command
        for extra in re.findall(r"\[([\w,]+)\]", command):
            assert set(extra.split(",")) <= set(extras), command


def test_studies_and_sweeps_of_the_pages_can_be_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for page in [page for page in pages() if page.name != "CONTRIBUTING.md"]:
        for number, block in enumerate(page.blocks("yaml")):
            file = Path(f"{page.path.stem}-{number}.yaml")
            file.write_text(block, encoding="utf-8")
            if "parameters:" in block:
                assert read_sweep(file).study
            else:
                assert main(["status", str(file)]) == 0
