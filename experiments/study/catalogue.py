"""The studies in ``configs/``: found and described without loading torch.

In a checkout they lie at its top, where users edit them; an installed package brings them along.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.errors import UsageError
from experiments.nearest import hint

_BROUGHT = Path(__file__).parents[1] / "configs"  # by an installed package
CONFIGS = _BROUGHT if _BROUGHT.is_dir() else Path(__file__).parents[2] / "configs"
HOME = Path.cwd() if _BROUGHT.is_dir() else CONFIGS.parent  # of the record: results/ and the README
GROUP_PARALLEL = "group-parallel"  # the study that trains nothing: it measures steps on several devices


def study_names() -> list[str]:
    """The studies in ``configs/``: every file there but the ledger of claims."""
    return sorted(path.stem for path in CONFIGS.glob("*.yaml") if path.stem != "claims")


def trained_studies() -> list[str]:
    """The studies whose variants are trained: all but ``group-parallel``."""
    return [name for name in study_names() if name != GROUP_PARALLEL]


def study_file(name: str) -> Path:
    """The file of a study.

    Raises:
        UsageError: there is none of that name; lists those there are and suggests the nearest.
    """
    if name in study_names():
        return CONFIGS / f"{name}.yaml"
    if name in sweep_names():
        raise UsageError(f"NAME={name}: a sweep, not a study; make sweep NAME={name} searches it")
    raise UsageError(f"NAME={name}: no such study; {hint(name, study_names(), 0.4)}")


def sweep_names() -> list[str]:
    """The sweeps in ``configs/sweeps/``."""
    return sorted(path.stem for path in (CONFIGS / "sweeps").glob("*.yaml"))


def studies(done: Mapping[str, int]) -> list[dict[str, Any]]:
    """Name, question, variants, expected time and runs of every study.

    Args:
        done: finished runs of each, as ``experiments.commands.status`` counts them; of those left out none.
    """
    from experiments.study.strict_yaml import read_yaml

    found = []
    for name in study_names():
        content, text = read_yaml(study_file(name)), study_file(name).read_text(encoding="utf-8")
        head = text.split("# Time:", 1)[-1].split("# Result:", 1)[0].split("\nquestion:", 1)[0]
        time = " ".join(line.removeprefix("#").strip() for line in head.splitlines()).strip()
        time = f"Time: {time}" if "# Time:" in text else ""
        found.append(
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
    return found
