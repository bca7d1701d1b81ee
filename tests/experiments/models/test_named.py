"""Models that the command line names."""

import sys
from types import SimpleNamespace

import pytest
from torch import nn

from experiments.commands.cost import print_cost
from experiments.errors import UsageError
from experiments.foreign.flags import model_name
from experiments.models.named import full_name


@pytest.fixture
def timm(monkeypatch):
    """A stand-in with one model, called as timm's functions are."""

    def create_model(name, num_classes=1000):
        return nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, num_classes, 1))

    stand_in = SimpleNamespace(list_models=lambda: ["resnetrs50", "tiny_net"], create_model=create_model)
    monkeypatch.setitem(sys.modules, "timm", stand_in)


def test_a_model_of_timm_is_counted_and_regrouped(timm, capsys):
    print_cost("timm:tiny_net", ["--input_size=10", "--regroup=4", "--where=1"])
    out = capsys.readouterr().out
    assert "8,000" in out and "1 of 1 convolutions regrouped" in out
    print_cost("timm:tiny_net", ["--input_size=10"])
    assert f"{64 * (27 * 8 + 8000):,}" in capsys.readouterr().out.splitlines()[-1]
    assert model_name(["--model=timm:tiny_net"]) == "timm:tiny_net"


def test_an_unknown_model_of_timm_names_the_nearest(timm):
    with pytest.raises(UsageError, match="timm has no such model; did you mean timm:tiny_net"):
        full_name("timm:tinynet")


def test_without_timm_a_line_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UsageError, match="timm:resnet50: needs timm, which is not installed here; pip install timm"):
        full_name("timm:resnet50")
