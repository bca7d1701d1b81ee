"""Requirements that every architecture meets."""

from pathlib import Path

import pytest
import torch
from torch import nn

from experiments import models
from experiments.errors import UsageError
from experiments.models import MODELS, build_model
from gconv import GroupedConv2d
from gconv.cost import count_cost


def test_a_misspelt_model_is_one_clear_line():
    with pytest.raises(UsageError, match=r"did you mean alexnet.*small"):
        build_model("alxnet")


def test_every_file_of_a_model_is_known_by_name():
    files = {path.stem for path in Path(models.__file__).parent.glob("*.py")}
    assert files - {"__init__", "blocks", "budget", "named"} == set(MODELS)


@pytest.mark.parametrize("name", MODELS)
def test_every_model_takes_the_images_of_its_paper_and_the_classes_asked_for(name):
    with torch.device("meta"):
        model = build_model(name, classes=7)
    cost = count_cost(model, (3, MODELS[name], MODELS[name]))
    assert cost.layers[-1].parameters == 7 * (cost.layers[-1].parameters // 7)
    assert cost.macs > 0


@pytest.mark.parametrize("name", sorted(set(MODELS) - {"alexnet", "small", "widen"}))
def test_weights_begin_with_the_variance_of_he(name):
    torch.manual_seed(0)
    model = build_model(name, classes=10)
    for layer in model.modules():
        if isinstance(layer, GroupedConv2d) and layer.weight.numel() > 5000:
            fan_ins = [size * layer.kernel_size[0] * layer.kernel_size[1] for size in layer.geometry.in_groups.sizes]
            for weight, fan_in in zip(layer.group_weights(), fan_ins, strict=True):
                if weight.numel() > 2000:
                    assert weight.var().item() == pytest.approx(2 / fan_in, rel=0.2)
        if isinstance(layer, nn.Conv2d | GroupedConv2d) and layer.bias is not None:
            assert not layer.bias.any()
