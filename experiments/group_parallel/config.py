"""The study's file and command line: the cases that it measures, and their devices."""

from __future__ import annotations

from argparse import ArgumentError
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from jsonargparse import ArgumentParser

from experiments.errors import UsageError
from experiments.group_parallel.one_step import Case, Way
from experiments.models import model_builder
from experiments.study.catalogue import locate_study
from experiments.study.config import parser_error, strict_parser
from experiments.study.execution import folder_path
from experiments.study.strict_yaml import place_of, read_yaml
from experiments.training.ranks import device_for

MINIMUM = {"input_size": 1, "batch_size": 1, "repeats": 1, "devices": 1, "timeout": 1}


@dataclass(frozen=True)
class GroupParallel:
    """The study, fully resolved.

    Attributes:
        name: of its file.
        question: that it answers.
        cases: its variants.
        repeats: timed steps of each.
        device: ``cpu`` or ``cuda``.
        timeout: seconds that a device waits for another before it counts as lost.
        folder: where tables and figures go.
    """

    name: str
    question: str
    cases: tuple[Case, ...]
    repeats: int
    device: str
    timeout: float
    folder: Path


def load(name: str, flags: Sequence[str]) -> GroupParallel:
    """Read the study's file and the command line; errors are reported before a process is started.

    Raises:
        UsageError: an unknown key, a wrong value, a network that cannot be placed on so many devices, or fewer devices
            than are asked for.
    """
    name, path = locate_study(name)
    return resolve(name, read_yaml(path), place_of(path), flags)


def resolve(name: str, content: dict[str, Any], place: str, flags: Sequence[str]) -> GroupParallel:
    """Turn the content of the study's file and the command line into the study; raises as ``load``."""
    content = {key: value for key, value in content.items() if key != "kind"}
    variants = content.pop("variants", None)
    if not isinstance(variants, dict) or not all(isinstance(v, dict) for v in variants.values()) or not variants:
        raise UsageError(f"{place}: variants: must map names to overrides such as {{devices: 2}}")
    named = [flag.partition("=")[2] for flag in flags if flag.startswith("--model.name=")]
    only = [flag.partition("=")[2] for flag in flags if flag.startswith("--only=")]
    chosen = only[0].split(",") if only else list(variants)
    if unknown := [name for name in chosen if name not in variants]:
        raise UsageError(f"--only={only[0]}: there is no variant {unknown[0]}; there are: {', '.join(variants)}")
    cases, settled = [], {}
    for variant in chosen:
        where = f"{place}: variants.{variant}"
        merged = {**content, **variants[variant]}
        model = merged.get("model")
        if not isinstance(model, dict) or not isinstance(model.get("name"), str):
            raise UsageError(f"{where}: model.name is missing")
        if named:
            merged["model"] = model = model if model["name"] == named[0] else {"name": named[0]}
        settled = _settled(merged, where, [flag for flag in flags if not flag.startswith("--only=")])
        for key, least in MINIMUM.items():
            if settled[key] < least:
                there = "command line" if any(flag.startswith(f"--{key}=") for flag in flags) else where
                raise UsageError(f"{there}: {key}={settled[key]}: must be at least {least}")
        case = Case(variant, **{key: settled[key] for key in ("model", "input_size", "batch_size", "devices", "way")})
        if case.way == "data" and case.batch_size < case.devices:
            raise UsageError(f"{where}: batch_size={case.batch_size}: {case.devices} devices need an image each")
        cases.append(case)
    device = device_for(settled["device"], max(case.devices for case in cases))
    for case in cases:
        _check(case, f"{place}: variants.{case.name}")
    folder = folder_path("runs_root", settled["runs_root"]) / name
    return GroupParallel(
        name, settled["question"], tuple(cases), settled["repeats"], device, settled["timeout"], folder
    )


def _check(case: Case, where: str) -> None:
    """Place the network, without numbers."""
    with torch.device("meta"):
        model = case.build()
    try:
        case.plan(model)
    except ValueError as error:
        raise UsageError(f"{where}: {error}") from None


def _settled(merged: dict[str, Any], where: str, flags: Sequence[str]) -> dict[str, Any]:
    parser = study_parser(merged["model"]["name"])
    try:
        given = dict(vars(parser.parse_args(list(flags), defaults=False).as_flat()))
    except ArgumentError as error:
        raise UsageError(f"command line: {parser_error(error, parser)}") from None
    model = {**merged["model"], **{k.removeprefix("model."): v for k, v in given.items() if k.startswith("model.")}}
    own = {key: value for key, value in given.items() if not key.startswith("model.")}
    try:
        settled = parser.parse_object({**merged, **own, "model": model})
    except ArgumentError as error:
        raise UsageError(f"{where}: {parser_error(error, parser)}") from None
    return {**vars(settled), "model": vars(settled.model)}


def study_parser(model: str) -> ArgumentParser:
    """Return the parser of the study's keys and flags, for a network of this name."""
    parser = strict_parser("experiments run NAME")
    parser.add_argument("--question", type=str, default="", help="What the study asks.")
    parser.add_argument("--devices", type=int, default=1, help="How many devices, a process each.")
    parser.add_argument("--way", type=Way, default=get_args(Way)[0], help="groups: its towers; data: its images.")
    parser.add_argument("--input_size", type=int, default=32, help="Height and width of the images in pixels.")
    parser.add_argument("--batch_size", type=int, default=32, help="Images of a step, on all devices together.")
    parser.add_argument("--repeats", type=int, default=15, help="Timed steps of each variant, in turn.")
    parser.add_argument("--device", type=str, default="auto", help="cpu, cuda, or auto: cuda if there are enough.")
    parser.add_argument("--timeout", type=float, default=300.0, help="Seconds after which a silent device is lost.")
    parser.add_argument("--runs_root", type=str, default="runs", help="Folder of tables and figures.")
    parser.add_argument("--model.name", type=str, default=model, help="The network.")
    parser.add_function_arguments(model_builder(model), "model", skip={"input_size"})
    return parser
