"""Fused models compute what they did, say what they fused, and are to everybody else what they were."""

import copy
import pickle
import random
from collections import OrderedDict

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gconv import Block, GroupedConv2d, block, fuse, run_block

MODELS = {
    "resnet18": lambda models: models.resnet18(num_classes=7),
    "mobilenet_v2": lambda models: models.mobilenet_v2(num_classes=7, width_mult=0.25),
    "densenet": lambda models: models.DenseNet(8, (2, 2), 16, num_classes=7),
    "squeezenet": lambda models: models.squeezenet1_1(num_classes=7),
    "inception": lambda models: models.inception.InceptionA(3, 4),
}


class Unit(nn.Module):
    """A residual unit as torchvision writes it: one ReLU for all, an optional shortcut."""

    def __init__(self, groups="log:3", shortcut=False):
        super().__init__()
        self.conv1, self.bn1 = GroupedConv2d(8, 8, 3, padding=1, groups=groups, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = GroupedConv2d(8, 8, 3, padding=1, groups=groups, bias=False), nn.BatchNorm2d(8)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut = nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)) if shortcut else None

    def forward(self, x):
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        y += x if self.shortcut is None else self.shortcut(x)
        return self.relu(y)


class Layer(nn.Module):
    """A convolution and its norm, called by a function that a test gives."""

    def __init__(self, forward, **attributes):
        super().__init__()
        self.conv, self.bn, self.relu = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()
        self.compute = forward
        vars(self).update(attributes)

    def forward(self, x):
        return self.compute(self, x)


def images(batch=4, dtype=torch.float32, size=6):
    return torch.randn(batch, 8, size, size, generator=torch.Generator().manual_seed(1), dtype=dtype)


def stirred(model, dtype=torch.float64):
    """The model with running statistics and affine parameters that do something."""
    generator = torch.Generator().manual_seed(2)
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            for values in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
                values.data.uniform_(0.5, 1.5, generator=generator)
    return model.to(dtype)


@pytest.fixture
def folding(monkeypatch):
    """Evaluation folds whatever the size."""
    monkeypatch.setattr(block, "_worth_folding", lambda *run: True)


@pytest.fixture(scope="module")
def vision():
    from experiments.vision import import_torchvision

    try:
        return import_torchvision().models
    except ImportError:
        pytest.skip("torchvision is not installed")


def conv_norm_pairs(model, x):
    """Convolutions whose output, the very tensor, a batch norm is called with: counted by hooks, not by a trace."""
    outputs, pairs = {}, set()

    def remember(name):
        return lambda module, args, y: outputs.update({id(y): (name, y)})

    def look(module, args):
        if id(args[0]) in outputs:
            pairs.add(outputs[id(args[0])][0])

    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(remember(name))
        elif isinstance(module, nn.BatchNorm2d):
            module.register_forward_pre_hook(look)
    model(x)
    return pairs


EXPECTED = {"resnet18": (20, 0), "resnet50": (53, 0), "mobilenet_v2": (52, 0), "densenet121": (59, 61)}


@pytest.mark.parametrize("name", EXPECTED)
def test_runs_of_torchvisions_models_are_counted(vision, name):
    model = getattr(vision, name)(weights=None).eval()
    with torch.no_grad():
        pairs = conv_norm_pairs(copy.deepcopy(model), torch.randn(1, 3, 64, 64))
    done = fuse(model)
    runs, skipped = EXPECTED[name]
    assert sum(map(len, done.blocks.values())) == len(pairs) == runs
    assert {f"{owner}.{run[0]}".lstrip(".") for owner, fused in done.blocks.items() for run in fused} == pairs
    assert len(done.skipped) == skipped
    if name == "densenet121":
        assert set(done.skipped.values()) == {
            "nothing in forward follows it",
            "AvgPool2d follows it, neither BatchNorm2d nor ReLU",
        }
    lines = str(done).splitlines()
    assert f"{runs} of {runs + skipped} convolutions computed together with what follows them" in lines
    assert len(lines) < 24 and max(map(len, lines)) < 400


@pytest.mark.parametrize("name", MODELS)
def test_torchvisions_models_compute_what_they_did(vision, name, folding):
    torch.manual_seed(0)
    plain = stirred(MODELS[name](vision)).eval()
    ours = copy.deepcopy(plain)
    fuse(ours)
    assert list(ours.state_dict()) == list(plain.state_dict())
    x = torch.randn(2, 3, 40, 40, dtype=torch.float64)
    with torch.no_grad():
        y = plain(x)
        assert (ours(x) - y).abs().max() <= 1e-10 * y.abs().max()


def test_a_training_step_is_that_of_the_unfused_model(vision):
    torch.manual_seed(0)
    plain = stirred(vision.resnet18(weights=None, num_classes=5))
    ours = copy.deepcopy(plain)
    fuse(ours)
    x = torch.randn(4, 3, 32, 32, dtype=torch.float64)
    for model in (plain, ours):
        assert model.training
        model(x).square().sum().backward()
    for result, wanted in zip(ours.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(result.grad, wanted.grad, rtol=1e-10, atol=1e-10)
    for result, wanted in zip(ours.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(result, wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("shortcut", [False, True])
def test_compiled_units_are_whole_graphs_and_compute_what_they_did(mode, shortcut):
    torch._dynamo.reset()
    torch.manual_seed(0)
    plain = stirred(Unit(shortcut=shortcut), torch.float32).train(mode == "train")
    ours = copy.deepcopy(plain)
    fuse(ours)
    graphs = []

    def watched(graph, inputs):
        graphs.append([str(node.target) for node in graph.graph.nodes])
        return graph.forward

    with torch.set_grad_enabled(mode == "train"):
        compiled = torch.compile(ours, fullgraph=True, backend=watched)
        torch.testing.assert_close(compiled(images()), plain(images()), rtol=1e-4, atol=1e-4)
    norms = sum("batch_norm" in target for target in graphs[0])
    assert norms == 0, "the runs were left to the modules"


def test_both_the_mode_and_the_children_choose_the_forward_pass(folding):
    ours = stirred(Unit(shortcut=True))
    plain = copy.deepcopy(ours)
    assert fuse(ours).blocks == {
        "": (("conv1", "bn1", "relu"), ("conv2", "bn2")),
        "shortcut": (("0", "1"),),
    }
    x = images(dtype=torch.float64)
    for change in (lambda m: m.eval(), lambda m: setattr(m, "shortcut", None), lambda m: m.train()):
        change(plain), change(ours)
        with torch.no_grad():
            torch.testing.assert_close(ours(x), plain(x), rtol=1e-10, atol=1e-10)


def test_functions_are_relus_too(folding):
    def forward(self, x):
        return F.relu(self.bn(self.conv(x)), inplace=True)

    ours = stirred(Layer(forward)).eval()
    plain = copy.deepcopy(ours)
    assert fuse(ours).blocks == {"": (("conv", "bn", "relu()"),)}
    with torch.no_grad():
        x = images(dtype=torch.float64)
        torch.testing.assert_close(ours(x), plain(x), rtol=1e-10, atol=1e-10)


def by_value(self, x):
    return self.bn(self.conv(x)) if x.mean() > 0 else x


def by_type(self, x):
    y = self.conv(x)
    return self.bn(y) if isinstance(y, torch.Tensor) else y


def storing(self, x):
    self.last = x
    return self.bn(self.conv(x))


def appending(self, x):
    self.seen.append(1)
    return self.bn(self.conv(x))


def drawing(self, x):
    return self.bn(self.conv(x)) if random.random() < 2 else x


def without_gradient(self, x):
    with torch.no_grad():
        y = self.conv(x)
    return self.bn(y)


def reading_an_object(self, x):
    return self.bn(self.conv(x)) if self.options else x


def twice_read(self, x):
    y = self.conv(x)
    return self.bn(y) + y


def twice_called(self, x):
    return self.bn(self.conv(self.conv(x)))


def one_norm_for_two(self, x):
    return self.bn(self.bn(self.conv(x)))


def own_tensors(self, x):
    return self.bn(self.conv(x)) + torch.arange(6)


def uncalled(self, x):
    return self.bn(x)


REFUSED = {
    by_value: "Layer.forward depends on values of tensors",
    by_type: "Layer.forward depends on the types of results",
    storing: "Layer.forward sets the attribute last",
    appending: "Layer.forward changes the attribute seen",
    drawing: "Layer.forward draws random numbers in Python",
    without_gradient: "Layer.forward changes the gradient mode, autocast or what autograd saves",
    reading_an_object: "Layer.forward reads the attribute options, of type object",
    twice_read: "its output is read more than once",
    twice_called: "it is called more than once",
    one_norm_for_two: "its batch normalisation is called more than once",
    uncalled: "Layer.forward does not call it",
    own_tensors: "Layer.forward makes tensors of its own",
}


@pytest.mark.parametrize("forward", REFUSED, ids=lambda f: f.__name__)
def test_what_a_trace_cannot_prove_is_left_alone_with_its_reason(forward):
    model = Layer(forward, seen=[], options=object())
    keys = list(vars(model))
    done = fuse(model)
    assert done.blocks == {} and done.skipped == {"conv": REFUSED[forward]}
    assert type(model) is Layer and list(vars(model)) == keys and model.seen == []
    assert model.training and str(done).splitlines()[-1] == f"1 not, {REFUSED[forward]}: conv"


def test_a_relu_that_others_read_too_is_left_to_the_module():
    def forward(self, x):
        y = self.bn(self.conv(x))
        return self.relu(y) + y

    assert fuse(Layer(forward)).blocks == {"": (("conv", "bn"),)}


class Gate(nn.Module):
    strength = 2.0

    def __init__(self):
        super().__init__()
        self.gain, self.is_on, self.inner = 3.0, True, nn.ModuleList([nn.Identity()])

    def apply_to(self, x):
        return x * self.gain * self.strength


class Gated(nn.Module):
    power = 2

    def __init__(self, read):
        super().__init__()
        self.conv, self.bn, self.relu, self.gate = nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), Gate()
        self.scale, self.read = 1.0, read

    def forward(self, x):
        return self.read(self, self.relu(self.bn(self.conv(x))))


def replaced_by_own_method(gate):
    gate.apply_to = lambda x: -x


def change_class(module):
    own = type(module)
    module.__class__ = type(own.__name__, (own,), {"power": 3, "strength": 5.0})


CHANGES = {
    "of the object": (lambda m, y: y * m.scale, lambda m: setattr(m, "scale", 3.0)),
    "to another type": (lambda m, y: y * m.scale, lambda m: setattr(m, "scale", torch.tensor(3.0))),
    "to a parameter": (lambda m, y: y * m.scale, lambda m: setattr(m, "scale", nn.Parameter(torch.tensor(3.0)))),
    "of the class": (lambda m, y: y**m.power, change_class),
    "of the object over that of the class": (lambda m, y: y**m.power, lambda m: setattr(m, "power", 3)),
    "new": (lambda m, y: y * getattr(m, "factor", 1.0), lambda m: setattr(m, "factor", 3.0)),
    "of a child": (lambda m, y: y * m.gate.gain, lambda m: setattr(m.gate, "gain", 5.0)),
    "of a child, in a branch": (lambda m, y: y if m.gate.is_on else -y, lambda m: setattr(m.gate, "is_on", False)),
    "of the class of a child": (lambda m, y: y * m.gate.strength, lambda m: change_class(m.gate)),
    "in a method of a child": (lambda m, y: m.gate.apply_to(y), lambda m: setattr(m.gate, "gain", 5.0)),
    "the method of a child": (lambda m, y: m.gate.apply_to(y), lambda m: replaced_by_own_method(m.gate)),
    "mode of a child": (lambda m, y: y if m.gate.training else -y, lambda m: m.gate.train()),
    "number of the child's children": (
        lambda m, y: y * len(m.gate.inner),
        lambda m: m.gate.inner.append(nn.Identity()),
    ),
    "of a child in a list": (
        lambda m, y: y if all(part.training for part in m.gate.inner) else -y,
        lambda m: m.gate.inner.train(),
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_an_attribute_that_changes_brings_the_own_forward_back(folding, change):
    read, apply = CHANGES[change]
    ours = stirred(Gated(read)).eval()
    plain = copy.deepcopy(ours)
    assert fuse(ours).blocks
    called = []
    for fused in ours._fused_forwards:
        object.__setattr__(fused, "call", lambda *a, call=fused.call: called.append(1) or call(*a))
    x = images(dtype=torch.float64)
    with torch.no_grad():
        before = plain(x)
        torch.testing.assert_close(ours(x), before, rtol=1e-10, atol=1e-10)
        assert called == [1]
        apply(ours), apply(plain)
        torch.testing.assert_close(ours(x), plain(x), rtol=1e-10, atol=1e-10)
        assert not torch.allclose(plain(x), before)


def test_modules_and_modes_are_as_before_a_recording():
    model = Gated(lambda m, y: y if type(m.gate) is Gate and m.gate.training else -y)
    model.gate.eval()
    before = {name: dict(vars(part)) for name, part in model.named_modules()}
    assert fuse(model).blocks == {"": (("conv", "bn", "relu"),)}
    vars(model).pop("_fused_forwards")
    assert {name: dict(vars(part)) for name, part in model.named_modules()} == before
    assert "__getattribute__" not in vars(nn.Module)
    model.gate.gain = 4.0
    assert model.gate.gain == 4.0


def test_what_forward_does_to_its_children_is_seen():
    def setting(m, y):
        m.gate.last = y
        return y

    def appending(m, y):
        m.gate.seen.append(1)
        return y

    for read, says in ((setting, "sets the attribute gate.last"), (appending, "changes the attribute gate.seen")):
        model = Gated(read)
        model.gate.seen = []
        assert fuse(model).skipped == {"conv": f"Gated.forward {says}"} and model.gate.seen == []


def test_a_sequential_of_a_class_of_its_own_keeps_class_and_methods(folding):
    class Backwards(nn.Sequential):
        def __iter__(self):
            return iter(list(self._modules.values())[::-1])

    class Stage(nn.Sequential):
        pass

    class Parent(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.bn = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)
            self.stage = Stage(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.ReLU())
            self.backwards = Backwards(nn.ReLU(), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1))

        def forward(self, x):
            y = self.backwards(self.stage(self.bn(self.conv(x))))
            return y if isinstance(self.stage, Stage) and type(self.stage).__name__ == "Stage" else -y

    ours = stirred(Parent()).eval()
    plain = copy.deepcopy(ours)
    assert fuse(ours).blocks == {"": (("conv", "bn"),), "stage": (("0", "1", "2"),), "backwards": (("2", "1", "0"),)}
    x = images(dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), plain(x), rtol=1e-10, atol=1e-10)
        for model in (ours, plain):
            model.stage.append(nn.Sigmoid())
        torch.testing.assert_close(ours(x), plain(x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("given", ["list", "tensor"])
def test_arguments_of_either_kind_are_recorded_each(folding, given):
    def forward(self, x):
        parts = [x] if isinstance(x, torch.Tensor) else x
        return self.relu(self.bn(self.conv(torch.cat(parts, 1))))

    ours = stirred(Layer(forward)).eval()
    plain = copy.deepcopy(ours)
    assert fuse(ours).blocks
    called = []
    for fused in ours._fused_forwards:
        object.__setattr__(fused, "call", lambda *a, call=fused.call: called.append(1) or call(*a))
    x = images(dtype=torch.float64)
    x = list(x.split(4, 1)) if given == "list" else x
    with torch.no_grad():
        torch.testing.assert_close(ours(x), plain(x), rtol=1e-10, atol=1e-10)
    assert called


def test_hooks_see_what_they_saw(folding):
    plain = stirred(Unit()).eval()
    ours = copy.deepcopy(plain)
    fuse(ours)
    seen = {plain: [], ours: []}
    for model in (plain, ours):
        for module in (model, model.conv1, model.bn1, model.bn2):
            module.register_forward_hook(lambda m, x, y, model=model: seen[model].append(y.clone()))
    with torch.no_grad():
        x = images(dtype=torch.float64)
        plain(x), ours(x)
    assert len(seen[plain]) == len(seen[ours]) == 4
    for result, wanted in zip(seen[ours], seen[plain], strict=True):
        torch.testing.assert_close(result, wanted, rtol=1e-10, atol=1e-10)


def test_hooks_for_all_modules_see_every_module(folding):
    model = stirred(Unit()).eval()
    fuse(model)
    seen = []
    hook = nn.modules.module.register_module_forward_hook(lambda m, x, y: seen.append(type(m).__name__))
    try:
        with torch.no_grad():
            model(images(dtype=torch.float64))
    finally:
        hook.remove()
    assert seen == ["GroupedConv2d", "BatchNorm2d", "ReLU", "GroupedConv2d", "BatchNorm2d", "ReLU", "Unit"]


def test_copies_pickles_traces_and_programs_are_those_of_the_model():
    plain = stirred(Unit(groups=2, shortcut=True), torch.float32).eval()
    ours = copy.deepcopy(plain)
    fuse(ours)
    x = images()
    assert (
        type(ours).__name__ == "Unit"
        and isinstance(ours, Unit)
        and repr(ours) == repr(plain).replace("Sequential", "Block")
    )
    with torch.no_grad():
        y = plain(x)
        for twin in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
            assert isinstance(twin, Unit) and twin._fused_forwards[0].runs == ours._fused_forwards[0].runs
            torch.testing.assert_close(twin(x), y)
            assert twin.conv1 is not ours.conv1
        for program in (
            torch.export.export(ours, (x,)).module(),
            torch.jit.trace(ours, x),
            torch.fx.symbolic_trace(ours),
        ):
            torch.testing.assert_close(program(x), y)
        exported, wanted = ([str(n.target) for n in torch.export.export(m, (x,)).graph.nodes] for m in (ours, plain))
        assert exported == wanted
        torch.testing.assert_close(torch.jit.script(ours)(x), y)


def test_models_without_convolutions_called_by_name_are_as_before():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1, self.bn1 = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)

        def forward(self, x):
            return run_block(x, self.conv1, self.bn1)

    class Conv3(nn.Sequential):
        def __init__(self):
            super().__init__(nn.Conv2d(8, 8, 3), nn.ReLU())

    class Own(nn.Sequential):
        def forward(self, x):
            return super().forward(x) + 1

    first = nn.Sequential(GroupedConv2d(8, 8, 3, groups="log:3"), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 1))
    model = nn.Sequential(
        OrderedDict(first=first, named=Named(), conv3=Conv3(), own=Own(nn.Conv2d(8, 8, 1), nn.ReLU()))
    )
    model.add_module("last", nn.Conv2d(8, 4, 1))
    x, keys, parameters = images(size=9), list(model.state_dict()), list(model.parameters())
    expected = model.eval()(x)
    done = fuse(model)
    assert done.model is model
    assert done.blocks == {
        "first": (("0", "1", "2"),),
        "named": (("conv1", "bn1"),),
        "conv3": (("0", "1"),),
        "own": (("0", "1"),),
    }
    assert done.skipped == {
        "last": "it is the last of its Sequential",
        "first.3": "it is the last of its Sequential",
    }
    assert str(done).splitlines()[:2] == ["module  computed together", "first   0 + 1 + 2"]
    assert list(model.state_dict()) == keys and all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert type(model.first) is Block and isinstance(model.conv3, Conv3) and isinstance(model.own, Own)
    torch.testing.assert_close(model(x), expected)
    again = fuse(model)
    assert again.blocks == done.blocks and type(model.own).__mro__.count(Own) == 1
    assert type(copy.deepcopy(model).first[:2]) is Block


@pytest.mark.parametrize("model", [None, nn.Conv2d, "resnet18"], ids=repr)
def test_what_is_no_model_is_named(model):
    with pytest.raises(TypeError, match=r"fuse takes a torch\.nn\.Module, not "):
        fuse(model)
