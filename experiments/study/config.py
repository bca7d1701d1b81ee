"""The typed configuration of a study and of its runs.

A study is one YAML file in ``configs/``. Its keys are the keys below, its variants are sets of overrides of them, and
every key is also a flag: ``--recipe.lr=0.05``, ``--model.groups=log:4``, ``--seeds=1``.
"""

from __future__ import annotations

import re
from argparse import ArgumentError
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace, _loaders_dumpers

from experiments.data.augment import Views
from experiments.errors import UsageError
from experiments.measure.options import MeasureOptions
from experiments.models import model_builder
from experiments.name_hints import hint
from experiments.study.catalogue import TRAINED, locate_study
from experiments.study.execution import KEYS as EXECUTION_KEYS
from experiments.study.execution import Execution
from experiments.study.strict_yaml import StrictLoader, place_of, read_yaml
from experiments.training.recipe import Recipe

# jsonargparse reads the values of flags with this loader; there is no public way to give it another for plain types.
_loaders_dumpers.yaml_default_loader = StrictLoader

MOST_SEEDS = 10_000  # runs of a variant
OF_A_FILE = ("variants", "profiles")  # keys that are not of one run
PROFILE_KEYS = re.compile(r"(?:seeds|dataset)$|(?:data|model|recipe|measures)\.")
VARIANT_KEYS = re.compile(r"dataset$|(?:data|model|recipe)\.")  # they decide the outcome of a run, but for its seed


@dataclass(frozen=True)
class Variant:
    """One architecture or condition of a study, fully resolved.

    Attributes:
        name: as in the study's file.
        dataset: name of the dataset, as ``experiments.data.datasets.load`` takes it.
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
        """Return all that decides the outcome of one run, in JSON types."""
        views = asdict(self.views)
        if self.views.labels == "stored":
            del views["labels"]  # runs from before there was a choice keep their hash
        model = dict(self.model)
        if model["name"] == "alexnet" and model.get("width") == 1:
            del model["width"]  # likewise
        return {
            "data": data_key,
            "views": views,
            "model": model,
            "recipe": asdict(self.recipe),
            "seed": seed,
        }


@dataclass(frozen=True)
class Study:
    """A question with its variants.

    Attributes:
        name: name of the file in ``configs/``.
        question: question of the study.
        variants: in the order of the file.
        seeds: runs of each variant, with seeds 0, 1, …
        measures: what is measured on each trained network.
        execution: its folders and devices.
        overrides: keys of the study that the command line changed, and their values.
    """

    name: str
    question: str
    variants: tuple[Variant, ...]
    seeds: int
    measures: MeasureOptions
    execution: Execution
    overrides: dict[str, Any]

    @property
    def folder(self) -> Path:
        """Folder of the study's runs, tables and figures."""
        return self.execution.runs_root / self.name


def load_study(name: str, flags: list[str] | None = None) -> Study:
    """Read a study and apply what the command line overrides.

    A flag that sets what the variants differ in replaces them by one variant, named after the flag.

    Args:
        name: name of the file in ``configs/``, or the path of a file.
        flags: ``["--recipe.lr=0.05", …]``.

    Raises:
        UsageError: no such study, an unknown or duplicate key, a value of the wrong type or one that cannot work.
    """
    name, path = locate_study(name)
    return resolve(name, read_yaml(path), place_of(path), flags or [])


def resolve(name: str, content: dict[str, Any], place: str, flags: list[str]) -> Study:
    """Turn the content of a study's file and the command line into a study; raises as ``load_study``."""
    content = dict(content)
    if (kind := content.pop("kind", TRAINED)) != TRAINED:
        raise UsageError(f"{place}: kind={kind}: its variants are not trained; must be {TRAINED}")
    variants = _variants(content.pop("variants", None) or {name: {}}, place)
    profiles = _profiles(content.pop("profiles", None) or {}, place)
    base = flat_keys(content)
    for key in ("only", "profile"):
        if key in base:
            raise UsageError(f"{place}: unknown key {key}; it is a flag: --{key}=…")
    given = _parse_flags(_model_name([_flag_of_model(flags), base, *variants.values()], place), flags)
    profile = given.pop("profile", "")
    if profile and profile not in profiles:
        known = f"there are: {', '.join(profiles)}" if profiles else f"{place} has none"
        raise UsageError(f"--profile={profile}: no such profile of {name}; {known}")
    base |= profiles.get(profile, {})
    only = given.pop("only", None)
    touched = {key for overrides in variants.values() for key in overrides} & given.keys()
    if only and touched:
        raise UsageError(f"--only={only} cannot be combined with --{min(touched)}, which replaces the variants")
    if touched:
        variants = {" ".join(f"{key}={given[key]}" for key in sorted(touched)): {}}
    elif only:
        wanted = only.split(",")
        if unknown := [v for v in wanted if v not in variants]:
            raise UsageError(f"--only={only}: {name} has no variant {unknown[0]}; there are: {', '.join(variants)}")
        variants = {v: overrides for v, overrides in variants.items() if v in wanted}
    resolved, settled = [], {}
    for variant, overrides in variants.items():
        merged = {**base, **overrides, **given}
        _model_name([merged], place)
        try:
            settled = _settle({**base, **overrides}, given, f"{place}: variants.{variant}" if overrides else place)
        except UsageError:
            _settle(
                {**base, "model.name": merged["model.name"]}, given, place
            )  # raises if the fault is not the variant's
            raise
        model = dict(vars(settled["model"]))
        resolved.append(Variant(variant, settled["dataset"], settled["data"], model, settled["recipe"]))
    if not isinstance(settled["seeds"], int) or not 1 <= settled["seeds"] <= MOST_SEEDS:
        where = "command line" if "seeds" in given else place
        raise UsageError(f"{where}: seeds={settled['seeds']}: must be from 1 to {MOST_SEEDS}")
    try:
        execution = Execution(**{key: settled[key] for key in EXECUTION_KEYS})
    except UsageError as error:
        raise UsageError(f"{'command line' if given.keys() & set(EXECUTION_KEYS) else place}: {error}") from None
    kept = {key: value for key, value in given.items() if key not in EXECUTION_KEYS}
    return Study(
        name=name,
        question=settled["question"],
        variants=tuple(resolved),
        seeds=settled["seeds"],
        measures=settled["measures"],
        execution=execution,
        overrides=({"profile": profile} if profile else {}) | kept,
    )


def profile_names(name: str) -> list[str]:
    """Return the names of the profiles of a study in ``configs/``; raises as ``load_study``."""
    path = locate_study(name)[1]
    return list(_profiles(read_yaml(path).get("profiles") or {}, place_of(path)))


def _profiles(content: Any, place: str) -> dict[str, dict[str, Any]]:
    """Return the profiles of a study's file: named sets of overrides of the study; raises as ``_named_overrides``."""
    allowed = "seeds, dataset, data.*, model.*, recipe.* and measures.*"
    return _named_overrides(content, f"{place}: profiles", "a profile", "recipe.epochs: 5", PROFILE_KEYS, allowed)


def _variants(content: Any, place: str) -> dict[str, dict[str, Any]]:
    """Return the variants of a study's file; raises as ``_named_overrides``."""
    allowed = "dataset, data.*, model.* and recipe.*"
    return _named_overrides(content, f"{place}: variants", "a variant", "model.groups: 2", VARIANT_KEYS, allowed)


def _named_overrides(
    content: Any, place: str, owner: str, example: str, keys: re.Pattern[str], allowed: str
) -> dict[str, dict[str, Any]]:
    """Return named sets of overrides, as dotted keys.

    Raises:
        UsageError: they are no mapping, or set a key that is not theirs.
    """
    if not isinstance(content, dict):
        raise UsageError(f"{place}: must map names to overrides such as {{{example}}}")
    for name, overrides in content.items():
        if not isinstance(overrides, dict):
            raise UsageError(f"{place}.{name}: {overrides}: must hold overrides such as {{{example}}}, or be {{}}")
    named = {name: flat_keys(overrides) for name, overrides in content.items()}
    for name, overrides in named.items():
        if not str(name).strip():
            raise UsageError(f"{place}: {name!r} is no name")
        for key in overrides:
            if not keys.match(key):
                raise UsageError(f"{place}.{name}: {key} is not {owner}'s to set; {allowed} are")
    return named


def strict_parser(prog: str) -> ArgumentParser:
    """Return a parser that raises instead of exiting, takes no abbreviated flags and reads values as strict YAML."""
    return ArgumentParser(exit_on_error=False, prog=prog, allow_abbrev=False)


@lru_cache(maxsize=32)
def _parser(model: str) -> ArgumentParser:
    """Return the parser of the keys of a study whose network is ``model``."""
    parser = strict_parser("experiments run NAME")
    parser.add_argument("--question", type=str, default="", help="What the study asks.")
    parser.add_argument("--dataset", type=str, default="photos", help="photos, cifar10, imagenette or folder:PATH.")
    parser.add_argument("--seeds", type=int, default=3, help="Runs of each variant.")
    parser.add_argument("--only", type=str, help="Comma-separated variants to run; all by default.")
    parser.add_argument("--profile", type=str, default="", help="One of the profiles of the study's file.")
    parser.add_class_arguments(Execution)
    parser.add_class_arguments(Views, "data")
    parser.add_class_arguments(Recipe, "recipe")
    parser.add_class_arguments(MeasureOptions, "measures")
    parser.add_argument("--model.name", type=str, default=model, help="The network.")
    parser.add_function_arguments(model_builder(model), "model", skip={"classes", "input_size"})
    return parser


@lru_cache(maxsize=32)
def _defaults(model: str) -> Namespace:
    """Return the values of keys that nothing sets, which the parser would work out anew for every variant."""
    return _parser(model).get_defaults()


def study_help(name: str) -> str:
    """Return every flag of a study, by its name or the path of its file, with its type and meaning."""
    path = locate_study(name)[1]
    content, place = read_yaml(path), place_of(path)
    variants = _variants(content.pop("variants", None) or {}, place)
    return _parser(_model_name([flat_keys(content), *variants.values()], place)).format_help()


def _flag_of_model(flags: list[str]) -> dict[str, str]:
    """Return the model that the command line names, if any; it decides which other flags there are."""
    for number, flag in enumerate(flags):
        if flag == "--model.name" and number + 1 < len(flags):
            return {"model.name": flags[number + 1]}
        if flag.startswith("--model.name="):
            return {"model.name": flag.split("=", 1)[1]}
    return {}


def _model_name(sources: list[dict[str, Any]], place: str) -> str:
    """Return the first model that is named.

    Raises:
        UsageError: none is, or what is named is no name.
    """
    name = next((source["model.name"] for source in sources if "model.name" in source), None)
    if not isinstance(name, str):
        raise UsageError(
            f"{place}: model.name is missing" if name is None else f"{place}: model.name={name}: not a name"
        )
    return name


def _parse_flags(model: str, flags: list[str]) -> dict[str, Any]:
    parser = _parser(model)
    for flag in flags:
        key, _, value = flag.partition("=")
        if key in ("--model", "--recipe", "--data", "--measures"):
            right = f"--model.name={value or 'NAME'}" if key == "--model" else f"{key}.KEY=VALUE"
            raise UsageError(f"command line: {flag}: write {right}; --help lists the keys")
    try:
        given = parser.parse_args(flags, defaults=False)
    except ArgumentError as error:
        raise UsageError(f"command line: {parser_error(error, parser)}") from None
    return dict(vars(given.as_flat()))


def _settle(of_file: dict[str, Any], given: dict[str, Any], place: str) -> dict[str, Any]:
    """Return the values of the file, overridden by the command line; an error names the origin of a wrong value."""
    try:
        return _parse({**of_file, **given}, place)
    except UsageError:
        if not given:
            raise
    if isinstance(of_file.get("model.name"), str):
        _parse(of_file, place)  # raises where the file alone is wrong
    return _parse({**of_file, **given}, "command line")


def _parse(flat: dict[str, Any], place: str) -> dict[str, Any]:
    for group in ("data", "model", "recipe", "measures"):
        if group in flat:
            raise UsageError(f"{place}: {group}={flat[group]}: must be a group of keys, such as {{key: value}}")
    parser = _parser(flat["model.name"])
    try:
        settled = parser.parse_object(_nest(flat, place), _defaults(flat["model.name"]).clone(), defaults=False)
        instantiated = parser.instantiate(settled)
    except ArgumentError as error:
        raise UsageError(f"{place}: {parser_error(error, parser, OF_A_FILE)}") from None
    except (ValueError, TypeError) as error:
        raise UsageError(f"{place}: {error}") from None
    return {**vars(instantiated), "model": settled.model}


def parser_error(error: ArgumentError, parser: ArgumentParser, others: Sequence[str] = ()) -> str:
    """Return the message of jsonargparse on one line, with the nearest key where a key is unknown.

    Args:
        error: error of the parser.
        parser: has the known keys.
        others: further keys of the file that is read; none for flags.
    """
    text = " ".join((error.message or "").split())
    text = re.sub(r'Parser key "([^"]+)": ', r"\1: ", text)
    text = re.sub(r"<class '(\w+)'>", r"\1", text).replace("typing.", "")
    one_of = r"([\w.]+): Does not validate against any .* Subtypes: \[(.*)\] Errors: .* Given value: (.*)$"
    for wrong in (one_of, r"([\w.]+): Expected an? (\S.*)\. Got value: (.*)$"):
        text = re.sub(wrong, lambda match: f"{match[1]}={match[3]}: must be {_as_words(match[2])}", text)
    unknown = re.search(
        r"unrecognized arguments: --([\w.-]+)|Option '([\w.-]+)' is not accepted"
        r"|[Kk]ey '?\"?([\w.-]+)'?\"? is not expected|Group '([\w.]+)' does not accept option '([\w.]+)'",
        text,
    )
    if unknown:
        key = ".".join(part for part in unknown.groups() if part)
        keys = sorted(key for key in vars(parser.get_defaults().as_flat()))
        first, groups = key.partition(".")[0], {known.partition(".")[0] for known in keys} | set(others)
        if others and first not in groups:
            key, keys = first, sorted(groups)
        text = f"unknown key {key}; {hint(key, keys)}"
    return text


def _as_words(kinds: str) -> str:
    """Return the types of a value, as Python writes them, in a user's words."""
    words = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "text", "NoneType": "null"}
    kinds = kinds.replace("list[int]", "a list of whole numbers").replace(", tuple[int, ...]", "")
    names = [name.strip(" '\"") for name in re.sub(r"Literal\[(.*?)\]", r"\1", kinds).split(",")]
    return " or ".join(words.get(name, name) for name in names)


def flat_keys(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested mappings as dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, Mapping):
            flat |= flat_keys(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _nest(flat: Mapping[str, Any], place: str) -> dict[str, Any]:
    """Return dotted keys as nested mappings."""
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
