"""The studies in ``configs/``: found and described without loading torch.

A checkout has them at its top, where users edit them; an installed package contains them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.errors import UsageError
from experiments.name_hints import hint
from experiments.study.strict_yaml import place_of, read_yaml

_INSTALLED = Path(__file__).parents[1] / "configs"  # their folder in an installed package
CONFIGS = _INSTALLED if _INSTALLED.is_dir() else Path(__file__).parents[2] / "configs"
HOME = Path.cwd() if _INSTALLED.is_dir() else CONFIGS.parent  # folder of the record: results/, README.md, docs/
FILE_ENDS = (".yaml", ".yml")  # of the path of a study's file
TRAINED, GROUP_PARALLEL = KINDS = ("trained", "group-parallel")  # kinds of studies; the key ``kind`` of a file


def study_names() -> list[str]:
    """Return the studies in ``configs/``: every file there but the ledger of claims."""
    return sorted(path.stem for path in CONFIGS.glob("*.yaml") if path.stem != "claims")


def trained_studies() -> list[str]:
    """Return the studies in ``configs/`` whose variants are trained."""
    return [name for name in study_names() if study_kind(name) == TRAINED]


def study_file(name: str) -> Path:
    """Return the file of a study in ``configs/``.

    Raises:
        UsageError: there is none of that name; lists those there are and suggests the nearest.
    """
    if name in study_names():
        return CONFIGS / f"{name}.yaml"
    if name in sweep_names():
        raise UsageError(f"NAME={name}: a sweep, not a study; make sweep NAME={name} searches it")
    if len(Path(name).parts) > 1:
        raise UsageError(f"NAME={name}: no such study; the path of a study's file ends in {' or '.join(FILE_ENDS)}")
    raise UsageError(f"NAME={name}: no such study; {hint(name, study_names(), 0.4)}")


def locate_study(name: str) -> tuple[str, Path]:
    """Return the name and the file of a study in ``configs/``, or of one whose name is the path of a file.

    A study whose file lies elsewhere is called after the file and its folder. Raises as ``study_file``.
    """
    if name.endswith(FILE_ENDS):
        path = Path(name)
        return f"{path.resolve().parent.name}-{path.stem}", path
    return name, study_file(name)


def study_kind(name: str) -> str:
    """Return the kind of a study, one of ``KINDS``; ``trained`` where its file names none.

    Args:
        name: name of a study in ``configs/``, or the path of a file.

    Raises:
        UsageError: no such study, a file that cannot be read, or an unknown kind.
    """
    _, path = locate_study(name)
    kind = read_yaml(path).get("kind", TRAINED)
    if kind not in KINDS:
        raise UsageError(f"{place_of(path)}: kind={kind}: must be one of {', '.join(KINDS)}")
    return kind


def sweep_names() -> list[str]:
    """Return the sweeps in ``configs/sweeps/``."""
    return sorted(path.stem for path in (CONFIGS / "sweeps").glob("*.yaml"))


def studies(done: Mapping[str, int]) -> list[dict[str, Any]]:
    """Return name, question, variants, seeds, expected time and runs of every study, in JSON types.

    Args:
        done: number of finished runs of each study; 0 for a study that is left out.
    """
    listed = []
    for name in study_names():
        content, text = read_yaml(study_file(name)), study_file(name).read_text(encoding="utf-8")
        head = text.split("# Time:", 1)[-1].split("# Result:", 1)[0].split("\nquestion:", 1)[0]
        time = " ".join(line.removeprefix("#").strip() for line in head.splitlines()).strip()
        time = f"Time: {time}" if "# Time:" in text else ""
        listed.append(
            {
                "name": name,
                "question": content.get("question", ""),
                "variants": list(content.get("variants") or {}),
                "seeds": content.get("seeds"),
                "time": time,
                "runs": max(1, len(content.get("variants") or {})) * content.get("seeds", 1),
                "runs_done": done.get(name, 0),
            }
        )
    return listed
