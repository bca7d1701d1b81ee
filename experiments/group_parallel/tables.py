"""From the measured steps to the long table, and to the study in plain text."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict

import pandas as pd
import torch

from experiments.group_parallel.config import GroupParallel
from experiments.group_parallel.one_step import Case, StepCost, measure_rank
from experiments.measure.table import Item, Note, Value, gather, save_table
from experiments.report.summary import tables_folder
from experiments.store.runs import config_hash, provenance, write_json
from experiments.training.ranks import run_on_ranks
from experiments.training.run_context import usable_cores

VERSION = 1  # raise when what is measured changes


def measurement_key(study: GroupParallel, hardware: str) -> str:
    """Return the hash of what decides the outcome."""
    cases = list(map(asdict, study.cases))
    return config_hash({"version": VERSION, "repeats": study.repeats, "device": hardware, "cases": cases})


def measure(study: GroupParallel) -> dict[str, list[Item]]:
    """Measure every case on as many processes as it has devices; returns values and notes by case.

    Raises:
        RunFailedError: a process failed.
    """
    seen = run_on_ranks(
        measure_rank,
        max(case.devices for case in study.cases),
        list(study.cases),
        study.repeats,
        study.device,
        device=study.device,
        timeout=study.timeout,
    )
    return {
        case.name: list(case_items(case, [of_rank[k] for of_rank in seen if of_rank[k] is not None]))
        for k, case in enumerate(study.cases)
    }


def save(study: GroupParallel, measured: dict[str, list[Item]], hardware: str) -> None:
    """Write the tables of the measurements, case by case."""
    tables, notes, runs = [], [], []
    for case in study.cases:
        notes_on_cores = cores_notes(case, usable_cores()) if study.device == "cpu" else []
        gathered = gather([*measured[case.name], *notes_on_cores], study.name, case.name, None)
        tables.append(gathered.table)
        notes.append(gathered.notes)
        runs.append({**run_record(case), **provenance(hardware)})
        write_json(study.folder / case.name / "result.json", {**runs[-1], **asdict(case)})
    folder = tables_folder(study.folder)
    save_table(folder / "measures.csv", pd.concat(tables, ignore_index=True))
    save_table(folder / "notes.csv", pd.concat(notes, ignore_index=True))
    save_table(folder / "runs.csv", pd.DataFrame(runs))


def cores_notes(case: Case, cores: int) -> list[Note]:
    """Return a note if the processes of a case are more than the cores of the CPU that they share."""
    text = f"{case.devices} processes share {cores} cores: longer than with a core each"
    return [Note("step_time", text)] if case.devices > cores else []


def run_record(case: Case) -> dict[str, str]:
    """Return the row of a case in ``runs.csv``, without provenance."""
    model = f"{case.model['name']}, noise of {case.input_size} pixels"
    return {"variant": case.name, "status": "done", "dataset": model, "precision": "float32"}


def _counted_values(case: Case) -> Iterator[Value]:
    """Yield the values of one case that follow from the network and its placement, and need no device."""
    with torch.device("meta"):
        model = case.build()
    plan = case.plan(model)
    yield Value("devices", case.devices, "devices")
    yield Value("images_per_device", case.batch_size / (case.devices if case.way == "data" else 1), "images")
    yield Value("imbalance", plan.placement.imbalance, "of equal shares")
    for rank, macs in enumerate(plan.placement.macs if case.way == "groups" else ()):
        yield Value(f"macs_of_device_{rank + 1}", macs, "MACs")
    learned = sum(p.numel() for p in model.parameters())
    yield from _sent([case.bytes_by_formula(plan, rank, learned) for rank in range(case.devices)], "formula")


def case_items(case: Case, of_ranks: list[StepCost]) -> Iterator[Item]:
    """Yield the values of one case, and notes on them."""
    yield from _counted_values(case)
    memory = [measured.memory for measured in of_ranks]
    yield Value("memory_per_device", max(memory), "bytes")
    yield Value("memory_balance", max(memory) * len(memory) / sum(memory), "of the mean")
    yield Value("parameters_per_device", max(m.parameters for m in of_ranks), "parameters")
    for rank, measured in enumerate(of_ranks):
        yield Value(f"memory_of_device_{rank + 1}", measured.memory, "bytes")
    yield from _sent([measured.sent for measured in of_ranks])
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


def _sent(of_ranks: list[dict[str, float]], null: str = "") -> Iterator[Value]:
    """Yield the bytes that all ranks send, in all and by the layer that reads them."""
    yield Value("sent", sum(sum(sent.values()) for sent in of_ranks), "bytes per step", null=null)
    for layer in of_ranks[0]:
        yield Value("sent", sum(sent[layer] for sent in of_ranks), "bytes per step", layer, null)


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

        def cell(measure: str, form: str, null: str = "", unit: float = 1, of: dict = of) -> str:
            value = of.get((measure, null))
            return "-" if value is None else format(value / unit, form)

        lines.append(
            f"{variant:<14}{cell('devices', '.0f'):>8}{cell('memory_per_device', '.1f', unit=1e6):>9} MB"
            f"{cell('sent', ',.0f'):>14}{cell('sent', ',.0f', 'formula'):>14}{cell('sent_into_grouped', '.0%'):>14}"
            f"{cell('step_time', '.3f'):>9}{cell('imbalance', '.2f'):>11}"
            + "".join(f"{cell('gradient_difference', '.0e', null):>8}" for null in ("", "float64", "rounding"))
        )
    return "\n".join(lines)
