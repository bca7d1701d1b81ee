"""The small network of the quickstart against plain torch."""

import pytest
import torch
from plain_torch import assert_same_function, cbr
from torch import nn

from experiments.errors import UsageError
from experiments.models import build_model
from gconv.cost import count_cost


@pytest.mark.parametrize(
    ("groups", "parts"), [(1, 1), (4, 4), ("log:4", (4, 2, 1, 1)), ("2:1:1", (2, 1, 1)), ("3:1", (3, 1))], ids=str
)
def test_the_small_network_equals_plain_torch(groups, parts):
    plain = nn.Sequential(
        *(cbr(3, 32, 5, 2), nn.MaxPool2d(2), cbr(32, 64, 3, groups=parts), nn.MaxPool2d(2)),
        *(cbr(64, 64, 3, groups=parts), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 5)),
    )
    torch.manual_seed(0)
    assert_same_function(build_model("small", classes=5, groups=groups), plain, torch.randn(3, 3, 16, 20))


@pytest.mark.parametrize("groups", [2, "log:4", "2:1:1"], ids=str)
def test_groups_make_it_cheaper(groups):
    dense, grouped = (count_cost(build_model("small", groups=g), (3, 32, 32)) for g in (1, groups))
    assert grouped.macs < dense.macs


def test_sizes_that_do_not_add_up_are_one_clear_line():
    with pytest.raises(UsageError, match="add up to 32"):
        build_model("small", groups="7,25")
