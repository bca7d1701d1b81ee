"""The typed configuration of a study and of its runs.

A study is one YAML file in ``configs/``. Its keys are the keys below, its variants are sets of overrides of them, and
every key is also a flag: ``--recipe.lr=0.05``, ``--model.groups=log:4``, ``--seeds=1``.
"""

from __future__ import annotations

import re
from argparse import ArgumentError
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser

from experiments.augment import Views
from experiments.catalogue import study_file
from experiments.errors import UsageError
from experiments.measure import Measures
from experiments.models import model_builder
from experiments.tracking import WandbMode
from experiments.train import Recipe


@dataclass(frozen=True)
class Variant:
    """One architecture or condition of a study, fully resolved.

    Attributes:
        name: as in the study's file.
        dataset: what ``experiments.data.load`` takes.
        views: how images become inputs.
        model: name and arguments of the network.
        recipe: how it is trained.
    """

    name: str
    dataset: str
    views: Views
    model: dict[str, Any]
    recipe: Recipe

    def run_config(self, data_key: str, seed: int) -> dict[str, Any]:
        """Everything that decides the outcome of one run, in JSON types."""
        return {
            "data": data_key,
            "views": asdict(self.views),
            "model": self.model,
            "recipe": asdict(self.recipe),
            "seed": seed,
        }


@dataclass(frozen=True)
class Study:
    """A question with its variants.

    Attributes:
        name: of the file in ``configs/``.
        question: what the study asks.
        variants: in the order of the file.
        seeds: runs of each variant, with seeds 0, 1, …
        measures: what is measured on each trained network.
        data_root: folder of downloads and of decoded images.
        runs_root: folder of the run store.
        download: whether to fetch a dataset that is not there.
        wandb: where metrics are sent.
    """

    name: str
    question: str
    variants: tuple[Variant, ...]
    seeds: int
    measures: Measures
    data_root: Path
    runs_root: Path
    download: bool
    wandb: WandbMode

    @property
    def folder(self) -> Path:
        """Where the study's runs, tables and figures go."""
        return self.runs_root / self.name


def load_study(name: str, flags: list[str] | None = None) -> Study:
    """Read a study and apply what the command line overrides.

    A flag that sets what the variants differ in replaces them by one variant, named after the flag.

    Args:
        name: of the file in ``configs/``.
        flags: ``["--recipe.lr=0.05", …]``.

    Raises:
        UsageError: no such study, an unknown or duplicate key, a value of the wrong type or one that cannot work.
    """
    path = study_file(name)
    return resolve(name, read_yaml(path), f"configs/{path.name}", flags or [])


def resolve(name: str, content: dict[str, Any], place: str, flags: list[str]) -> Study:
    """Turn the content of a study's file and the command line into a study; raises as ``load_study``."""
    content = dict(content)
    variants = content.pop("variants", None) or {name: {}}
    if not isinstance(variants, dict) or not all(isinstance(v, dict) for v in variants.values()):
        raise UsageError(f"{place}: variants: must map names to overrides such as {{model.groups: 2}}")
    given = _parse_flags(_model_name(content, place, flags), flags)
    only = given.pop("only", None)
    touched = {key for overrides in variants.values() for key in overrides} & given.keys()
    if touched:
        variants = {" ".join(f"{key}={given[key]}" for key in sorted(touched)): {}}
    elif only:
        wanted = only.split(",")
        if unknown := [v for v in wanted if v not in variants]:
            raise UsageError(f"--only={only}: {name} has no variant {unknown[0]}; there are: {', '.join(variants)}")
        variants = {v: overrides for v, overrides in variants.items() if v in wanted}
    base = _flatten(content)
    resolved, settled = [], None
    for variant, overrides in variants.items():
        at = f"{place}: variants.{variant}" if overrides else place
        settled = _parse({**base, **overrides, **given}, at)
        resolved.append(
            Variant(
                variant,
                settled["dataset"],
                settled["data"],
                dict(vars(settled["model"])),
                settled["recipe"],
            )
        )
    assert settled is not None
    if settled["seeds"] < 1:
        raise UsageError(f"seeds={settled['seeds']}: must be at least 1")
    return Study(
        name,
        settled["question"],
        tuple(resolved),
        settled["seeds"],
        settled["measures"],
        Path(settled["data_root"]).expanduser(),
        Path(settled["runs_root"]).expanduser(),
        settled["download"],
        settled["wandb"],
    )


@lru_cache(maxsize=32)
def _parser(model: str) -> ArgumentParser:
    """The keys of a study whose network is ``model``, with their types."""
    parser = ArgumentParser(exit_on_error=False, prog="experiments run NAME")
    parser.add_argument("--question", type=str, default="", help="What the study asks.")
    parser.add_argument("--dataset", type=str, default="photos", help="photos, cifar10, imagenette or folder:PATH.")
    parser.add_argument("--seeds", type=int, default=3, help="Runs of each variant.")
    parser.add_argument("--only", type=str, help="Comma-separated variants to run; all by default.")
    parser.add_argument("--data_root", type=str, default="data", help="Folder of downloads and decoded images.")
    parser.add_argument("--runs_root", type=str, default="runs", help="Folder of the run store.")
    parser.add_argument("--download", type=bool, default=False, help="Fetch a dataset that is not there.")
    parser.add_argument("--wandb", type=WandbMode, default="auto", help="auto: online where logged in, else offline.")
    parser.add_class_arguments(Views, "data")
    parser.add_class_arguments(Recipe, "recipe")
    parser.add_class_arguments(Measures, "measures")
    parser.add_argument("--model.name", type=str, default=model, help="The network.")
    parser.add_function_arguments(model_builder(model), "model", skip={"classes", "input_size"})
    return parser


def study_help(name: str) -> str:
    """Every flag of a study, with its type and meaning."""
    content = read_yaml(study_file(name))
    return _parser(_model_name(content, f"configs/{name}.yaml", [])).format_help()


def _model_name(content: Mapping[str, Any], place: str, flags: list[str]) -> str:
    for number, flag in enumerate(flags):
        if flag == "--model.name" and number + 1 < len(flags):
            return flags[number + 1]
        if flag.startswith("--model.name="):
            return flag.split("=", 1)[1]
    name = _flatten(content).get("model.name")
    if name is None:
        raise UsageError(f"{place}: model.name is missing")
    return name


def _parse_flags(model: str, flags: list[str]) -> dict[str, Any]:
    parser = _parser(model)
    try:
        given = parser.parse_args(flags, defaults=False)
    except ArgumentError as error:
        raise UsageError(f"command line: {parser_error(error, parser)}") from None
    return dict(vars(given.as_flat()))


def _parse(flat: dict[str, Any], place: str) -> dict[str, Any]:
    for group in ("data", "model", "recipe", "measures"):
        if group in flat:
            raise UsageError(f"{place}: {group}={flat[group]}: must be a group of keys, such as {{key: value}}")
    parser = _parser(flat["model.name"])
    try:
        settled = parser.parse_object(_nest(flat, place))
        instantiated = parser.instantiate(settled)
    except ArgumentError as error:
        raise UsageError(f"{place}: {parser_error(error, parser)}") from None
    except (ValueError, TypeError) as error:
        raise UsageError(f"{place}: {error}") from None
    return {**vars(instantiated), "model": settled.model}


def parser_error(error: ArgumentError, parser: ArgumentParser) -> str:
    """The message of jsonargparse on one line, with the nearest key where a key is unknown."""
    text = " ".join((error.message or "").split())
    text = re.sub(r'Parser key "([^"]+)": ', r"\1: ", text)
    text = re.sub(r"<class '(\w+)'>", r"\1", text).replace("typing.", "")
    unknown = re.search(
        r"unrecognized arguments: --([\w.-]+)|Option '([\w.-]+)' is not accepted"
        r"|[Kk]ey '?\"?([\w.-]+)'?\"? is not expected|Group '([\w.]+)' does not accept option '([\w.]+)'",
        text,
    )
    if unknown:
        key = ".".join(part for part in unknown.groups() if part)
        keys = sorted(key for key in vars(parser.get_defaults().as_flat()))
        near = get_close_matches(key, keys, n=1, cutoff=0.5)
        text = f"unknown key {key}" + (f"; did you mean {near[0]}?" if near else f"; there are: {', '.join(keys)}")
    return text


def _flatten(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _nest(flat: Mapping[str, Any], place: str) -> dict[str, Any]:
    """Dotted keys as nested mappings."""
    nested: dict[str, Any] = {}
    for key, value in flat.items():
        *path, last = key.split(".")
        inner = nested
        for part in path:
            inner = inner.setdefault(part, {})
            if not isinstance(inner, dict):
                raise UsageError(f"{place}: {key}: {part} is a value, not a group of keys")
        inner[last] = value
    return nested


class _StrictLoader(yaml.SafeLoader):
    """YAML in which a key that stands twice is an error and ``1e-4`` is a number."""


def _unique_mapping(loader: _StrictLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    mapping: dict[Any, Any] = {}
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node)
        if key in mapping:
            raise UsageError(
                f"{key_node.start_mark.name}, line {key_node.start_mark.line + 1}: the key {key} stands twice"
            )
        mapping[key] = loader.construct_object(value_node, deep=True)
    return mapping


_StrictLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _unique_mapping)
_StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:\d[\d_]*(?:\.[\d_]*)?|\.\d+)(?:[eE][-+]?\d+)$"),
    list("-+0123456789."),
)


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file that holds a mapping.

    Raises:
        UsageError: it cannot be read, is not valid YAML, holds a key twice or no mapping.
    """
    try:
        loader = _StrictLoader(path.read_text())
        loader.name = f"configs/{path.name}"
        content = loader.get_single_data()
    except yaml.YAMLError as error:
        raise UsageError(f"configs/{path.name}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise UsageError(f"configs/{path.name}: must hold keys such as question, model and variants")
    return content
