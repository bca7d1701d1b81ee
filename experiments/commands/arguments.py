"""Arguments that several commands take: the name of a study, and ``--runs_root``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from experiments.errors import UsageError
from experiments.name_hints import unknown_flag
from experiments.study.catalogue import locate_study, study_kind
from experiments.study.execution import folder_path
from experiments.study.invocation import typed

OF_RECORD = "figures"  # folder in the run store for figures and pages of the record


def name_and_flags(arguments: list[str], usage: str) -> tuple[str, list[str]]:
    """Split the arguments of a command into the name, which comes first, and the flags.

    Args:
        arguments: arguments of the command.
        usage: usage of the command, such as ``run NAME``.

    Raises:
        UsageError: no name comes first.
    """
    if not arguments or arguments[0].startswith("-"):
        hint = f"; `{typed('list')}` shows the studies" if "NAME" in usage else ""
        raise UsageError(f"{usage}: the name is missing{hint}")
    return arguments[0], arguments[1:]


def study_folder(arguments: list[str], command: str, others: Sequence[str] = ()) -> Path:
    """Return the folder of a study, which the arguments of a command give by its name or its file; see ``runs_root``.

    Raises:
        UsageError: no such study, an unknown flag, or a file where a folder is asked for.
    """
    name, flags = name_and_flags(arguments, f"{command} NAME")
    study, _ = locate_study(name)
    study_kind(name)  # which reads the file
    return runs_root(flags, command, others) / study


def runs_root(flags: list[str], command: str, others: Sequence[str] = ()) -> Path:
    """Return the folder of the run store from ``--runs_root``; ``runs`` by default.

    Args:
        flags: flags of the command that nothing else has taken.
        command: its name.
        others: further flags of the command, for the message.

    Raises:
        UsageError: another flag, or a file where a folder is asked for.
    """
    root = "runs"
    for flag in flags:
        key, has_value, value = flag.partition("=")
        if key != "--runs_root" or not has_value:
            raise unknown_flag(command, flag, ["--runs_root=DIR", *others])
        root = value
    return folder_path("--runs_root", root)
