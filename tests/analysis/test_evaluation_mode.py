"""Evaluation mode for a while: a model is given back as it was, part by part."""

from contextlib import nullcontext

import pytest
import torch
from torch import nn

from analysis.evaluation_mode import evaluating


def partly_frozen():
    """A network in training with a batch norm in evaluation, and a part in evaluation with dropout in training."""
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4).eval(), nn.Sequential(nn.Dropout(0.9)))
    model[2].eval()
    model[2][0].train()
    return model


@pytest.mark.parametrize("error", [None, RuntimeError])
def test_each_module_has_its_own_mode_again(error):
    model = partly_frozen()
    with pytest.raises(error) if error else nullcontext(), evaluating(model):
        assert not any(module.training for module in model.modules())
        x = torch.ones(1, 3, 2, 2)
        assert torch.equal(model(x), model(x)), "no dropout"
        model[1].train()  # a user may set single parts
        if error:
            raise error
    modes = {name: module.training for name, module in model.named_modules()}
    assert modes == {"": True, "0": True, "1": False, "2": False, "2.0": True}
