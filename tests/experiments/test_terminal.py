"""Terminals that know few signs, names with spaces and quotes, and ``--help`` of everything."""

import io
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from experiments import __main__ as command_line
from experiments.commands.help import USAGES
from experiments.terminal import printable
from run_make import run_make

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_signs_that_a_terminal_cannot_show_are_replaced(encoding, monkeypatch):
    monkeypatch.setattr(command_line, "install_handlers", lambda: None)
    monkeypatch.setenv("PYTHONIOENCODING", encoding)

    def experiments(*arguments):
        out, err = (io.TextIOWrapper(io.BytesIO(), encoding) for _ in range(2))
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", ["experiments", *arguments])
            patch.setattr(sys, "stdout", out)
            patch.setattr(sys, "stderr", err)
            code = command_line.entry()
            out.flush(), err.flush()
        return code, *(stream.buffer.getvalue().decode(encoding) for stream in (out, err))

    code, out, err = experiments("measure", "--help")
    assert (code, err) == (0, "")
    assert "[--key=value ?]" in out
    code, _, err = experiments("run", "größe→")
    assert code == 2
    assert err.startswith(f"error: NAME=gr{'??' if encoding == 'ascii' else 'öß'}e?: ")


def test_child_processes_replace_them_too():
    program = (
        "import subprocess, sys; from experiments.terminal import replace_unencodable; replace_unencodable(); "
        "sys.exit(subprocess.run([sys.executable, '-c', r'print(chr(8594) + chr(0xdce9))']).returncode)"
    )
    known = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=known, capture_output=True)
    assert (done.returncode, done.stdout) == (0, b"??\n"), done.stderr


def test_a_name_that_is_no_utf_8_is_shown_with_its_byte():
    assert printable(os.fsdecode(b"caf\xe9")) == r"caf\xe9"
    assert printable("café") == "café"


QUICK = [["list"], ["run"], ["status"], ["sweep"], ["results"], ["results", "quickstart"], ["claims"], ["figures"]]
QUICK += [["gather"], ["verify"], ["report"]]
SLOWER = [["run", "quickstart"], ["run", "group-parallel"], ["sweep", "photos-bayes"], ["status", "quickstart"]]
SLOWER += [["cost"], ["cost", "small"], ["cost", "resnet18"], ["figures", "connections"], ["measure"]]


@pytest.mark.parametrize("arguments", [*QUICK, *SLOWER], ids=" ".join)
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_lists_the_flags_of_every_command_with_and_without_a_name(capsys, arguments, flag):
    from experiments.__main__ import main

    assert main([*arguments, flag]) == 0
    out = capsys.readouterr().out
    assert USAGES[arguments[0]].split()[0] in out
    keys = {"run": "--recipe.lr", "sweep": "--workers", "status": "--json", "cost": "--regroup", "measure": "--data"}
    if len(arguments) == 2 and arguments[1] != "group-parallel":
        assert keys.get(arguments[0], "--") in out
    if arguments[1:] == ["photos-bayes"]:
        assert "--recipe.lr" in out
        assert "searches over recipe.lr" in out


def test_no_command_is_left_out_of_these_tests():
    assert {arguments[0] for arguments in [*QUICK, *SLOWER]} == set(USAGES)


def test_help_of_a_study_in_a_file_and_of_one_that_there_is_not(tmp_path, capsys):
    from experiments.__main__ import main
    from experiments.errors import UsageError

    (tmp_path / "mine.yaml").write_text("question: q?\nmodel: {name: alexnet}\n")
    assert main(["run", f"{tmp_path}/mine.yaml", "--help"]) == 0
    assert "default: alexnet" in capsys.readouterr().out
    for command in ("run", "status", "results", "figures"):
        with pytest.raises(UsageError, match="did you mean quickstart"):
            main([command, "quikstart", "--help"])


@pytest.mark.parametrize(
    ("target", "variable"),
    [(t, "NAME") for t in ("experiment", "status", "sweep", "figures", "results")]
    + [("experiment", "GPUS"), ("cost", "MODEL"), ("measure", "MODEL"), ("measure", "CHECKPOINT"), ("measure", "DATA")],
)
def test_make_passes_each_variable_on_as_one_word(target, variable):
    """A name with every sign that a shell or make could take apart, in one call of make."""
    name = """my "study"; it's a$b && x/best.yaml"""
    said = run_make("-n", target, f"{variable}={name}")
    words = shlex.split(said.stdout.strip().splitlines()[-1])
    assert any(word in (name, f"--{variable.lower()}={name}") for word in words), words


def test_make_passes_nothing_where_a_name_is_missing():
    said = run_make("-n", "status")
    assert shlex.split(said.stdout.strip().splitlines()[-1])[1:] == ["-m", "experiments", "status"]
