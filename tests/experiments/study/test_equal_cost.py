"""Variants that claims compare at equal MACs have equal MACs, as shipped."""

import pytest
import torch

from experiments.models import build_model
from experiments.study.config import load_study
from gconv.cost import count_cost

CASES = [
    ("resnext-cardinality", ("1-group", "2-groups", "4-groups", "8-groups", "32-groups", "log-4")),
    ("resnext-cardinality", ("1-group-no-shortcut", "32-groups-no-shortcut")),
    ("shufflenet-scale", ("g1-0.25", "g8-0.25")),
    ("shufflenet-scale", ("g1-1", "g8-1")),
]


@pytest.mark.parametrize(("study", "names"), CASES, ids=lambda value: str(value)[:40])
def test_variants_compared_at_equal_macs_have_them_within_2_percent(study, names):
    variants = {v.name: v for v in load_study(study).variants}
    macs = {}
    for name in names:
        with torch.device("meta"):
            model = build_model(**variants[name].model, classes=10, input_size=32)
        macs[name] = count_cost(model, (3, 32, 32)).macs
    assert max(macs.values()) <= 1.02 * min(macs.values()), macs
