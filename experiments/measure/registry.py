"""All measures of a network, and their application to one: a measure is registered here."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from experiments.measure.between_layers import measure_between_layers
from experiments.measure.context import Measure, MeasureContext, prepare
from experiments.measure.first_layer import measure_first_layer
from experiments.measure.groups import measure_groups
from experiments.measure.lesions import measure_lesions
from experiments.measure.options import MeasureOptions
from experiments.measure.outcome import measure_cost, training_outcome
from experiments.measure.probes import measure_probes
from experiments.measure.table import Item, Measured, gather
from experiments.store.runs import Run
from experiments.training.run_context import RunContext

MEASURES: tuple[Measure, ...] = (
    measure_cost,
    measure_groups,
    measure_first_layer,
    measure_between_layers,
    measure_probes,
    measure_lesions,
)


def measure_network(context: MeasureContext) -> Iterator[Item]:
    """Yield the values, notes and arrays of all measures, in the order of ``MEASURES``."""
    for measure in MEASURES:
        yield from measure(context)


def measure_run(
    study: str, run: Run, network: nn.Module, untrained: nn.Module, run_context: RunContext, options: MeasureOptions
) -> Measured:
    """Measure one finished run of a study.

    Args:
        study: its name, for the rows.
        run: finished.
        network, untrained: the trained network of the run, and the same at its initialisation; moved in place.
        run_context: images, views and device.
        options: numbers of images and draws.
    """
    assert run.result is not None
    outcome = list(training_outcome(run.result, network, run_context.with_labels(run.seed)))
    context = prepare(network, untrained, run_context, options)
    return gather([*outcome, *measure_network(context)], study, run.variant, run.seed, context.groups)
