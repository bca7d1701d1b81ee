"""Weights from elsewhere: what is read, what is refused, and what is said of weights that do not fit."""

import argparse
import builtins
import datetime
import functools
import os
import pickle
import sys
import types
from collections import OrderedDict, defaultdict
from pathlib import Path
from types import SimpleNamespace
from urllib.error import URLError

import numpy as np
import pytest
import torch
from torch import nn

from experiments.errors import UsageError
from experiments.foreign.weights import PLAIN, EmptyMapping, IgnoredValue, read_checkpoint, trained_and_untrained


def network(classes, width=6):
    return nn.Sequential(
        OrderedDict(
            conv=nn.Conv2d(3, width, 3),
            norm=nn.BatchNorm2d(width),
            flat=nn.Flatten(),
            hidden=nn.Linear(4 * width, 5),
            classify=nn.Linear(5, classes),
        )
    )


@pytest.fixture
def weights():
    torch.manual_seed(1)
    return network(7).state_dict()


def read(path, published=None):
    return read_checkpoint(str(path), published or {})


WRAPPED = {
    "a state_dict": lambda w: w,
    "under state_dict": lambda w: {"epoch": 90, "state_dict": w},
    "under model, with a namespace": lambda w: {"model": w, "args": argparse.Namespace(lr=0.1)},
    "under model_state_dict": lambda w: {"model_state_dict": w, "optimizer": {"lr": 1.0}},
    "of DataParallel": lambda w: {"state_dict": {f"module.{k}": v for k, v in w.items()}},
    "of DataParallel and torch.compile": lambda w: {f"module._orig_mod.{k}": v for k, v in w.items()},
    "in half precision": lambda w: {k: v.half() if v.is_floating_point() else v for k, v in w.items()},
    "without counters": lambda w: {k: v for k, v in w.items() if not k.endswith("num_batches_tracked")},
}


@pytest.mark.parametrize("kind", WRAPPED)
def test_weights_are_found_whatever_wraps_them_and_tell_the_number_of_classes(tmp_path, weights, kind):
    torch.save(WRAPPED[kind](weights), tmp_path / "net.pth")
    checkpoint = read(tmp_path / "net.pth")
    trained, _ = trained_and_untrained(network, checkpoint, seed=0)
    assert checkpoint.name == "net"
    assert trained.classify.out_features == 7
    tolerance = 1e-3 if kind == "in half precision" else 0
    for name, weight in trained.state_dict().items():
        if name in checkpoint.weights:
            torch.testing.assert_close(weight, weights[name], rtol=tolerance, atol=tolerance)


def test_the_untrained_network_is_the_one_that_its_seed_draws(tmp_path, weights):
    torch.save(weights, tmp_path / "net.pth")
    trained, untrained = trained_and_untrained(network, read(tmp_path / "net.pth"), seed=3)
    torch.manual_seed(3)
    expected = network(7)
    for name, weight in expected.state_dict().items():
        assert torch.equal(untrained.state_dict()[name], weight)
    assert not torch.equal(trained.conv.weight, untrained.conv.weight)
    assert not trained.training
    assert not untrained.training


def test_safetensors_are_read_as_the_same_weights(tmp_path, weights):
    safetensors = pytest.importorskip("safetensors.torch")
    safetensors.save_file({k: v.contiguous() for k, v in weights.items()}, tmp_path / "net.safetensors")
    loaded = read(tmp_path / "net.safetensors").weights
    assert loaded.keys() == weights.keys()
    assert all(torch.equal(loaded[name], weights[name]) for name in weights)


def test_without_safetensors_the_command_that_installs_it_is_told(tmp_path, monkeypatch):
    (tmp_path / "net.safetensors").write_bytes(b"")
    imported = builtins.__import__

    def without(name, *rest):
        if name.startswith("safetensors"):
            raise ImportError(name)
        return imported(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UsageError, match=r"net\.safetensors: to read it, run pip install safetensors"):
        read(tmp_path / "net.safetensors")


class Malicious:
    """Unpickled, it would leave a file."""

    def __init__(self, place):
        self.place = place

    def __reduce__(self):
        return os.mkdir, (str(self.place),)


def legacy(content, path):
    torch.save(content, path, _use_new_zipfile_serialization=False)


def pickled(content, path):
    path.write_bytes(pickle.dumps(content, protocol=2))


@pytest.mark.parametrize("write", [torch.save, legacy, pickled])
@pytest.mark.parametrize("wrap", [lambda m, w: m, lambda m, w: {"state_dict": w, "extra": m}], ids=["alone", "beside"])
def test_code_in_a_checkpoint_is_named_and_never_run(tmp_path, wrap, write):
    write(wrap(Malicious(tmp_path / "owned"), {"weight": 1.0}), tmp_path / "evil.pt")
    with pytest.raises(UsageError, match=r"evil\.pt: holds \S*mkdir, which is code and not weights, and was not run"):
        read(tmp_path / "evil.pt")
    assert not (tmp_path / "owned").exists()
    with open(tmp_path / "evil.pt", "rb") as file:  # where it is trusted the code does run
        pickle.load(file) if write is pickled else torch.load(file, weights_only=False)
    assert (tmp_path / "owned").exists()


def test_a_whole_pickled_network_is_refused_in_words(tmp_path):
    torch.save(network(7), tmp_path / "net.pt")
    with pytest.raises(UsageError, match=r"holds torch\.nn\.\S+, which is code .* save model\.state_dict\(\) alone"):
        read(tmp_path / "net.pt")


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("content", [b"", b"not weights at all", b"PK\x03\x04 cut off", b"\x80\x02]q\x00."])
def test_a_damaged_file_is_one_line(tmp_path, suffix, content):
    if suffix == ".safetensors":
        pytest.importorskip("safetensors")
    place = tmp_path / f"net{suffix}"
    place.write_bytes(content)
    with pytest.raises(UsageError) as refused:
        read(place)
    assert f"--checkpoint={place}: " in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_truncated_checkpoint_is_one_line(tmp_path, weights):
    torch.save(weights, tmp_path / "net.pt")
    whole = (tmp_path / "net.pt").read_bytes()
    (tmp_path / "net.pt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UsageError, match="not a checkpoint of torch, or a damaged one"):
        read(tmp_path / "net.pt")


def test_a_file_without_weights_says_what_it_holds(tmp_path):
    torch.save({"epoch": 3, "best": 0.5}, tmp_path / "log.pt")
    with pytest.raises(UsageError, match=r"holds no weights by name.*its keys are epoch, best"):
        read(tmp_path / "log.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(UsageError, match="it is a list"):
        read(tmp_path / "list.pt")


def test_weights_of_a_diverged_training_are_refused(tmp_path, weights):
    weights["hidden.weight"][0, 0] = float("nan")
    torch.save(weights, tmp_path / "net.pt")
    with pytest.raises(UsageError, match=r"hidden\.weight is not finite"):
        read(tmp_path / "net.pt")


def test_weights_that_do_not_fit_are_named_with_both_shapes(tmp_path, weights):
    del weights["hidden.bias"]
    weights["hidden.scale"] = torch.ones(5)
    weights["conv.weight"] = torch.ones(6, 3, 5, 5)
    torch.save(weights, tmp_path / "net.pt")
    with pytest.raises(ValueError) as misfit:
        trained_and_untrained(network, read(tmp_path / "net.pt"), seed=0)
    assert str(misfit.value) == (
        "lacks hidden.bias; also has hidden.scale; "
        "differs in conv.weight of 6 × 3 × 5 × 5 where the network has 6 × 3 × 3 × 3"
    )


def test_of_many_weights_that_do_not_fit_the_first_are_named_and_the_others_counted(tmp_path):
    torch.save({"features.0.weight": torch.ones(1)}, tmp_path / "net.pt")
    with pytest.raises(ValueError, match=r"lacks conv\.weight, conv\.bias, norm\.weight and 7 more; also has feat"):
        trained_and_untrained(network, read(tmp_path / "net.pt"), seed=0)


def test_a_run_is_named_by_its_folder_and_another_file_by_itself(tmp_path, weights):
    for place in (tmp_path / "groups-2-seed0" / "checkpoint.pt", tmp_path / "mine.v2.pth"):
        place.parent.mkdir(exist_ok=True)
        torch.save(weights, place)
    assert read(tmp_path / "groups-2-seed0" / "checkpoint.pt").name == "groups-2-seed0"
    assert read(tmp_path / "mine.v2.pth").name == "mine.v2"


def test_a_folder_in_the_place_of_a_file_is_told_with_the_file_in_it(tmp_path, weights):
    torch.save(weights, tmp_path / "best.pth")
    with pytest.raises(UsageError, match=r"is a folder; name the file in it, such as best\.pth"):
        read(tmp_path)


def published(answer):
    """An entry of torchvision's weights whose download gives ``answer``."""

    def get_state_dict(**options):
        assert options["weights_only"] is True
        if isinstance(answer, Exception):
            raise answer
        return answer

    return {"DEFAULT": SimpleNamespace(url="https://example.org/net-0123.pth", get_state_dict=get_state_dict)}


@pytest.mark.parametrize("name", ["DEFAULT", "Net_Weights.DEFAULT"])
def test_weights_of_torchvision_are_named_as_there(weights, name):
    entries = published(weights)
    checkpoint = read(name, entries)
    assert (checkpoint.name, checkpoint.published) == ("DEFAULT", entries["DEFAULT"])
    assert torch.equal(checkpoint.weights["conv.weight"], weights["conv.weight"])


def test_a_file_that_torchvision_published_is_known_by_its_name(tmp_path, weights):
    torch.save(weights, tmp_path / "net-0123.pth")
    entries = published(None)
    assert read(tmp_path / "net-0123.pth", entries).published is entries["DEFAULT"]
    assert read(tmp_path / "net-0123.pth").published is None


@pytest.mark.parametrize("error", [URLError("no route to host"), TimeoutError("timed out"), RuntimeError("bad hash")])
def test_a_failed_download_is_one_line_that_names_the_file(error):
    with pytest.raises(UsageError) as failed:
        read("DEFAULT", published(error))
    said = str(failed.value)
    assert "\n" not in said
    for word in ("--checkpoint=DEFAULT", str(error), "https://example.org/net-0123.pth", "check the network"):
        assert word in said


def test_a_misspelt_name_of_weights_is_told_with_the_nearest():
    with pytest.raises(UsageError, match=r"DEFUALT: there is no such file; .* are DEFAULT: did you mean DEFAULT\?"):
        read("DEFUALT", published(None))
    with pytest.raises(UsageError, match=r"DEFAULT: there is no such file$"):
        read("DEFAULT")


def test_the_first_densenets_named_their_layers_otherwise(tmp_path):
    old = {"features.denseblock1.denselayer1.norm.1.weight": torch.ones(2), "classifier.weight": torch.ones(2, 2)}
    torch.save(old, tmp_path / "densenet.pth")
    assert "features.denseblock1.denselayer1.norm1.weight" in read(tmp_path / "densenet.pth").weights


def test_heads_that_inceptions_have_in_training_alone_are_left_out(tmp_path, weights):
    heads = {name: torch.ones(2) for name in ("aux1.fc1.weight", "aux2.fc2.bias", "AuxLogits.fc.weight")}
    torch.save({**weights, **heads}, tmp_path / "net.pth")
    assert read(tmp_path / "net.pth").weights.keys() == weights.keys()


def test_numbers_of_numpy_are_no_weights(tmp_path):
    np.savez(tmp_path / "net.npz", conv=np.ones(3))
    with pytest.raises(UsageError, match=r"net\.npz: not a checkpoint of torch, or a damaged one"):
        read(tmp_path / "net.npz")


def plain_network():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))


def weights_of(tmp_path, content):
    torch.save(content, tmp_path / "x.pt")
    return read_checkpoint(str(tmp_path / "x.pt"), {}).weights


def assert_read(tmp_path, content, expected):
    loaded = weights_of(tmp_path, content)
    assert set(loaded) == set(expected)
    assert all(torch.equal(loaded[name], expected[name]) for name in expected)


@pytest.mark.parametrize("first", ["", "module.", "_orig_mod.", "model.", "net.", "module._orig_mod.", "model.net."])
@pytest.mark.parametrize("key", [None, "state_dict", "model", "module", "state_dict_ema", "model_ema", "model_state"])
def test_prefixes_and_containers_of_trainers(tmp_path, first, key):
    weights = plain_network().state_dict()
    named = {first + name: weight for name, weight in weights.items()}
    assert_read(tmp_path, named if key is None else {key: named, "epoch": 3}, weights)


def test_an_averaged_model_as_torch_saves_it(tmp_path):
    network = plain_network()
    averaged = torch.optim.swa_utils.AveragedModel(network)
    assert_read(tmp_path, averaged.state_dict(), network.state_dict())
    assert_read(tmp_path, {"model_ema": averaged.state_dict()}, network.state_dict())


def test_plain_values_beside_weights_are_no_code(tmp_path):
    weights = plain_network().state_dict()
    values = {
        "best": np.float64(0.3),
        "single": np.float32(0.3),
        "epoch": np.int64(7),
        "flag": np.bool_(True),
        "curve": np.arange(4.0),
        "names": np.array(["a", "b"]),
        "when": datetime.datetime(2020, 1, 2, tzinfo=datetime.UTC),
        "took": datetime.timedelta(seconds=3),
        "where": Path("a/b"),
        "args": argparse.Namespace(lr=1, where=Path("x")),
        "more": types.SimpleNamespace(a=1),
        "log": defaultdict(list, a=[1]),
        "order": OrderedDict(a=1),
        "version": torch.__version__,
        "classes": frozenset({"a"}),
    }
    assert_read(tmp_path, {"state_dict": weights, **values}, weights)


def named_class(monkeypatch, module, name, base=object):
    """A class that pickles under the name, as if its package were installed."""
    made = type(name, (base,), {"__module__": module, "__qualname__": name})
    parts = module.split(".")
    for package in (".".join(parts[: n + 1]) for n in range(len(parts))):
        monkeypatch.setitem(sys.modules, package, types.ModuleType(package))
    setattr(sys.modules[module], name, made)
    return made


def test_what_lightning_keeps_around_a_network_is_left_out(tmp_path, monkeypatch, weights):
    attributes = named_class(monkeypatch, "pytorch_lightning.utilities.parsing", "AttributeDict", dict)
    state = {f"net.{name}": weight for name, weight in weights.items()}
    state |= {"criterion.weight": torch.ones(7), "val_acc.tp": torch.ones(7), "ema_decay": torch.tensor(0.9)}
    torch.save({"state_dict": state, "hyper_parameters": attributes(lr=0.1)}, tmp_path / "last.ckpt")
    trained, _ = trained_and_untrained(network, read(tmp_path / "last.ckpt"), seed=0)
    assert all(torch.equal(weight, weights[name]) for name, weight in trained.state_dict().items())


def test_a_network_that_is_there_twice_is_not_chosen_between(tmp_path, weights):
    twice = {f"{part}.{name}": weight for name, weight in weights.items() for part in ("student", "teacher.ema")}
    torch.save(twice, tmp_path / "net.pt")
    with pytest.raises(ValueError, match=r"has the network 2 times, under student\., teacher\.ema\.: save one of"):
        trained_and_untrained(network, read(tmp_path / "net.pt"), seed=0)


def test_weights_that_the_network_lacks_are_refused_also_behind_a_prefix(tmp_path, weights):
    state = {f"net.{name}": weight for name, weight in weights.items()}
    torch.save({**state, "net.more.weight": torch.ones(1), "loss.weight": torch.ones(1)}, tmp_path / "net.pt")
    with pytest.raises(ValueError, match=r"^also has more\.weight$"):
        trained_and_untrained(network, read(tmp_path / "net.pt"), seed=0)


def test_the_history_that_mmengine_keeps_is_passed_over(tmp_path, monkeypatch, weights):
    history = named_class(monkeypatch, "mmengine.logging.history_buffer", "HistoryBuffer")
    history.mean = lambda self: 0
    history.mean.__module__, history.mean.__qualname__ = history.__module__, "HistoryBuffer.mean"
    loss = history()
    loss.__dict__.update(log=np.ones(3), statistics_methods=OrderedDict(mean=history.mean))
    torch.save({"state_dict": weights, "message_hub": {"log_scalars": OrderedDict(loss=loss)}}, tmp_path / "epoch.pth")
    assert read(tmp_path / "epoch.pth").weights.keys() == weights.keys()


class Calls:
    """Pickles as the call of a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call

    def __call__(self):
        """Never called; pickle asks a function to be callable."""


class WithState(argparse.Namespace):
    """Pickles as a Namespace whose state holds a call."""

    def __reduce__(self):
        return argparse.Namespace, (), {"__setstate__": os.system, "inner": self.inner}


def stored(place):
    """A file of NumPy that leaves a folder when it is loaded with its pickles."""
    np.save(place.with_suffix(".npy"), np.array([Calls(os.mkdir, str(place))], dtype=object))
    return str(place.with_suffix(".npy"))


CODE = {
    "a command": lambda place: Calls(os.system, f"mkdir {place}"),
    "an expression": lambda place: Calls(eval, f"__import__('os').mkdir({str(place)!r})"),
    "statements": lambda place: Calls(exec, f"import os; os.mkdir({str(place)!r})"),
    "a call to come": lambda place: Calls(functools.partial(os.mkdir, str(place))),
    "a method": lambda place: Calls(Calls(getattr, Path(place), "mkdir")),
    "a file of NumPy": lambda place: Calls(np.load, stored(place), None, True),
    "in an array": lambda place: np.array([Calls(os.mkdir, str(place))], dtype=object),
    "in a namespace": lambda place: WithState(inner=Calls(os.mkdir, str(place))),
    "in a mapping": lambda place: defaultdict(list, a=Calls(os.mkdir, str(place))),
    "as a default": lambda place: defaultdict(functools.partial(os.mkdir, str(place))),
}


@pytest.mark.parametrize("first", [{}, {"conv.weight": torch.ones(1)}], ids=["no weights", "weights"])
@pytest.mark.parametrize("kind", CODE)
def test_code_in_a_file_is_refused_and_not_run(tmp_path, kind, first):
    torch.save({"state_dict": first, "extra": CODE[kind](tmp_path / "run")}, tmp_path / "evil.pt")
    said = "not a checkpoint of torch" if kind == "a method" else "which is code and not weights, and was not run"
    with pytest.raises(UsageError, match=said):
        read(tmp_path / "evil.pt")
    assert not (tmp_path / "run").exists()
    if kind not in ("as a default", "in a namespace"):  # these are built, not called
        torch.load(tmp_path / "evil.pt", weights_only=False)
        assert (tmp_path / "run").exists(), "where it is trusted the code does run"


def test_nothing_that_files_may_name_is_the_thing_itself():
    assert {kind for kind, _ in PLAIN} == {IgnoredValue, EmptyMapping}
    assert type(IgnoredValue(os.system, "x")) is IgnoredValue
    assert not vars(IgnoredValue(1, 2))
    assert EmptyMapping(list) == {}


@pytest.mark.parametrize(
    ("weight", "words"),
    [
        (torch.ones(2, 3, dtype=torch.complex64), "is torch.complex64"),
        (torch.ones(2, 3, device="meta"), "has no values"),
    ],
    ids=["complex", "meta"],
)
def test_weights_that_are_no_real_numbers_are_refused(tmp_path, weight, words):
    torch.save({"hidden.weight": weight}, tmp_path / "weights.pt")
    with pytest.raises(UsageError, match=rf"hidden\.weight {words}"):
        read_checkpoint(str(tmp_path / "weights.pt"), {})
