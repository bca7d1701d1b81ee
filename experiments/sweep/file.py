"""A wandb sweep file as this project runs it: read as wandb reads it, checked whole before anything starts.

The file is wandb's own (https://docs.wandb.ai/guides/sweeps/sweep-config-keys) and stays unchanged. In
addition, its ``command`` runs one run of a study, ``… -m experiments run STUDY [flags] ${args}``.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from experiments.errors import UsageError
from experiments.name_hints import hint
from experiments.study.catalogue import CONFIGS, study_names, sweep_names
from experiments.study.strict_yaml import place_of, read_yaml

KEYS = ("name", "description", "project", "entity", "program", "command", "method", "metric", "parameters")
KEYS += ("early_terminate", "run_cap")
METHODS = ("grid", "random", "bayes")
# What a run reports at the end of its epochs and a sweep can ask for.
METRICS = ("test_accuracy", "test_loss", "train_accuracy", "train_loss")
GOALS = ("maximize", "minimize")
HYPERBAND = ("type", "min_iter", "max_iter", "s", "eta")
METRIC = ("name", "goal", "target", "impute")
IMPUTE = ("best", "worst", "latest")
ARGS = "${args}"
COMMAND = "${env} ${interpreter} -m experiments run STUDY [flags] ${args}"

Values = Mapping[str, Any]


@dataclass(frozen=True)
class SweepFile:
    """A checked sweep file.

    Attributes:
        name: name of the file, and of the folder of its results.
        path: path of the file.
        content: as wandb reads it.
        study: whose runs it makes.
        flags: flags of every run; None in the place of the parameters.
    """

    name: str
    path: Path
    content: dict[str, Any]
    study: str
    flags: tuple[str | None, ...]

    @property
    def place(self) -> str:
        """Name of the file in messages."""
        return place_of(self.path)

    @property
    def method(self) -> str:
        """``grid``, ``random`` or ``bayes``."""
        return self.content["method"]

    @property
    def metric(self) -> str:
        """Name of the metric."""
        return self.content["metric"]["name"]

    @property
    def maximize(self) -> bool:
        """True if more of the metric is better."""
        return self.content["metric"]["goal"] == "maximize"

    @property
    def parameters(self) -> dict[str, dict[str, Any]]:
        """Parameters that are varied, each with its values or distribution."""
        return self.content["parameters"]

    def of_one_run(self, values: Values, more: list[str]) -> list[str]:
        """Return the flags of a run with these values of the parameters, as a wandb agent would pass them.

        Args:
            values: by name of the parameter.
            more: flags of the command line, which override the file's own.
        """
        given = [f"--{name}={value}" for name, value in values.items()]
        flags: list[str] = []
        for flag in self.flags:
            flags += [*more, *given] if flag is None else [flag]
        return from_agent(flags)


def from_agent(flags: list[str]) -> list[str]:
    """Return the flags as an agent writes them, in Python's words, as the command line reads them: None is null."""
    return [re.sub(r"=None$", "=null", flag) for flag in flags]


def import_engine() -> Any:
    """Import the sweep engine of wandb itself, the package ``sweeps``.

    Raises:
        UsageError: it is not installed.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # written for an older pydantic
            import sweeps
            import sweeps.config
    except ImportError:
        raise UsageError("the sweep engine of wandb is not installed: pip install sweeps==0.2.0") from None
    return sweeps


def sweep_path(name: str) -> Path:
    """Return the file of a sweep: a name in ``configs/sweeps/``, or a path that ends in ``.yaml`` or ``.yml``.

    Raises:
        UsageError: there is none; lists those there are and suggests the nearest.
    """
    if name.endswith((".yaml", ".yml")):
        if not Path(name).is_file():
            raise UsageError(f"{name}: there is no such file")
        return Path(name)
    if name in sweep_names():
        return CONFIGS / "sweeps" / f"{name}.yaml"
    if name in study_names():
        raise UsageError(f"NAME={name}: a study, not a sweep; make experiment NAME={name} runs it")
    raise UsageError(f"NAME={name}: no such sweep; {hint(name, sweep_names(), 0.4)}")


def read_sweep(path: Path) -> SweepFile:
    """Read and check a sweep file.

    Raises:
        UsageError: names the file, the key, and what would be right.
    """
    content = read_yaml(path)
    place = place_of(path)
    _same_to_wandb(content, yaml.safe_load(path.read_text(encoding="utf-8")), place)
    _known(content, KEYS, place, "")
    for key in ("command", "method", "metric", "parameters"):
        if key not in content:
            raise UsageError(f"{place}: {key} is missing")
    _check_method(content["method"], place)
    _check_metric(content["metric"], place)
    if not isinstance(content["parameters"], dict) or not content["parameters"]:
        raise UsageError(f"{place}: parameters: must map flags to what they take, such as recipe.lr: {{values: [0.1]}}")
    for name, parameter in content["parameters"].items():
        _check_parameter(name, parameter, content["method"], place)
    if "early_terminate" in content:
        _check_hyperband(content["early_terminate"], place)
    cap = content.get("run_cap", 1)
    if not isinstance(cap, int) or isinstance(cap, bool) or cap < 1:
        raise UsageError(f"{place}: run_cap={cap}: must be a whole number of runs")
    study, flags = _command(content["command"], content.get("program"), place)
    return SweepFile(path.stem, path, content, study, flags)


def _same_to_wandb(ours: Any, theirs: Any, place: str, key: str = "") -> None:
    """Refuse what wandb, which reads YAML 1.1, takes for something else than it looks like: 1e-5, 4:2, on."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for (name, mine), other in zip(ours.items(), theirs.values(), strict=True):
            _same_to_wandb(mine, other, place, f"{key}.{name}" if key else str(name))
    elif isinstance(ours, list) and isinstance(theirs, list):
        for mine, other in zip(ours, theirs, strict=True):
            _same_to_wandb(mine, other, place, key)
    elif type(ours) is not type(theirs) or ours != theirs:
        if isinstance(ours, float):
            raise UsageError(
                f"{place}: {key}: {theirs} is a text to wandb, which reads YAML 1.1; write {_dotted(ours)}"
            )
        raise UsageError(f'{place}: {key}: {ours} is {theirs!r} to wandb, which reads YAML 1.1; write "{ours}"')


def _dotted(number: float) -> str:
    """Return a float in the only notation that YAML 1.1 reads as one too."""
    text = f"{number!r}"
    mantissa, e, exponent = text.partition("e")
    return f"{mantissa if '.' in mantissa else mantissa + '.0'}{e}{exponent}"


def _known(content: Values, known: tuple[str, ...], place: str, within: str) -> None:
    for key in content:
        if key not in known:
            near = get_close_matches(key, known, n=1, cutoff=0.6)
            hint = f"did you mean {within}{near[0]}?" if near else f"there are: {', '.join(known)}"
            raise UsageError(f"{place}: unknown key {within}{key}; {hint}")


def _check_method(method: Any, place: str) -> None:
    if method not in METHODS:
        near = get_close_matches(str(method), METHODS, n=1)
        hint = f"; did you mean {near[0]}?" if near else f"; there are: {', '.join(METHODS)}"
        raise UsageError(f"{place}: method={method}: no such method{hint}")


def _check_metric(metric: Any, place: str) -> None:
    if not isinstance(metric, dict) or "name" not in metric:
        raise UsageError(f"{place}: metric: must be {{name: test_accuracy, goal: maximize}}, or another metric")
    _known(metric, METRIC, place, "metric.")
    name, goal = metric["name"], metric.get("goal")
    if name not in METRICS:
        near = get_close_matches(str(name), METRICS, n=1)
        hint = f"; did you mean {near[0]}? There are: " if near else "; there are: "
        raise UsageError(f"{place}: metric.name={name}: no run reports that{hint}{', '.join(METRICS)}")
    if goal is None:
        right = "maximize" if "accuracy" in name else "minimize"
        raise UsageError(f"{place}: metric.goal is missing, which means minimize to wandb; write goal: {right}")
    if goal not in GOALS:
        raise UsageError(f"{place}: metric.goal={goal}: must be one of {', '.join(GOALS)}")
    if metric.get("impute", "worst") not in IMPUTE:
        raise UsageError(f"{place}: metric.impute={metric['impute']}: must be one of {', '.join(IMPUTE)}")
    if not _is_number(metric.get("target", 0)):
        raise UsageError(f"{place}: metric.target={metric['target']}: must be a number")


def _check_parameter(name: str, parameter: Any, method: str, place: str) -> None:
    where = f"{place}: parameters.{name}"
    if not isinstance(parameter, dict):
        raise UsageError(f"{where}: must be {{values: […]}}, {{min: …, max: …}} or {{value: …}}")
    if "parameters" in parameter:
        inner = next(iter(parameter["parameters"]), "…") if isinstance(parameter["parameters"], dict) else "…"
        raise UsageError(f"{where}: nested parameters are lost by wandb's engine; write {name}.{inner}")
    config = import_engine().config
    try:
        filled = config.fill_parameter(name, parameter)
    except (ValueError, config.ParamValidationError) as error:
        raise UsageError(f"{place}: parameters.{str(error).removeprefix('Parameter ')}") from None
    if filled is None:
        raise UsageError(
            f"{where}: {parameter} is not a distribution; right are {{values: […]}}, {{min: 0.0, max: 1.0}} (both with "
            f"a point, or both without) and {{distribution: log_uniform_values, min: 0.01, max: 1.0}}"
        )
    kind = filled[0]
    if kind in ("param_loguniform", "param_inv_loguniform", "param_qloguniform"):
        raise UsageError(
            f"{where}.distribution={parameter['distribution']}: its limits are exponents of e; write "
            f"{parameter['distribution']}_values"
        )
    if kind == "param_categorical_w_probabilities":
        given, shares = len(parameter["values"]), parameter["probabilities"]
        if given != len(shares) or abs(sum(shares) - 1) > 1e-6:
            raise UsageError(f"{where}.probabilities={shares}: must be {given} numbers with the sum 1")
        if method == "bayes":
            raise UsageError(
                f"{where}.probabilities: wandb's engine has no bayes for these; use random, or leave them out"
            )
    grid = ("param_categorical", "param_single_value", "param_int_uniform", "param_quniform")
    if method == "grid" and kind not in grid:
        raise UsageError(f"{where}: a grid needs values: […], or min and max that are whole numbers")


def _check_hyperband(stop: Any, place: str) -> None:
    right = "{type: hyperband, min_iter: 3} or {type: hyperband, max_iter: 27, s: 2}"
    if not isinstance(stop, dict) or stop.get("type") != "hyperband":
        kind = stop.get("type") if isinstance(stop, dict) else stop
        raise UsageError(f"{place}: early_terminate.type={kind}: must be hyperband, as in {right}")
    _known(stop, HYPERBAND, place, "early_terminate.")
    for key, low in (("min_iter", 1), ("max_iter", 1), ("s", 1)):
        value = stop.get(key, low)
        if not isinstance(value, int) or isinstance(value, bool) or value < low:
            raise UsageError(f"{place}: early_terminate.{key}={value}: must be a whole number, at least {low}")
    if not _is_number(stop.get("eta", 3)) or stop.get("eta", 3) <= 1:
        raise UsageError(f"{place}: early_terminate.eta={stop['eta']}: must be above 1")
    if "max_iter" in stop and "s" not in stop:
        raise UsageError(f"{place}: early_terminate.s is missing, which max_iter needs; right is {right}")
    if "max_iter" not in stop and "min_iter" not in stop:
        raise UsageError(f"{place}: early_terminate needs min_iter, or max_iter and s: {right}")
    if "max_iter" in stop and stop["max_iter"] < stop.get("eta", 3):
        raise UsageError(
            f"{place}: early_terminate.max_iter={stop['max_iter']}: must be at least eta, or nothing stops"
        )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _command(command: Any, program: Any, place: str) -> tuple[str, tuple[str | None, ...]]:
    """Return the study and the flags of ``command``."""
    wrong = f"{place}: command: must be the list {COMMAND}"
    if not isinstance(command, list) or not all(isinstance(part, str) for part in command):
        raise UsageError(wrong)
    if command.count(ARGS) != 1:
        other = next((part for part in command if part.startswith("${args_")), None)
        raise UsageError(f"{wrong}; {other or ARGS} is not there once" if other is None else f"{wrong}, not {other}")
    parts = list(_expanded(command, program, wrong))
    for number in range(len(parts) - 3):
        if parts[number : number + 3] == ["-m", "experiments", "run"]:
            study, flags = parts[number + 3], parts[number + 4 :]
            if study == ARGS or study.startswith("-"):
                break
            return study, tuple(None if flag == ARGS else flag for flag in flags)
    raise UsageError(wrong)


def _expanded(command: list[str], program: Any, wrong: str) -> Iterator[str]:
    for part in command:
        if part == "${program}":
            if not isinstance(program, str):
                raise UsageError(f"{wrong}; program is missing, which ${{program}} stands for")
            yield program
        elif part in ("${env}", "${interpreter}", ARGS):
            yield part
        elif "${" in part:
            raise UsageError(f"{wrong}; {part} is not known here")
        else:
            yield part
