"""The study of filter groups as model parallelism: what a step costs on each device, by groups and by data.

Nothing is trained, so this study has a file, a parser and a report of its own. All that is measured goes to the long
table, as everywhere, and the figure and the verdict are drawn from that.
"""

from __future__ import annotations

import os
import sys
from argparse import ArgumentError
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import pandas as pd
import torch
from jsonargparse import ArgumentParser

from analysis.figures import group_parallel as figure
from experiments.errors import RunFailedError, UsageError
from experiments.group_parallel.one_step import Case, StepCost, Way, measure_rank
from experiments.measure.table import Item, Note, Value, gather, save_table
from experiments.models import model_builder
from experiments.report.claims import study_verdicts
from experiments.report.summary import read_measures, tables_folder
from experiments.report.tables import DamagedTableError, read_about
from experiments.store.runs import config_hash, provenance, write_atomic, write_json
from experiments.study.catalogue import locate_study
from experiments.study.config import parser_error, strict_parser
from experiments.study.invocation import typed
from experiments.study.strict_yaml import place_of, read_yaml
from experiments.training.ranks import device_for, run_on_ranks
from experiments.training.run_context import device_name

VERSION = 1  # raise when what is measured changes
MINIMUM = {"input_size": 1, "batch_size": 1, "repeats": 1, "devices": 1, "timeout": 1}


@dataclass(frozen=True)
class GroupParallel:
    """The study, fully resolved.

    Attributes:
        name: of its file.
        question: what it asks.
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


def run(name: str, flags: Sequence[str]) -> int:
    """Measure what is not measured yet, draw and report; returns how many processes failed, 0 or 1."""
    study = load(name, flags)
    tables = tables_folder(study.folder)
    hardware = device_name(torch.device(study.device))
    key, kept = _key(study), tables / "study.json"
    if not _is_measured(study):
        kept.unlink(missing_ok=True)
        ranks = max(case.devices for case in study.cases)
        print(f"measuring {len(study.cases)} variants on {ranks} processes ({hardware}) …", flush=True)
        try:
            seen = run_on_ranks(
                measure_rank,
                ranks,
                list(study.cases),
                study.repeats,
                study.device,
                device=study.device,
                timeout=study.timeout,
            )
        except RunFailedError as error:
            print(f"failed: {error}; the same command tries again", flush=True)
            return 1
        _save(study, [[of_rank[k] for of_rank in seen] for k in range(len(study.cases))], hardware)
        write_json(kept, {"question": study.question, "key": key, "overrides": list(flags)})
    paths = draw(study.folder)
    print(f"\n{study.question}\n\n{summary(read_measures(study.folder))}\n")
    if verdicts := study_verdicts(study.folder.name, study.folder.parent):
        print(f"Verdicts of this study alone (make claims prints the ledger)\n{verdicts}\n")
    print(f"tables:  {tables}")
    print("figures: " + "\n         ".join(str(path) for path in paths if path.suffix == ".png"))
    return 0


def status(name: str, flags: Sequence[str]) -> dict[str, Any]:
    """Return the state of every run, in the form of ``study.status.study_status``."""
    study = load(name, flags)
    kept = tables_folder(study.folder) / "study.json"
    done = _is_measured(study)
    runs = [{"variant": case.name, "seed": 0, "state": "done" if done else "to do"} for case in study.cases]
    counts = {"done": len(runs) * done, "running": 0, "failed": 0, "to do": len(runs) * (not done)}
    other = int(kept.is_file() and not done)
    return {"study": study.name, "counts": counts, "runs": runs, "others": other, "others_running": []}


def _is_measured(study: GroupParallel) -> bool:
    """Tell if this was measured here and its table is whole; damage is reported."""
    kept = tables_folder(study.folder) / "study.json"
    try:
        if not kept.is_file() or read_about(kept, []).get("key") != _key(study):
            return False
        read_measures(study.folder)
    except DamagedTableError as error:
        print(f"warning: {error.damage}; it is to be measured again", file=sys.stderr, flush=True)
        return False
    return True


def _key(study: GroupParallel) -> str:
    """Return the hash of what decides the outcome."""
    cases = list(map(asdict, study.cases))
    hardware = device_name(torch.device(study.device))
    return config_hash({"version": VERSION, "repeats": study.repeats, "device": hardware, "cases": cases})


def flags_help(name: str) -> str:
    """Return every flag of the study, with its type and meaning."""
    return _parser(read_yaml(locate_study(name)[1])["model"]["name"]).format_help()


def draw(folder: Path) -> list[Path]:
    """Draw the figure from the saved table.

    Raises:
        UsageError: the study has no tables yet.
    """
    if not (tables_folder(folder) / "measures.csv").is_file():
        raise UsageError(f"{tables_folder(folder)} has no measures.csv: {typed('run', folder.name)} first")
    return figure.draw(read_measures(folder), folder / "figures")


def write_record(folder: Path, home: Path) -> list[Path]:
    """Copy tables, figure and summary to ``results/`` in ``home``; returns the files written.

    Raises:
        UsageError: the study has no tables yet.
    """
    figures = draw(folder)
    tables = tables_folder(folder)
    contents = {path.name: path.read_bytes() for path in (*sorted(tables.iterdir()), *figures)}
    contents["summary.txt"] = f"{summary(read_measures(folder))}\n".encode()
    record = home / "results" / folder.name
    for name, content in contents.items():
        write_atomic(record / name, lambda file, content=content: file.write(content))
    return [record / name for name in contents]


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
        _check(case, where)
        cases.append(case)
    device = device_for(settled["device"], max(case.devices for case in cases))
    folder = Path(settled["runs_root"]).expanduser() / name
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
    parser = _parser(merged["model"]["name"])
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


def _parser(model: str) -> ArgumentParser:
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


def _save(study: GroupParallel, seen: list[list[StepCost | None]], hardware: str) -> None:
    """Write the tables of what the devices saw, case by case."""
    tables, notes, runs = [], [], []
    for case, of_ranks in zip(study.cases, seen, strict=True):
        items = list(_items(case, [measured for measured in of_ranks if measured is not None]))
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        if study.device == "cpu" and case.devices > cores:
            items.append(
                Note("step_time", f"{case.devices} processes share {cores} cores: longer than with a core each")
            )
        gathered = gather(items, study.name, case.name, None)
        tables.append(gathered.table)
        notes.append(gathered.notes)
        model = f"{case.model['name']}, noise of {case.input_size} pixels"
        record = {"variant": case.name, "status": "done", "dataset": model, "precision": "float32"}
        runs.append({**record, **provenance(hardware)})
        write_json(study.folder / case.name / "result.json", {**runs[-1], **asdict(case)})
    folder = tables_folder(study.folder)
    save_table(folder / "measures.csv", pd.concat(tables, ignore_index=True))
    save_table(folder / "notes.csv", pd.concat(notes, ignore_index=True))
    save_table(folder / "runs.csv", pd.DataFrame(runs))


def _items(case: Case, of_ranks: list[StepCost]) -> Iterator[Item]:
    """Yield the values of one case, and notes on them."""
    with torch.device("meta"):
        model = case.build()
    placement = case.plan(model).placement
    yield Value("devices", case.devices, "devices")
    memory = [measured.memory for measured in of_ranks]
    yield Value("memory_per_device", max(memory), "bytes")
    yield Value("memory_balance", max(memory) * len(memory) / sum(memory), "of the mean")
    yield Value("parameters_per_device", max(m.parameters for m in of_ranks), "parameters")
    yield Value("images_per_device", case.batch_size / (case.devices if case.way == "data" else 1), "images")
    for rank, measured in enumerate(of_ranks):
        yield Value(f"memory_of_device_{rank + 1}", measured.memory, "bytes")
    yield Value("imbalance", placement.imbalance, "of equal shares")
    for rank, macs in enumerate(placement.macs if case.way == "groups" else ()):
        yield Value(f"macs_of_device_{rank + 1}", macs, "MACs")
    for null, name in (("", "sent"), ("formula", "planned")):
        per_layer = [getattr(m, name) for m in of_ranks]
        yield Value("sent", sum(sum(sent.values()) for sent in per_layer), "bytes per step", null=null)
        for layer in per_layer[0]:
            yield Value("sent", sum(sent[layer] for sent in per_layer), "bytes per step", layer, null)
    total = sum(sum(m.sent.values()) for m in of_ranks)
    if case.way == "groups" and total:
        yield Value("sent_into_grouped", sum(m.into_grouped for m in of_ranks) / total, "share of bytes")
    elif case.devices == 1:
        yield Note("sent_into_grouped", "one device sends nothing")
    for null in of_ranks[0].difference:
        outputs, gradients = zip(*(m.difference[null] for m in of_ranks), strict=True)
        yield Value("output_difference", max(outputs), "of the largest output", null=null)
        yield Value("gradient_difference", max(gradients), "of the largest of a layer", null=null)
    slowest = max((m.time for m in of_ranks if m.time is not None), key=lambda time: time.median)
    for end, seconds in (("", slowest.median), ("_lower", slowest.lower), ("_upper", slowest.upper)):
        yield Value(f"step_time{end}", seconds, "s")


def summary(table: pd.DataFrame) -> str:
    """Return the study in plain text, one line per variant."""
    head = f"{'variant':<14}{'devices':>8}{'memory':>12}{'sent':>14}{'by formula':>14}{'into grouped':>14}"
    lines = [
        "A step of SGD: memory of the fullest device, bytes sent by all, and how far gradients are from those of the",
        "network on one device, relative to the largest of a layer: in fp32, in fp64, and by fp32 alone on one device",
        f"{head}{'s/step':>9}{'imbalance':>11}{'fp32':>8}{'fp64':>8}{'alone':>8}",
    ]
    measured = table[table["layer"] == ""]
    for variant in dict.fromkeys(table["variant"]):
        of = {
            (row["measure"], row["null"]): row["value"]
            for _, row in measured[measured["variant"] == variant].iterrows()
        }

        def cell(measure: str, form: str, null: str = "", of: dict = of) -> str:
            value = of.get((measure, null))
            return "-" if value is None else format(value, form)

        lines.append(
            f"{variant:<14}{cell('devices', '.0f'):>8}{of['memory_per_device', ''] / 1e6:>9.1f} MB"
            f"{cell('sent', ',.0f'):>14}{cell('sent', ',.0f', 'formula'):>14}{cell('sent_into_grouped', '.0%'):>14}"
            f"{cell('step_time', '.3f'):>9}{cell('imbalance', '.2f'):>11}"
            + "".join(f"{cell('gradient_difference', '.0e', null):>8}" for null in ("", "float64", "rounding"))
        )
    return "\n".join(lines)
