import pytest
import torch
from torch import nn

from experiments.models import build_model
from experiments.training.recipe import Recipe, make_optimizer


def model():
    torch.manual_seed(0)
    return nn.Sequential(build_model("small", classes=2, groups=2, width=4), nn.Dropout(0.2))


def test_the_rate_rises_to_its_peak_and_falls_and_only_weights_decay():
    recipe = Recipe(lr=0.4, warmup=0.25, weight_decay=0.01)
    optimizer, schedule = make_optimizer(model(), recipe, steps=40)
    rates = []
    for _ in range(40):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if len(rates) < 40:
            schedule.step()
    assert max(rates) == pytest.approx(0.4)
    assert rates.index(max(rates)) in (9, 10)
    assert rates[-1] < 0.001
    decayed, free = optimizer.param_groups
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.01, 0.0)
    assert all(p.dim() > 1 for p in decayed["params"])


def test_uneven_weights_decay_too():
    uneven = build_model("small", groups="log:3")
    optimizer, _ = make_optimizer(uneven, Recipe(), steps=10)
    assert any(p is uneven.conv2.weight for p in optimizer.param_groups[0]["params"])
