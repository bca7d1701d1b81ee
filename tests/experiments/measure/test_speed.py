"""Timing on a machine where other work runs."""

import pytest
import torch

from experiments.measure import speed
from gconv.cost import Latency

QUIET, LOUD, LOUDER = Latency(1.0, 0.95, 1.05), Latency(1.0, 0.5, 1.5), Latency(1.0, 0.5, 9.0)


@pytest.mark.parametrize(
    ("measured", "taken", "times"),
    [
        ([QUIET], QUIET, 1),
        ([LOUD, QUIET], QUIET, 2),
        ([LOUDER, LOUD, LOUDER, LOUDER], LOUD, 4),
    ],
    ids=["quiet at once", "quiet when repeated", "disturbed throughout: the least"],
)
def test_a_disturbed_measurement_is_repeated(monkeypatch, measured, taken, times):
    made = []

    def measure(calls, device, repeats):
        made.append(repeats)
        return {"net": measured[len(made) - 1]}

    monkeypatch.setattr(speed, "measure_latencies", measure)
    monkeypatch.setattr(speed, "WAIT_S", 0.0)
    assert speed._quietest({"net": lambda: None}, torch.device("cpu")) == {"net": taken}
    assert len(made) == times
