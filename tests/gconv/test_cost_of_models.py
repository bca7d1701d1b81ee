"""Counts of models of users: any dtype, plain tensors, parametrised, compiled, wrapped, several outputs."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, prune
from torch.optim.swa_utils import AveragedModel
from torch.utils.flop_counter import FlopCounterMode

from experiments.vision import import_torchvision
from gconv import GroupedConv2d
from gconv.cost import count_cost, count_training_macs

SHAPE = (3, 10, 12)
MACS = 10 * 12 * 3 * 9 * 8 + 8 * 10 * 8 * 9 * 4 + 8 * 5  # of net(), by hand
ACTIVATIONS = 10 * 12 * 8 + 8 * 10 * 8


def net():
    convolutions = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=2)
    return nn.Sequential(*convolutions, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))


def check(model, parameters=None):
    cost = count_cost(model, SHAPE)
    assert (cost.macs, cost.activations) == (MACS, ACTIVATIONS)
    assert cost.parameters == (parameters or 8 * 27 + 8 + 16 + 8 * 36 + 8 + 45)
    assert count_training_macs(model, SHAPE) == 3 * MACS


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("layers", [range(7), [0], [0, 3, 6], [1], [6]], ids=str)
def test_the_dtype_plays_no_part_even_where_layers_differ_in_it(dtype, layers):
    model = net()
    for layer in layers:
        model[layer].to(dtype)
    check(model)


class Plain(nn.Module):
    """A model that holds and makes plain tensors, as classifiers and models with coordinates do."""

    def __init__(self):
        super().__init__()
        self.conv, self.out = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(10, 4, 1)
        self.mean, self.scales = torch.full((1, 3, 1, 1), 0.5), [torch.ones(1)]
        self.filters = torch.randn(4, 2, 3, 3)

    def forward(self, x):
        x = self.conv((x - self.mean.to(x.device)) / self.mean) * self.scales[0]
        rows, columns = torch.arange(x.shape[-2]).to(x), torch.linspace(-1, 1, x.shape[-1])
        grid = torch.stack(torch.meshgrid(rows, columns, indexing="ij")).expand(x.shape[0], -1, -1, -1)
        filled = torch.zeros(x.shape[0], 4, *x.shape[2:])
        filled[:, :] = self.out(torch.cat([x, grid], 1))
        chosen = filled[:, torch.tensor([3, 1, 0, 2])]
        return F.conv2d(chosen, self.filters, groups=2) + torch.zeros(1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_plain_tensors_follow_wherever_they_come_from(dtype, device):
    model = Plain().to(device, dtype)
    cost = count_cost(model, SHAPE)
    assert cost.macs == 120 * 27 * 8 + 120 * 10 * 4 + 80 * 18 * 4
    assert cost.activations == 120 * 8 + 120 * 4 + 80 * 4  # the parametrisation that is no module too
    assert count_training_macs(model, SHAPE) == 3 * cost.macs - 80 * 18 * 4  # plain filters have no gradient
    assert not model.mean.is_meta and not model.filters.is_meta


@pytest.mark.parametrize(
    ("layer", "shape", "weights"),
    [
        (nn.Conv1d(4, 6, 3, groups=2, dilation=2), (4, 20), 2 * 6 * 3),
        (nn.Conv3d(4, 8, (1, 2, 3), groups=4), (4, 5, 6, 7), 8 * 6),
        (nn.ConvTranspose1d(4, 6, 5, stride=2), (4, 9), 4 * 6 * 5),
        (nn.ConvTranspose2d(4, 8, 3, 2, groups=2, dilation=2, output_padding=1), (4, 8, 7), 4 * 4 * 9),
        (nn.ConvTranspose3d(4, 2, 2, 2), (4, 3, 4, 5), 4 * 2 * 8),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else None,
)
def test_convolutions_of_every_dimension_and_direction(layer, shape, weights):
    output = layer(torch.zeros(1, *shape))
    # A transposed convolution multiplies each weight of a group with each position of its input.
    places = (torch.zeros(shape) if layer.transposed else output[0])[0].numel()
    cost = count_cost(layer, shape)
    assert (cost.macs, cost.activations) == (places * weights, output.numel())
    assert count_training_macs(layer, shape) == 3 * cost.macs
    assert count_cost(layer, (7, *shape)) == count_cost(layer, torch.zeros(2, *shape)) == cost


def test_a_feature_extractor_counts_its_own_layers_and_stays_in_its_mode():
    vision = import_torchvision()
    from torchvision.models.feature_extraction import create_feature_extractor

    with torch.device("meta"):
        model = vision.models.resnet18(weights=None)
        model.layer2.append(nn.Dropout())
    extractor = create_feature_extractor(model, {"layer1": "a", "layer2": "b"}).train()
    code = extractor.code
    with FlopCounterMode(display=False) as counter:
        extractor(torch.empty(1, 3, 64, 64, device="meta"))
    assert count_cost(extractor, (3, 64, 64)).macs == counter.get_total_flops() // 2
    assert extractor.training and extractor.code == code
    assert getattr(extractor.layer2, "2").training


@pytest.mark.parametrize("output", [dict, list, tuple])
def test_outputs_of_any_structure(output):
    class Several(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = net()

        def forward(self, x):
            y = self.inner(x)
            return {"y": y, "other": [y + 1, None]} if output is dict else output((y, {"other": y + 1}, 3))

    check(Several())


def weights_of(layer):
    return {name: value for name, value in vars(layer).items() if isinstance(value, torch.Tensor)}


@pytest.mark.parametrize(
    ("change", "more"),
    [
        (lambda layer: prune.l1_unstructured(layer, "weight", 0.5), 0),
        pytest.param(  # a norm for each filter
            torch.nn.utils.weight_norm, 8, marks=pytest.mark.filterwarnings("ignore::FutureWarning")
        ),
        (torch.nn.utils.spectral_norm, 0),
        (parametrizations.weight_norm, 8),
        (parametrizations.spectral_norm, 0),
        (lambda layer: parametrizations.orthogonal(layer, orthogonal_map="householder"), 0),
    ],
    ids=["pruned", "weight norm", "spectral norm", "parametrised weight norm", "… spectral norm", "… orthogonal"],
)
def test_a_reparametrised_layer_is_one_layer_and_is_not_changed(change, more):
    model = net()
    change(model[3])
    before, state = weights_of(model[3]), {key: value.clone() for key, value in model.state_dict().items()}
    cost = count_cost(model, SHAPE)
    assert [(layer.name, layer.kind) for layer in cost.layers] == [
        *(("0", "Conv2d"), ("1", "BatchNorm2d"), ("3", "Conv2d"), ("6", "Linear"))
    ]
    assert cost.layers[2].parameters == 8 * 36 + 8 + more
    assert cost.macs == MACS
    assert weights_of(model[3]).keys() == before.keys()
    assert all(value is before[name] for name, value in weights_of(model[3]).items())
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def compiled_inside():
    model = net()
    model[0] = torch.compile(model[0])  # type: ignore[assignment]
    model[3].compile()
    return model


def in_place():
    model = net()
    model.compile()
    return model


def parallel_inside():
    model = net()
    model[3] = nn.DataParallel(model[3])
    return model


@pytest.mark.parametrize(
    "model",
    [
        *(lambda: torch.compile(net()), in_place, compiled_inside, lambda: nn.DataParallel(net()), parallel_inside),
        *(lambda: torch.compile(nn.DataParallel(net())), lambda: AveragedModel(net())),
    ],
    ids=["compiled", "compiled in place", "parts compiled", "parallel", "part parallel", "both", "averaged"],
)
@pytest.mark.filterwarnings("error:Using `torch.compile")
def test_a_wrapped_model_costs_as_much_as_the_model_inside(model):
    check(model())


def test_a_model_in_distributed_data_parallel(tmp_path):
    store = torch.distributed.FileStore(  # type: ignore[attr-defined]
        str(tmp_path / "store"), 1
    )
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        check(nn.parallel.DistributedDataParallel(net()))
    finally:
        torch.distributed.destroy_process_group()


def test_layers_outside_modules_spend_macs_of_whoever_calls_them():
    class Listed(nn.Module):
        def __init__(self):
            super().__init__()
            self.head, self.steps = nn.Conv2d(8, 4, 1), [nn.Conv2d(3, 8, 3)]

        def forward(self, x):
            return self.head(self.steps[0](x))

    model = Listed()
    cost = count_cost(model, SHAPE)
    assert [(layer.name, layer.macs) for layer in cost.layers] == [("Listed", 80 * 27 * 8), ("head", 80 * 32)]
    assert cost.activations == 80 * 12
    assert cost.parameters == 36  # the parameters that an optimiser gets
    assert count_training_macs(model, SHAPE) == 3 * cost.macs
    assert not model.steps[0].weight.is_meta


def test_tensors_kept_by_forward_are_restored():
    class Keeps(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.last, self.calls, self.known, self.seen = nn.Conv2d(3, 4, 1), None, 0, {}, [1]

        def forward(self, x):
            self.calls += 1
            self.last = self.known[x.shape] = self.conv(x)
            self.seen.append(self.last)
            return self.last

    model = Keeps()
    known = model.known
    count_cost(model, SHAPE)
    assert (model.calls, model.last, model.seen) == (0, None, [1])
    assert model.known is known and not known


class Looks(nn.Module):
    def forward(self, x):
        return x * 2 if x.mean() > 0 else x


SCRIPTED = torch.jit.script(nn.Sequential(nn.Conv2d(3, 4, 1)))


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ((SCRIPTED, SHAPE), ValueError, "RecursiveScriptModule.*call count_cost before torch.jit.script"),
        ((nn.Sequential(nn.ReLU(), SCRIPTED), SHAPE), ValueError, "module 1.*before torch.jit.script"),
        ((nn.Sequential(nn.LazyConv2d(4, 1)), SHAPE), ValueError, "module 0.*LazyConv2d.*run the model once"),
        ((Looks(), SHAPE), ValueError, r"Looks needs numbers in its forward \(.*x.mean\(\) > 0"),
        ((nn.Conv2d, SHAPE), TypeError, r"class Conv2d; give Conv2d\("),
        ((SHAPE, net()), TypeError, r"takes a torch.nn.Module first, not \(3, 10, 12\)"),
        ((net(), 224), TypeError, r"input_shape=224: .*such as \(3, 224, 224\)"),
        ((net(), "3,224,224"), TypeError, "such as"),
        ((net(), [SHAPE]), TypeError, "such as"),
        ((net(), (3, 0, 5)), ValueError, "at least 1"),
        ((net(), (4, 10, 12)), ValueError, "cannot take an input of 4 × 10 × 12"),
        ((net(), (10, 12)), ValueError, "10 × 12"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_model_that_cannot_be_counted_raises_one_line_with_the_remedy(arguments, error, words):
    with pytest.raises(error, match=words) as caught:
        count_cost(*arguments)
    assert "\n" not in str(caught.value)


def test_an_image_is_a_shape_or_a_tensor_with_a_batch_or_without():
    once = count_cost(net(), SHAPE)
    for given in ((5, *SHAPE), list(SHAPE), torch.Size(SHAPE), torch.zeros(SHAPE), torch.zeros(4, *SHAPE)):
        assert count_cost(net(), given) == once
    linear = nn.Linear(6, 2)
    assert count_cost(linear, (6,)).macs == count_cost(linear, torch.zeros(9, 6)).macs == 12


def test_the_printed_cost_is_a_short_table_with_the_sums():
    lines = str(count_cost(net(), SHAPE)).splitlines()
    assert [line.split()[0] for line in lines] == ["layer", "0", "1", "3", "6", "total"]
    assert lines[-1].split()[1:] == ["581", f"{MACS:,}", f"{ACTIVATIONS:,}"]
    deep = nn.Sequential(*(GroupedConv2d(4, 4, 1, groups=2) for _ in range(60)))
    lines = str(count_cost(deep, (4, 2, 2))).splitlines()
    assert len(lines) <= 30
    assert "… 37 more" in lines and lines[-1].split() == ["total", "720", "1,920", "960"]
    assert max(map(len, lines)) < 80
