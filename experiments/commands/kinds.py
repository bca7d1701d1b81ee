"""Kinds of studies: how a study of each kind is run, drawn, recorded, verified and described.

The catalogue reads a study's kind from its file. A kind is a module with the functions of ``Kind``: to add one, name it
in ``KINDS`` of ``study/catalogue.py``, write the module, and return it from ``kind_of``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from experiments.study.catalogue import GROUP_PARALLEL, study_kind


class Kind(Protocol):
    """Functions of a kind of study. ``name`` is that of a study in ``configs/``, or the path of a file."""

    def run(self, name: str, flags: list[str]) -> int:
        """Run the variants that are not done, draw and report; return the exit code."""
        ...

    def status(self, name: str, flags: list[str]) -> dict[str, Any]:
        """Return the state of every run, in the form of ``study.status.study_status``."""
        ...

    def draw(self, folder: Path) -> list[Path]:
        """Draw the figures of a study's folder from its saved tables; return the files written."""
        ...

    def restore(self, name: str, home: Path, folder: Path) -> None:
        """Copy what the figures are drawn from, out of the record in ``home``, to a study's folder, which is empty."""
        ...

    def write_record(self, folder: Path, home: Path) -> list[Path]:
        """Copy the results of a study's folder to the record in ``home``; return the files written."""
        ...

    def verify(self, name: str, home: Path, flags: list[str] | None) -> tuple[list[str], str]:
        """Recompute the record of a study; return one line for each difference, and a text on what was recomputed.

        With ``flags``, those of ``run``, the kind also trains or measures again. With None it only recomputes.
        """
        ...

    def flags_help(self, name: str) -> str:
        """Return every flag of the study, with its type and meaning."""
        ...


def kind_of(name: str) -> Kind:
    """Return the kind of a study in ``configs/``, or of the study in a file; raises as ``study_kind``."""
    if study_kind(name) == GROUP_PARALLEL:
        from experiments.group_parallel import study

        return study
    from experiments.commands import trained

    return trained
