"""The shallow logarithmic network against plain torch, and comparisons at equal cost."""

import pytest
import torch
from plain_torch import assert_same_function, cb, cbr
from torch import nn

from experiments.models import build_model
from gconv.cost import count_cost
from refusals import assert_refused


class Plain(nn.Module):
    def __init__(self, classes, width, groups, shortcut):
        super().__init__()
        self.stem, self.shortcut = cbr(3, width, 5), shortcut
        self.parts = nn.ModuleList()
        for c in (width, 2 * width, 4 * width):
            self.parts += [cb(c, c, 3, groups=groups)] + ([cbr(c, 2 * c, 1)] if c < 4 * width else [])
        self.classify = nn.Linear(4 * width, classes)

    def forward(self, x):
        x = nn.functional.max_pool2d(self.stem(x), 2)
        for number, part in enumerate(self.parts):
            if number % 2:
                x = nn.functional.max_pool2d(part(x), 2)
            else:
                x = torch.relu(part(x) + x) if self.shortcut else torch.relu(part(x))
        return self.classify(x.mean((2, 3)))


@pytest.mark.parametrize("shortcut", [True, False], ids=["shortcut", "plain"])
@pytest.mark.parametrize(
    ("groups", "parts"),
    [(1, 1), (4, 4), ("log:3", (2, 1, 1)), ("log:5", (8, 4, 2, 1, 1)), ("3:1", (3, 1)), ("~log:2", 2)],
    ids=str,
)
def test_lognet_equals_plain_torch(groups, parts, shortcut):
    torch.manual_seed(0)
    model = build_model("lognet", classes=5, groups=groups, shortcut=shortcut, width=16)
    assert_same_function(model, Plain(5, 16, parts, shortcut), torch.randn(3, 3, 17, 20))


def test_two_logarithmic_groups_are_two_uniform_ones():
    costs = [count_cost(build_model("lognet", groups=g), (3, 32, 32)) for g in ("log:2", 2)]
    assert costs[0] == costs[1]


@pytest.mark.parametrize("n", [2, 3, 4, 5])
def test_grouped_stages_cost_the_fraction_of_dense_that_the_formula_says(n):
    def grouped(groups):
        layers = count_cost(build_model("lognet", groups=groups), (3, 32, 32)).layers
        return sum(layer.macs for layer in layers if layer.name.endswith("conv"))

    assert grouped(f"log:{n}") == pytest.approx(grouped(1) * (1 / 3 + 2 / 3 * 4 ** -(n - 1)))
    assert grouped(1) == 3 * 9 * 64**2 * 16**2, "each stage has twice the width at half the resolution"


@pytest.mark.parametrize("spent", ["parameters", "macs"])
@pytest.mark.parametrize("groups", ["~3", "~log:5"])
def test_equal_cost_is_within_three_per_cent_of_the_reference(groups, spent):
    reference = count_cost(build_model("lognet", groups=4, width=40), (3, 24, 24))
    model = build_model("lognet", 24, groups=groups, width=40, equal=spent, equal_to=4)
    assert getattr(count_cost(model, (3, 24, 24)), spent) == pytest.approx(getattr(reference, spent), rel=0.03)


def test_the_reference_itself_keeps_its_width():
    model = build_model("lognet", groups="log:4", width=40, equal="macs", equal_to="log:4")
    assert model.stage1.conv.in_channels == 40


def test_a_budget_is_spent_by_the_nearest_width():
    def parameters(width):
        return count_cost(build_model("lognet", width=width, groups=2), (3, 32, 32)).parameters

    wanted = parameters(50)
    for budget, width in ((wanted, 50), (wanted + 100, 50), (parameters(52) - 100, 52)):
        model = build_model("lognet", groups=2, equal="parameters", budget=budget)
        assert model.stage1.conv.in_channels == width


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"groups": "log:5", "equal": "parameters", "width": 30}, ["width 48 costs", "width 64 costs", "~log:4"]),
        ({"equal": "macs", "budget": 10}, ["10 macs", "width 8 costs"]),
        ({"groups": "~log:4", "equal": "macs", "budget": 10**13}, ["10,000,000,000,000", "width 2048 costs"]),
        ({"groups": "32,32", "equal": "macs"}, ["32:32"]),
        ({"groups": 3, "equal_to": "log:9", "equal": "macs"}, ["log:9"]),
        ({"budget": 1000}, ["budget=1000", "equal=parameters"]),
        ({"groups": 3}, ["64 channels", "3 equal groups"]),
    ],
    ids=str,
)
def test_what_cannot_be_met_says_what_is_nearest(arguments, words):
    assert_refused("lognet", arguments, words)
