"""Regrouping keeps the state of layers, or they stay dense and the reason says what helps."""

import weakref
from collections import deque
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from experiments.vision import import_torchvision
from gconv import GroupedConv2d
from gconv.cost import count_cost
from gconv.regroup import regroup


def net(**kinds):
    return nn.Sequential(nn.Conv2d(8, 8, 3, **kinds), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, **kinds))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize(("groups", "keep"), [(4, "slice"), ("log:3", "energy")])
def test_every_dtype_is_cut_and_kept(dtype, groups, keep):
    cut = regroup(net(dtype=dtype), groups, where=["0"], keep=keep)
    assert {p.dtype for p in cut.model[0].parameters()} == {dtype}
    assert cut.changed[0].kept == pytest.approx(regroup(cut.original.float(), groups, "0", keep).changed[0].kept)


@pytest.mark.parametrize("kernel_size", [1, 3])
@pytest.mark.parametrize("keep", ["slice", "energy"])
def test_the_layout_of_weights_stays(kernel_size, keep):
    for layout in (torch.channels_last, torch.contiguous_format):
        conv = nn.Conv2d(8, 8, kernel_size).to(memory_format=layout)
        model = regroup(conv, 4, keep=keep).model
        (weight,) = (m.weight for m in model.modules() if isinstance(m, GroupedConv2d))
        assert weight.is_contiguous(memory_format=layout)


def test_marks_on_layers_and_parameters_stay_in_cut_and_uncut_layers():
    model = net()
    model[0].rate, model[0].weight.lr_scale, model[0].bias.no_decay = 0.1, 0.5, True
    model[1].weight.lr_scale, model[2].weight.requires_grad = 3, False
    cut = regroup(model, "log:3", where="0,2").model
    assert (cut[0].rate, cut[0].weight.lr_scale, cut[0].bias.no_decay, cut[1].weight.lr_scale) == (0.1, 0.5, True, 3)
    assert (cut[2].weight.requires_grad, cut[2].bias.requires_grad) == (False, True)


def test_gradient_hooks_of_layers_that_are_not_cut_stay():
    model, seen = net(), []
    model[1].weight.register_hook(lambda gradient: gradient * 0)
    model[1].bias.register_post_accumulate_grad_hook(seen.append)
    cut = regroup(model, 4).model
    cut(torch.randn(2, 8, 6, 6)).square().sum().backward()
    assert not cut[1].weight.grad.any() and cut[0].weight.grad.any()
    assert len(seen) == 1 and seen[0] is cut[1].bias


def test_initialisers_are_refused_on_unequal_groups_as_on_a_new_layer():
    model = regroup(net(), "log:3").model
    with pytest.raises(ValueError, match=r"layer\.initialise"):
        nn.init.kaiming_normal_(model[0].weight)
    nn.init.kaiming_normal_(regroup(net(), 4).model[0].weight)


def changed(change, part="0"):
    """Return names of cut layers, and why the first is not cut, after a change to it."""
    model = net()
    change(model[0])
    cut = regroup(model, 4)
    assert type(cut.model.get_submodule(part)) is type(model.get_submodule(part))
    return [layer.name for layer in cut.changed], cut.skipped["0"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: prune.l1_unstructured(c, "weight", 0.5), ["pruned", "prune.remove(layer, 'weight')"]),
        (lambda c: prune.random_unstructured(c, "bias", 2), ["pruned", "prune.remove(layer, 'bias')"]),
        (torch.nn.utils.weight_norm, ["weight norm", "remove_weight_norm(layer)"]),
        (torch.nn.utils.spectral_norm, ["spectral norm", "remove_spectral_norm(layer)"]),
        (parametrizations.weight_norm, ["parametrised", "remove_parametrizations(layer, 'weight')"]),
        (parametrizations.spectral_norm, ["parametrised", "remove_parametrizations(layer, 'weight')"]),
        (lambda c: c.register_forward_hook(lambda *_: None), ["hooks"]),
        (lambda c: c.register_full_backward_hook(lambda *_: None), ["hooks"]),
        (lambda c: c.register_state_dict_post_hook(lambda *_: None), ["hooks"]),
        (lambda c: c.weight.register_hook(lambda gradient: None), ["its weight has gradient hooks"]),
        (lambda c: c.bias.register_post_accumulate_grad_hook(lambda p: None), ["its bias has gradient hooks"]),
        (lambda c: c.register_buffer("mask", torch.ones(8)), ["it holds mask"]),
        (lambda c: setattr(c.weight, "mask", torch.ones(8, 8, 3, 3)), ["its weight carries the tensor 'mask'"]),
        (lambda c: setattr(c, "forward", partial(F.conv2d, weight=c.weight)), ["its forward was replaced"]),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_layer_that_would_lose_state_stays_dense_and_the_reason_says_what_helps(change, words):
    names, reason = changed(change)
    assert names == ["2"]
    assert all(word in reason for word in words)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_the_calls_that_the_reasons_name_help():
    for put, take in (
        (lambda c: prune.l1_unstructured(c, "weight", 0.5), lambda c: prune.remove(c, "weight")),
        (torch.nn.utils.weight_norm, torch.nn.utils.remove_weight_norm),
        (torch.nn.utils.spectral_norm, torch.nn.utils.remove_spectral_norm),
        (parametrizations.weight_norm, lambda c: parametrize.remove_parametrizations(c, "weight")),
    ):
        model = net()
        put(model[0])
        model(torch.randn(2, 8, 6, 6)).sum().backward()
        take(model[0])
        assert [layer.name for layer in regroup(model, 4).changed] == ["0", "2"]


class Held:
    def __init__(self, layer):
        self.layer = layer


HOLDERS = {
    "list": lambda c: [c],
    "dict of lists": lambda c: {"steps": [(1, c)]},
    "set": lambda c: {c},
    "deque": lambda c: deque([c]),
    "closure": lambda c: lambda x: c(x),
    "default": lambda c: lambda x, layer=c: layer(x),
    "partial": lambda c: partial(F.conv2d, weight=c),
    "method": lambda c: c.forward,
    "weak reference": weakref.ref,
    "modules that are not registered": lambda c: [nn.Sequential(c)],
    "object": Held,
}


class Model(nn.Module):
    def __init__(self, holder):
        super().__init__()
        self.conv, self.other = nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3)
        self.steps = HOLDERS[holder](self.conv)

    def forward(self, x):
        return self.other(self.conv(x))


@pytest.mark.parametrize("holder", HOLDERS)
def test_layers_that_are_held_outside_of_modules_too_stay_dense(holder):
    cut = regroup(Model(holder), 4)
    assert [layer.name for layer in cut.changed] == ["other"]
    assert "Model.steps" in cut.skipped["conv"] and "nn.ModuleList" in cut.skipped["conv"]
    assert type(cut.model.conv) is nn.Conv2d


def test_layers_that_a_forward_pass_finds_around_it_stay_dense():
    outer = nn.Conv2d(8, 8, 3)

    class Around(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.other = outer, nn.Conv2d(8, 8, 3)

        def forward(self, x):
            return outer(self.other(x))

    cut = regroup(Around(), 4)
    assert list(cut.skipped) == ["conv"] and "Around.forward" in cut.skipped["conv"]


def test_lists_of_blocks_and_of_other_things_hold_nothing_back():
    model = nn.Sequential(net(), nn.ReLU())
    model.blocks, model.names, model.recorded = [model[0]], {"a": [1, "b"]}, torch.ones(3)
    cut = regroup(model, 4)
    assert [layer.name for layer in cut.changed] == ["0.0", "0.2"]
    assert cut.model.blocks[0] is cut.model[0]


def test_tensors_kept_by_forward_are_copied_without_autograd_history():
    model = net()
    model.last = {"output": model(torch.randn(1, 8, 6, 6))}
    cut = regroup(model, 4).model
    assert torch.equal(cut.last["output"], model.last["output"]) and cut.last["output"] is not model.last["output"]


def parts_compiled():
    model = net()
    model[0] = torch.compile(model[0])  # type: ignore[assignment]
    model[2].compile()
    return model


@pytest.mark.parametrize(
    ("model", "names"),
    [
        (lambda: torch.compile(net()), ["0", "2"]),
        (parts_compiled, ["0", "2"]),
        (lambda: nn.DataParallel(net()), ["0", "2"]),
        (lambda: nn.Sequential(nn.DataParallel(net())), ["0.module.0", "0.module.2"]),
    ],
    ids=["compiled", "parts compiled", "parallel", "part parallel"],
)
def test_wrapped_models_are_cut_inside(model, names):
    torch.manual_seed(0)
    dense = model()
    cut = regroup(dense, 4)
    assert [layer.name for layer in cut.changed] == names
    x = torch.randn(1, 8, 6, 6)
    for layer in (cut.model.get_submodule(name) for name in names):
        nn.init.zeros_(layer.weight)  # the object that holds the dense layer would not see the new one
        nn.init.ones_(layer.bias)
    torch.testing.assert_close(cut.model.eval()(x), torch.ones(1, 8, 2, 2))
    assert count_cost(cut.model, (8, 6, 6)).macs == (16 + 4) * 64 * 9 // 4


def test_a_feature_extractor_of_a_model_is_cut():
    vision = import_torchvision()
    from torchvision.models.feature_extraction import create_feature_extractor

    extractor = create_feature_extractor(vision.models.resnet18(weights=None), ["layer1"]).eval()
    cut = regroup(extractor, 4, where="layer1.*")
    assert len(cut.changed) == 4
    before, after = cut.costs((3, 32, 32))
    assert before.macs - after.macs == 4 * 64 * 64 * 9 * 8 * 8 * 3 // 4
    assert cut.model(torch.zeros(1, 3, 32, 32))["layer1"].shape == (1, 64, 8, 8)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ((4, net()), TypeError, "takes a torch.nn.Module first, not 4"),
        ((nn.Conv2d, 4), TypeError, r"give Conv2d\("),
        ((net(), 4, 3), TypeError, "where=3: must be names such as"),
        ((net(), 4, ["0", 2]), TypeError, "must be names such as"),
        ((net(), 4, ["0", "stem"]), ValueError, "where='stem' matches no convolution; there are: 0, 2"),
        ((torch.jit.script(net()), 4), ValueError, "call regroup before torch.jit.script"),
    ],
    ids=["swapped", "class", "number", "mixed", "unknown", "scripted"],
)
def test_wrong_arguments_are_one_line(arguments, error, words):
    with pytest.raises(error, match=words) as caught:
        regroup(*arguments)
    assert "\n" not in str(caught.value)


def test_a_model_that_cannot_be_copied_raises_one_line():
    model = net()
    model.made = (number for number in range(3))
    with pytest.raises(ValueError, match=r"Sequential cannot be copied: .*generator"):
        regroup(model, 4)


def test_the_printed_result_is_a_short_table():
    model = nn.Sequential(*(net() for _ in range(30)), nn.Conv2d(8, 3, 1))
    lines = str(regroup(model, 4)).splitlines()
    assert len(lines) <= 30 and max(map(len, lines)) < 200
    assert lines[0].split() == ["layer", "groups", "weight", "energy", "kept"]
    assert lines[1].split()[:2] == ["0.0", "4"] and lines[1].endswith("%")
    assert "… 43 more" in lines
    assert lines[-2] == "60 of 61 convolutions regrouped"
    assert lines[-1].startswith("not regrouped, 3 channels cannot be cut into 4 equal groups") and lines[-1].endswith(
        ": 30"
    )
