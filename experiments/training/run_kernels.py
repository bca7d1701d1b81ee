"""Kernels of a run: chosen by the table that it began with, not by later measurements, so that it resumes bit for bit.

The table is in the run's folder. It has the times known on this machine for the network when the run began; with
``GCONV_TUNE=1`` that is measured first, once on this machine for each architecture. Seeds trained together share a
table, and each of their folders has it. So it also counts if one of them goes on alone, or with others.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

import gconv
from experiments.store.runs import Run, write_atomic
from experiments.training.process_group import SINGLE_PROCESS, ProcessGroup
from experiments.training.run_context import RunContext, epoch_generator
from experiments.training.wide_network import WideNetwork
from gconv.kernels import table as tables
from gconv.kernels.choose import chosen_by
from gconv.kernels.machine import Machine, this_machine
from gconv.tuning import wanted

FILE = "kernels.csv"
BY_RULE = "by rule"


@contextmanager
def kernels_of(
    runs: Sequence[Run],
    models: Sequence[nn.Module],
    context: RunContext,
    process_group: ProcessGroup = SINGLE_PROCESS,
) -> Iterator[str]:
    """Choose kernels by the table of a run, or of runs trained together, inside the block.

    Args:
        runs: the first that has a table decides; every other folder gets this table.
        models: networks that are computed: the one that is trained; or the wide network, and one of its networks, which
            are evaluated one by one. They are moved to the device.
        context: images, recipe and precision.
        process_group: the processes that train it; all choose by the table of rank 0.

    Yields:
        Name of the table for the run's result: that of the file with its checksum, or ``by rule`` where it is empty.
    """
    text = process_group.broadcast(
        _table_text(runs, models, context, process_group) if process_group.rank == 0 else None
    )
    _, table = tables.parse(text)
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    with chosen_by(table):
        yield f"{FILE}, sha256 {digest}" if table else BY_RULE


def _table_text(
    runs: Sequence[Run], models: Sequence[nn.Module], context: RunContext, process_group: ProcessGroup
) -> str:
    """Return the text of the runs' table; a new one is made if none is valid on this machine."""
    machine = this_machine(context.device)
    kept = [_read(run.folder / FILE, machine) for run in runs]
    text = next((text for text in kept if text is not None), None)
    if text is None:
        text = _new_text(models, context, process_group, machine)
    for run, own in zip(runs, kept, strict=True):
        if own != text:
            write_atomic(run.folder / FILE, lambda file: file.write(text.encode()))
    return text


def _new_text(models: Sequence[nn.Module], context: RunContext, process_group: ProcessGroup, machine: Machine) -> str:
    """Return the text of a table of the times known for some networks; on request they are measured first."""
    if wanted():
        for model in models:
            _tune(model, context, process_group)
    modules = (module for model in models for module in model.modules())
    layers = [module.geometry for module in modules if isinstance(module, gconv.GroupedConv2d)]
    return tables.text_of(machine, tables.near(tables.load(machine), layers))


def _read(path: Path, machine: Machine) -> str | None:
    """Return the text of a table; None if there is none. A table of another machine is reported and not used."""
    try:
        text = path.read_bytes().decode(errors="replace")
        made_on, _ = tables.parse(text)
        if (made_on.family, made_on.threads) == (machine.family, machine.threads):
            return text
        reason = f"was made on {made_on}, and this is {machine}"
    except FileNotFoundError:
        return None
    except tables.TableError as error:
        reason = f"is damaged: {error}"
    print(f"warning: {path} {reason}; kernels are chosen anew", file=sys.stderr, flush=True)
    return None


def _tune(model: nn.Module, context: RunContext, process_group: ProcessGroup) -> None:
    """Measure the kernels for those layers of the network that are not measured on this machine."""
    model.to(context.device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    batch = torch.arange(min(context.recipe.batch_size, len(context.dataset.train.labels)))
    x, _ = context.training_inputs(batch, epoch_generator(0, 0), process_group.share(len(batch)))
    example = ([x] * model.count,) if isinstance(model, WideNetwork) else x
    with context.autocast():
        report = gconv.tune(model, example)
    if report.races or report.left:
        print(report.line, flush=True)
