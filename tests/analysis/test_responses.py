import pytest
import torch
from torch import nn

from analysis.responses import ResponseStatistics, collect_responses


@pytest.mark.parametrize("offset", [0.0, 1e4], ids=["centred", "far from zero"])
def test_streamed_covariance_equals_the_two_pass_formula(offset):
    torch.manual_seed(0)
    x = torch.randn(7, 5, 4, 3, dtype=torch.float64) @ torch.randn(3, 3, dtype=torch.float64) + offset
    statistics = ResponseStatistics()
    for part in x.split(3):
        statistics.add(part)
    samples = x.movedim(1, 0).flatten(1)
    assert statistics.count == 7 * 4 * 3
    torch.testing.assert_close(statistics.mean, samples.mean(1))
    torch.testing.assert_close(statistics.covariance, torch.cov(samples), rtol=1e-9, atol=1e-9)


def test_one_pass_gathers_several_layers_in_evaluation_mode():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Dropout(0.9)).train()
    x = torch.randn(6, 3, 5, 5)
    gathered = collect_responses(model, x.split(2), ["0", "2"])
    with torch.no_grad():
        torch.testing.assert_close(gathered["0"].mean, model[0](x).double().mean((0, 2, 3)))
        model.eval()
        torch.testing.assert_close(gathered["2"].mean, model(x).double().mean((0, 2, 3)))
        model.train()
    collect_responses(model, [x], ["0"])
    assert model.training
    assert not model[0]._forward_hooks


def test_an_unknown_layer_is_named_with_those_there_are():
    with pytest.raises(ValueError, match=r"conv9.*there are: 0, 1"):
        collect_responses(nn.Sequential(nn.ReLU(), nn.ReLU()), [], ["conv9"])


def test_nothing_collected_is_said():
    with pytest.raises(ValueError, match="two samples"):
        _ = ResponseStatistics().covariance
