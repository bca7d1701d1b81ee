"""Kernels of a run: chosen by the table that it began with, not by later measurements, so that it resumes bit for bit.

The table is in the run's folder. It has the times known on this machine for the network when the run began; with
``GCONV_TUNE=1`` that is measured first, once on this machine for each architecture.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

import gconv
from experiments.store.runs import Run, write_atomic
from experiments.training.process_group import SINGLE_PROCESS, ProcessGroup
from experiments.training.run_context import RunContext, epoch_generator
from gconv.kernels import table as tables
from gconv.kernels.choose import chosen_by
from gconv.kernels.machine import Machine, this_machine
from gconv.tuning import wanted

FILE = "kernels.csv"
BY_RULE = "by rule"


@contextmanager
def kernels_of(
    run: Run, model: nn.Module, context: RunContext, process_group: ProcessGroup = SINGLE_PROCESS
) -> Iterator[str]:
    """Choose kernels by the table of a run inside the block.

    Args:
        run: its folder has the table, or gets it.
        model: that is trained; it is moved to the device.
        context: images, recipe and precision.
        process_group: the processes that train it; all choose by the table of rank 0.

    Yields:
        Name of the table for the run's result: that of the file with its checksum, or ``by rule`` where it is empty.
    """
    text = process_group.broadcast(_table_text(run, model, context, process_group) if process_group.rank == 0 else None)
    _, table = tables.parse(text)
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    with chosen_by(table):
        yield f"{FILE}, sha256 {digest}" if table else BY_RULE


def _table_text(run: Run, model: nn.Module, context: RunContext, process_group: ProcessGroup) -> str:
    """Return the text of the run's table; it is written if there is none that is valid on this machine."""
    path, machine = run.folder / FILE, this_machine(context.device)
    if (text := _read(path, machine)) is not None:
        return text
    if wanted():
        _tune(model, context, process_group)
    layers = [module.geometry for module in model.modules() if isinstance(module, gconv.GroupedConv2d)]
    known = tables.near(tables.load(machine), layers)
    text = tables.text_of(machine, known)
    write_atomic(path, lambda file: file.write(text.encode()))
    return text


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
    with context.autocast():
        report = gconv.tune(model, x)
    if report.races or report.left:
        print(report.line, flush=True)
