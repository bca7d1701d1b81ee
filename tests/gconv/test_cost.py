"""Counts against published numbers, against formulas and against torchvision's own record."""

import pytest
import torch
from torch import nn

from experiments.vision import import_torchvision
from gconv import GroupedConv2d
from gconv.cost import count_cost, count_training_macs, measure_latencies, measure_peak_memory


@pytest.mark.parametrize("groups", [1, 2, 4, 8])
def test_a_grouped_convolution_costs_hwnk2m_over_g(groups):
    cost = count_cost(GroupedConv2d(16, 24, 3, padding=1, groups=groups, bias=False), (16, 10, 12))
    assert cost.macs == 10 * 12 * 16 * 9 * 24 // groups
    assert cost.parameters == 16 * 9 * 24 // groups
    assert cost.activations == 24 * 10 * 12


@pytest.mark.parametrize("n", [2, 3, 4, 5])
def test_logarithmic_groups_cost_their_fraction_of_dense_whatever_computes_them(n):
    cost = count_cost(GroupedConv2d(64, 64, 3, padding=1, groups=f"log:{n}"), (64, 8, 8))
    assert cost.macs == pytest.approx(64 * 64 * 64 * 9 * (1 / 3 + 2 / 3 * 4 ** -(n - 1)))


@pytest.mark.parametrize("groups", [1, 2, 8, 16, "log:3", "9,7"], ids=str)
def test_forward_and_backward_are_three_times_forward(groups):
    layer = GroupedConv2d(16, 16, 3, padding=1, groups=groups)
    assert count_training_macs(layer, (16, 8, 8)) == 3 * count_cost(layer, (16, 8, 8)).macs


def test_strided_transposed_and_linear_layers_are_three_times_forward_too():
    model = nn.Sequential(nn.Conv2d(4, 8, 3, 2, 1, groups=2), nn.ConvTranspose2d(8, 8, 2, 2), nn.Flatten())
    model.append(nn.Linear(8 * 64, 5))
    cost = count_cost(model, (4, 8, 8))
    assert cost.macs == 4 * 4 * 8 * 2 * 9 + 4 * 4 * 8 * 8 * 4 + 8 * 64 * 5
    assert count_training_macs(model, (4, 8, 8)) == 3 * cost.macs


@pytest.mark.parametrize(
    "name",
    [
        *("resnext50_32x4d", pytest.param("resnext101_32x8d", marks=pytest.mark.slow), "mobilenet_v2"),
        *("shufflenet_v2_x1_0", "shufflenet_v2_x0_5", "regnet_x_1_6gf"),
    ],
)
def test_torchvision_models_as_torchvision_records_them(name):
    models = import_torchvision().models
    record = models.get_model_weights(name).DEFAULT.meta
    model = models.get_model(name, weights=None)
    cost = count_cost(model, (3, 224, 224))
    assert cost.parameters == record["num_params"]
    assert cost.macs / 1e9 == pytest.approx(record["_ops"], abs=6e-4)
    assert count_training_macs(model, (3, 224, 224)) == 3 * cost.macs


@pytest.mark.parametrize(
    ("name", "macs"), [("resnext50_32x4d", 4.2305e9), ("mobilenet_v2", 0.3008e9), ("shufflenet_v2_x1_0", 0.1449e9)]
)
def test_published_macs(name, macs):
    model = import_torchvision().models.get_model(name, weights=None)
    assert count_cost(model, (3, 224, 224)).macs == pytest.approx(macs, rel=4e-4)


def test_layers_add_up_and_shared_parameters_count_once():
    shared = nn.Conv2d(3, 3, 1, bias=False)
    cost = count_cost(nn.Sequential(shared, nn.BatchNorm2d(3), shared), (3, 4, 4))
    assert [(layer.name, layer.parameters, layer.macs) for layer in cost.layers] == [("0", 9, 288), ("1", 6, 0)]
    assert cost.activations == 2 * 48


def test_counting_leaves_the_model_as_it_was():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Dropout()).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    count_cost(model, (3, 4, 4))
    assert model.training
    assert model[1].training
    assert not model[0]._forward_hooks
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_an_input_that_does_not_fit_is_named():
    with pytest.raises(ValueError, match="3 × 2 × 2"):
        count_cost(nn.Conv2d(3, 4, 5), (3, 2, 2))


def test_latencies_are_measured_in_turn_with_quartiles():
    calls = []
    measured = measure_latencies(
        {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, torch.device("cpu"), repeats=3
    )
    assert calls == ["a", "b"] * 4
    assert 0 <= measured["a"].lower <= measured["a"].median <= measured["a"].upper


def test_peak_memory_of_known_tensors():
    def call():
        first = torch.ones(1000)  # 4,000 bytes
        second = first * 2  # 8,000 at once
        del first
        third = second.view(10, 100)  # a view costs nothing
        del second, third
        torch.ones(500)  # after the peak

    assert measure_peak_memory(call, torch.device("cpu")) == 8000
