"""Explanations of layers, Blocks and whole models, for shapes and tensors."""

import pytest
import torch
from torch import nn

from gconv import Block, GroupedConv2d, explain, forced_kernel


def net():
    block = Block(GroupedConv2d(8, 8, 3, padding=1, groups=4), nn.BatchNorm2d(8), nn.ReLU())
    block.unused = nn.ModuleDict({"head": GroupedConv2d(8, 8, 1, groups=2)})
    block.forward = lambda x: nn.Sequential(*list(block)[:3])(x)
    return nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), block, GroupedConv2d(8, 16, 3, stride=2, groups="log:3"))


def test_a_tensor_is_explained_as_its_shape_and_layout():
    layer = GroupedConv2d(8, 8, 3, groups="log:3")
    for layout, last in ((torch.channels_last, True), (torch.contiguous_format, False)):
        x = torch.randn(5, 8, 32, 32).contiguous(memory_format=layout)
        assert explain(layer, x) == explain(layer, (5, 8, 32, 32), channels_last=last)
        assert len(str(explain(layer, x))) < 2000
    assert (
        explain(layer, (8, 32, 32)) == explain(layer, (1, 8, 32, 32)) == explain(layer, torch.randn(8, 32, 32).half())
    )


def test_padding_that_the_layer_does_beforehand_counts():
    layer = GroupedConv2d(4, 4, 3, padding="same", groups=2, padding_mode="reflect")
    assert explain(layer, (4, 5, 6)).ops[0].macs == 5 * 6 * 2 * 2 * 2 * 9


@pytest.mark.parametrize("wrap", [lambda m: m, torch.compile, nn.DataParallel], ids=["plain", "compiled", "parallel"])
def test_a_model_is_a_table_of_the_layers_that_it_calls(wrap):
    model = net()
    explanation = explain(wrap(model), torch.zeros(4, 3, 17, 19))
    # (17 - 3) // 2 + 1 = 8 and (19 - 3) // 2 + 1 = 9, which padding 1 keeps.
    assert {name: e.input_shape for name, e in explanation.layers.items()} == {"1.0": (4, 8, 8, 9), "2": (4, 8, 8, 9)}
    assert [e.share for e in explanation.layers.values()] == [1 / 4, (1 / 4 + 2 / 16)]
    assert explanation.layers["2"] == explain(model[2], (4, 8, 8, 9), channels_last=False)
    assert explanation.others == 1
    lines = str(explanation).splitlines()
    assert [line.split()[:3] for line in lines[1:3]] == [["1.0", "4", "4×8×8×9"], ["2", "log:3", "4×8×8×9"]]
    assert lines[3] == "1 other convolution: torch's own"
    with forced_kernel("loop"):
        assert lines[0].split()[:3] == ["layer", "groups", "input"]
        assert str(explain(model, (3, 17, 19))).splitlines()[2].split()[3:7] == ["loop"] * 4


def test_a_block_is_a_model():
    assert list(explain(net()[1], (8, 5, 5)).layers) == ["0"]


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ((nn.Conv2d(8, 8, 3), (8, 9, 9)), ValueError, "Conv2d calls no GroupedConv2d.*gconv.regroup"),
        ((GroupedConv2d, (8, 9, 9)), TypeError, r"give GroupedConv2d\("),
        (((8, 9, 9), GroupedConv2d(8, 8, 3)), TypeError, "takes a torch.nn.Module first"),
        ((GroupedConv2d(8, 8, 3), 9), TypeError, "input_shape=9: .*such as"),
        ((GroupedConv2d(8, 8, 3), (9, 9)), ValueError, r"input of shape \(9, 9\)"),
        (
            (GroupedConv2d(8, 8, 3), (4, 9, 9)),
            ValueError,
            r"input of shape \(4, 9, 9\): the layer .* does not take it",
        ),
        ((net(), (4, 9, 9)), ValueError, "Sequential cannot take an input of 4 × 9 × 9"),
    ],
    ids=["no groups", "class", "swapped", "number", "two sizes", "channels", "channels of a model"],
)
def test_wrong_arguments_are_one_line(arguments, error, words):
    with pytest.raises(error, match=words) as caught:
        explain(*arguments)
    assert "\n" not in str(caught.value)
