"""The weight of a layer in common tools for convolutions, against one nn.Conv2d per group."""

import copy
import io
import pickle

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from gconv import GroupedConv2d

UNEQUAL = {"groups": "24,8", "in_groups": "32,4"}


def layer_of(**cut):
    return GroupedConv2d(36, 32, 3, padding=1, **(cut or UNEQUAL))


def convs_of(layer):
    """Return one nn.Conv2d for each group, with the same weights."""
    convs = []
    biases = layer.bias.split(list(layer.geometry.out_groups.sizes))
    for weight, bias in zip(layer.group_weights(), biases, strict=True):
        conv = nn.Conv2d(weight.shape[1], weight.shape[0], 3, padding=1)
        conv.weight.data.copy_(weight)
        conv.bias.data.copy_(bias)
        convs.append(conv)
    return convs


def test_it_is_an_nn_conv2d():
    theirs, ours = nn.Conv2d(8, 8, 3, groups=2), GroupedConv2d(8, 8, 3, groups=2)
    assert isinstance(ours, nn.Conv2d) and isinstance(layer_of(), nn.Conv2d)
    missing = set(vars(theirs)) - set(vars(ours))
    assert not missing
    same = {name for name in vars(theirs) if not name.startswith("_")}
    assert {name: getattr(ours, name) for name in same} == {name: getattr(theirs, name) for name in same}


def test_the_usual_loop_over_convolutions_initialises_equal_groups_as_it_does_nn_conv2d():
    def initialised(kind):
        model = nn.Sequential(kind(64, 64, 3, groups=4))
        torch.manual_seed(1)
        for m in model.modules():
            if isinstance(m, nn.Conv2d):
                nn.init.kaiming_normal_(m.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(m.bias)
        return model.state_dict()

    theirs, ours = initialised(nn.Conv2d), initialised(GroupedConv2d)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize(
    "initialiser",
    [nn.init.kaiming_normal_, nn.init.kaiming_uniform_, nn.init.xavier_normal_, nn.init.orthogonal_],
    ids=lambda f: f.__name__,
)
def test_an_initialiser_of_filters_is_refused_on_unequal_groups_and_right_by_group(initialiser):
    layer = layer_of()
    with pytest.raises(ValueError, match="initialise"):
        initialiser(layer.weight)
    torch.manual_seed(1)
    layer.initialise(initialiser)
    torch.manual_seed(1)
    for weight, shape in zip(layer.group_weights(), [(24, 32, 3, 3), (8, 4, 3, 3)], strict=True):
        assert torch.equal(weight, initialiser(torch.empty(shape)))


def converted(layer, conversion):
    change = getattr(torch.__future__, f"set_{conversion}_module_params_on_conversion")
    try:
        change(True)
        return layer.double()
    finally:
        change(False)


@pytest.mark.parametrize(
    "made",
    [
        lambda: GroupedConv2d(8, 8, 3, groups="5,2,1", device="meta").to_empty(device="cpu"),
        lambda: nn.utils.skip_init(GroupedConv2d, 8, 8, 3, groups="5,2,1"),
        lambda: converted(GroupedConv2d(8, 8, 3, groups="5,2,1"), "overwrite"),
        lambda: converted(GroupedConv2d(8, 8, 3, groups="5,2,1"), "swap"),
        lambda: nn.Sequential(GroupedConv2d(8, 8, 3, groups="5,2,1")).half()[0],
        lambda: copy.deepcopy(GroupedConv2d(8, 8, 3, groups="5,2,1")),
        lambda: pickle.loads(pickle.dumps(GroupedConv2d(8, 8, 3, groups="5,2,1"))),
    ],
    ids=["to_empty", "skip_init", "overwritten", "swapped", "half", "deepcopy", "pickle"],
)
def test_an_initialiser_of_filters_is_refused_on_a_layer_made_in_another_way(made):
    layer = made()
    for initialiser in (nn.init.kaiming_normal_, nn.init.dirac_):
        with pytest.raises(ValueError, match="initialise"):
            initialiser(layer.weight)


def test_a_weight_prints_and_has_sizes_as_any_tensor():
    layer = GroupedConv2d(8, 8, 3, groups="5,2,1")
    plain = nn.Parameter(layer.weight.detach().clone())
    assert repr(layer.weight) == repr(plain)
    assert (layer.weight.size(), layer.weight.size(0), layer.weight.size(dim=-1)) == (plain.shape, 30, 3)
    weight = layer.weight
    weight.data = torch.zeros(0)
    assert weight.size() == weight.shape == (0,)
    weight.data = plain.data
    layer.weight = nn.Parameter(torch.zeros(30, 3, 3))
    assert weight.size() == plain.shape
    del layer
    assert weight.size() == plain.shape


def test_saved_parameters_are_those_of_torch_alone():
    layer = GroupedConv2d(8, 8, 3, groups="5,2,1")
    layer.weight.note = [1]
    file = io.BytesIO()
    torch.save({"average": list(layer.parameters()), "state": layer.state_dict(keep_vars=True)}, file)
    assert b"gconv" not in file.getvalue()
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    assert torch.equal(loaded["average"][0], layer.weight)
    assert torch.equal(loaded["state"]["weight"], layer.weight)
    assert pickle.loads(pickle.dumps(layer.weight)).note == [1]


def test_initialise_finds_the_fan_in_of_each_group():
    layer = GroupedConv2d(1024, 1024, 3, groups="log:3", bias=False)
    layer.initialise(nn.init.kaiming_normal_, nonlinearity="relu")
    for weight, size in zip(layer.group_weights(), (512, 256, 256), strict=True):
        assert weight.std().item() == pytest.approx((2 / (size * 9)) ** 0.5, rel=0.01)
    equal = GroupedConv2d(64, 1024, 3, groups=4)
    equal.initialise(nn.init.kaiming_normal_, nonlinearity="relu")
    assert equal.weight.std().item() == pytest.approx((2 / (16 * 9)) ** 0.5, rel=0.01)


def test_numbers_without_a_fan_in_are_drawn_as_ever():
    layer = layer_of()
    nn.init.normal_(layer.weight, std=0.5)
    assert layer.weight.std().item() == pytest.approx(0.5, rel=0.05)
    nn.init.constant_(layer.weight, 2)
    assert (layer.weight == 2).all()


@pytest.mark.parametrize("cut", [UNEQUAL, {"groups": 2}], ids=["unequal", "equal"])
@pytest.mark.parametrize(
    "parametrisation",
    [parametrizations.weight_norm, parametrizations.spectral_norm, parametrizations.orthogonal],
    ids=lambda f: f.__name__,
)
def test_a_parametrisation_of_each_group_is_that_of_its_own_layer(parametrisation, cut):
    torch.manual_seed(2)
    layer = layer_of(**cut)
    convs = convs_of(layer)
    torch.manual_seed(3)
    layer.parametrise(parametrisation)
    torch.manual_seed(3)
    for conv in convs:
        parametrisation(conv)
    x = torch.randn(2, 36, 5, 5)
    torch.manual_seed(4)
    y = layer(x)
    torch.manual_seed(4)
    expected = torch.cat(
        [conv(part) for conv, part in zip(convs, x.split(list(layer.geometry.in_groups.sizes), 1), strict=True)], 1
    )
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)
    y.square().sum().backward()
    expected.square().sum().backward()
    ours = torch.cat([p.grad.flatten() for p in layer.parametrizations.parameters()])
    theirs = torch.cat([p.grad.flatten() for conv in convs for p in conv.parametrizations.parameters()])
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


def test_weight_norm_by_group_makes_one_norm_for_each_filter():
    layer = layer_of()
    layer.parametrise(parametrizations.weight_norm)
    norms = [p for p in layer.parametrizations.parameters() if p.numel() in (24, 8)]
    assert sum(p.numel() for p in norms) == 32


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(
    "tool",
    [
        parametrizations.weight_norm,
        parametrizations.spectral_norm,
        nn.utils.weight_norm,
        lambda layer: prune.ln_structured(layer, "weight", 0.5, n=2, dim=0),
        lambda layer: prune.random_structured(layer, "weight", 0.5, dim=0),
    ],
    ids=["weight_norm", "spectral_norm", "old weight_norm", "ln_structured", "random_structured"],
)
def test_a_tool_for_filters_on_unequal_groups_is_refused(tool):
    layer = layer_of()
    with pytest.raises(ValueError, match="filters"):
        tool(layer)
        layer(torch.randn(1, 36, 5, 5))


def test_a_tool_for_single_weights_works_on_unequal_groups():
    layer = layer_of()
    prune.l1_unstructured(layer, "weight", 0.5)
    x = torch.randn(2, 36, 5, 5)
    plain = layer_of()
    plain.weight.data.copy_(layer.weight_orig * layer.weight_mask)
    plain.bias.data.copy_(layer.bias)
    torch.testing.assert_close(layer(x), plain(x))
    prune.remove(layer, "weight")
    torch.testing.assert_close(layer(x), plain(x))


def test_the_weight_of_unequal_groups_survives_copies_moves_and_optimizers():
    layer = layer_of()
    for it in (copy.deepcopy(layer), copy.deepcopy(layer).double().float()):
        with pytest.raises(ValueError, match="initialise"):
            nn.init.kaiming_normal_(it.weight)
        assert torch.equal(it.weight, layer.weight)
        assert it.weight.ndim == 3, "a rule of more than one dimension decays it"
    assert type(layer.state_dict()["weight"]) is torch.Tensor
    other = layer_of()
    other.load_state_dict(layer.state_dict())
    x = torch.randn(2, 36, 5, 5)
    for it, foreach in ((layer, False), (other, True)):
        optimizer = torch.optim.SGD(it.parameters(), 0.1, momentum=0.9, weight_decay=1e-2, foreach=foreach)
        for _ in range(2):
            optimizer.zero_grad()
            it(x).square().mean().backward()
            optimizer.step()
    torch.testing.assert_close(layer.state_dict(), other.state_dict())


def test_integers_of_numpy_are_integers():
    one = np.int64(1)
    layer = GroupedConv2d(16 * one, 32 * one, 3 * one, 2 * one, one, one, np.array([24, 8]).tolist(), in_groups=[12, 4])
    again = GroupedConv2d(16, 32, (3 * one, 3), (2 * one, 2), groups=[24 * one, 8 * one], in_groups=(12 * one, 4))
    assert layer.geometry.kernel_size == again.geometry.kernel_size == (3, 3)
    for it in (layer, again):
        assert all(type(n) is int for n in (it.in_channels, it.out_channels, *it.stride, *it.geometry.out_groups.sizes))


@pytest.mark.parametrize("groups", [2, "log:3"], ids=str)
@pytest.mark.parametrize(
    "given",
    [
        torch.randn(1, 6, 5, 5),
        torch.randn(5, 5),
        torch.randn(1, 8, 2, 2),
        torch.ones(1, 8, 5, 5, dtype=torch.int64),
        torch.randn(1, 8, 5, 5, dtype=torch.float64),
        torch.randn(1, 8, 5, 5, dtype=torch.bfloat16),
        torch.randn(1, 8, 5, 5, dtype=torch.complex64),
        torch.randn(1, 8, 5, 5).to_sparse(),
        "image",
    ],
    ids=["channels", "dimensions", "small", "int64", "float64", "bfloat16", "complex64", "sparse", "str"],
)
def test_a_wrong_input_raises_the_class_of_error_that_nn_conv2d_raises(given, groups):
    with pytest.raises(Exception) as theirs:
        nn.Conv2d(8, 8, 3, groups=2)(given)
    with pytest.raises(theirs.type) as ours:
        GroupedConv2d(8, 8, 3, groups=groups)(given)
    assert "\n" not in str(ours.value)


@pytest.mark.parametrize(
    "arguments",
    [{"groups": 3}, {"groups": 0}, {"kernel_size": 2.5}, {"in_channels": 8.0}, {"padding": "a"}, {"padding_mode": "a"}],
    ids=str,
)
def test_a_wrong_argument_raises_the_class_of_error_that_nn_conv2d_raises(arguments):
    given = {"in_channels": 8, "out_channels": 8, "kernel_size": 3, **arguments}
    with pytest.raises(Exception) as theirs:
        nn.Conv2d(**given)
    with pytest.raises(theirs.type):
        GroupedConv2d(**given)
