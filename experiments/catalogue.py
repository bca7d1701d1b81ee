"""The studies in ``configs/``: found and described without loading torch.

In a checkout they lie at its top, where users edit them; an installed package brings them along.
"""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path
from typing import Any

from experiments.errors import UsageError

_BROUGHT = Path(__file__).parent / "configs"  # by an installed package
CONFIGS = _BROUGHT if _BROUGHT.is_dir() else Path(__file__).parent.parent / "configs"
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
    near = get_close_matches(name, study_names(), n=1, cutoff=0.4)
    hint = f"; did you mean {near[0]}? There are: " if near else "; there are: "
    raise UsageError(f"NAME={name}: no such study{hint}{', '.join(study_names())}")


def studies(runs_root: Path = Path("runs")) -> list[dict[str, Any]]:
    """Name, question, variants, expected time and finished runs of every study."""
    from experiments.strict_yaml import read_yaml

    found = []
    for name in study_names():
        content, text = read_yaml(study_file(name)), study_file(name).read_text()
        time = next((line[1:].strip() for line in text.splitlines() if line.startswith("# Time:")), "")
        found.append(
            {
                "name": name,
                "question": content.get("question", ""),
                "variants": list(content.get("variants") or {}),
                "seeds": content.get("seeds"),
                "time": time,
                "runs_done": sum(
                    '"status": "done"' in result.read_text() for result in (runs_root / name).glob("*/result.json")
                ),
            }
        )
    return found
