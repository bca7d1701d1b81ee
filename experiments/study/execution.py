"""Execution of a study: its folders, the devices that train it, and where its metrics are sent."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

from experiments.errors import UsageError
from experiments.tracking import WandbMode
from experiments.training.recipe import Precision
from experiments.training.run_context import Compile


@dataclass(frozen=True, kw_only=True)
class Execution:
    """Execution of a study: it changes no result beyond rounding, and no run's hash.

    Args:
        data_root: Folder of downloads and decoded images.
        runs_root: Folder of the run store.
        download: Fetch a dataset that is not there.
        seeds_at_once: Seeds of a variant trained together; auto: on a GPU, as many as a trial finds faster, else 1.
        wandb: Destination of metrics; auto: online if you are logged in, else offline.
        compile: Compile training steps; auto: if that saves time.
        precision: Meaning of recipe.precision=auto: fp32 or bf16, as in earlier runs; auto: bf16 where supported.
        gpus: Devices that train each run together, one process each.
        on: here, or ray: on the nodes of a Ray cluster.
        cpus_per_run: Cores of a run with on=ray, in addition to a GPU.

    Raises:
        UsageError: a number below 1, or options that exclude each other.
    """

    data_root: Path = Path("data")
    runs_root: Path = Path("runs")
    download: bool = False
    seeds_at_once: Literal["auto"] | int = "auto"
    wandb: WandbMode = "auto"
    compile: Compile = "auto"
    precision: Precision = "auto"
    gpus: int = 1
    on: Literal["here", "ray"] = "here"
    cpus_per_run: int = 1

    def __post_init__(self) -> None:
        for name in ("data_root", "runs_root"):
            object.__setattr__(self, name, folder_path(name, getattr(self, name)))
        for name in ("gpus", "cpus_per_run"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name}={getattr(self, name)}: must be at least 1")
        at_once = self.seeds_at_once
        if at_once != "auto" and (isinstance(at_once, bool) or at_once < 1):
            raise UsageError(f"seeds_at_once={at_once}: must be auto or at least 1")
        for chosen, other, excluded, reason in (
            (at_once not in ("auto", 1), "on=ray", self.on == "ray", "where each run is a call of its own"),
            (self.gpus > 1, "on=ray", self.on == "ray", "where each run is trained by one process"),
            (self.gpus > 1, f"seeds_at_once={at_once}", at_once not in ("auto", 1), "one run is trained at a time"),
            (self.gpus > 1, "compile=always", self.compile == "always", "steps of several processes are not compiled"),
        ):
            if chosen and excluded:
                option = f"gpus={self.gpus}" if self.gpus > 1 else f"seeds_at_once={at_once}"
                raise UsageError(f"{option} cannot be combined with {other}: {reason}")


KEYS = tuple(field.name for field in fields(Execution))


def folder_path(key: str, value: str | Path) -> Path:
    """Return the path of a folder, which need not be there yet.

    Args:
        key: key or flag that gave it, for the message.
        value: the path, perhaps with ``~``.

    Raises:
        UsageError: it is a file.
    """
    path = Path(value).expanduser()
    if path.is_file():
        raise UsageError(f"{key}={value}: a file, not a folder")
    return path
