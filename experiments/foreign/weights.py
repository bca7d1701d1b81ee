"""Weights that were trained elsewhere, into a network: files of torch or safetensors, or torchvision's own by name.

A checkpoint of strangers is data: pickled objects other than tensors and plain values are refused and never run.
"""

from __future__ import annotations

import copy
import pickle
import re
import socket
import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from experiments.errors import UsageError

# Under these keys trainers keep the weights; of several the first counts, so that averages come last.
CONTAINERS = ("state_dict", "model_state_dict", "model_state", "model", "module", "net", "network", "weights", "params")
CONTAINERS += ("state_dict_ema", "model_ema", "ema_state_dict", "ema")
# Before every name: of DataParallel, torch.compile, Lightning, Accelerate and hand-written modules.
WRAPPERS = ("module.", "_orig_mod.", "model.", "net.", "network.", "_forward_module.", "ema_model.")
NORM_COUNTER = "num_batches_tracked"  # of norms; old files lack it
WRAPPER_COUNTERS = ("n_averaged",)  # of wrappers, not of the network
MAX_NAMES = 3  # of the names that do not fit, in an error
DOWNLOAD_TIMEOUT_S = 30  # without a byte
AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")  # heads that torchvision's Inceptions have in training alone
PROBE_CLASSES = 1009  # a width that no layer has but the classifier
# Names of the first DenseNets, from before a module's name could not hold a dot.
DENSENET = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.(\d\.)")

State = Mapping[str, Tensor]


class IgnoredValue:
    """Placeholder for a plain value in a file: it drops the value and calls no code."""

    def __new__(cls, *_: object) -> IgnoredValue:
        """Make one of any arguments."""
        return super().__new__(cls)

    def __setstate__(self, state: object) -> None:
        pass


class EmptyMapping:
    """Placeholder for a mapping in a file: an empty ``OrderedDict``, to which the entries are added."""

    def __new__(cls, *_: object) -> OrderedDict[object, object]:  # type: ignore[misc]
        """Make an empty one of any arguments."""
        return OrderedDict()


# Objects that training scripts save with weights. None of them is made or called: an ``IgnoredValue`` replaces each.
VALUES = {
    "argparse": ["Namespace"],
    "builtins": ["bool", "float", "frozenset", "getattr", "int", "list", "range", "slice", "str", "tuple"],
    "collections": ["deque"],
    "datetime": ["date", "datetime", "time", "timedelta", "timezone"],
    "decimal": ["Decimal"],
    "mmengine.logging.history_buffer": ["HistoryBuffer"],
    "numpy": ["dtype", "ndarray"],
    "numpy.core.multiarray": ["_reconstruct", "scalar"],  # before NumPy 2
    "numpy._core.multiarray": ["_reconstruct", "scalar"],
    "omegaconf.base": ["ContainerMetadata", "Metadata"],
    "omegaconf.dictconfig": ["DictConfig"],
    "omegaconf.listconfig": ["ListConfig"],
    "omegaconf.nodes": ["AnyNode", "BooleanNode", "FloatNode", "IntegerNode", "PathNode", "StringNode"],
    "pathlib": ["Path", "PosixPath", "PurePath", "PurePosixPath", "PureWindowsPath", "WindowsPath"],
    "pathlib._local": ["Path", "PosixPath", "PurePath", "PurePosixPath", "PureWindowsPath", "WindowsPath"],
    "torch.torch_version": ["TorchVersion"],
    "types": ["SimpleNamespace"],
    "typing": ["Any"],
    "uuid": ["UUID"],
}
MAPPINGS = {
    "builtins": ["dict"],
    "collections": ["defaultdict"],
    "lightning.fabric.utilities.data": ["AttributeDict"],
    "lightning_fabric.utilities.data": ["AttributeDict"],
    "pytorch_lightning.utilities.parsing": ["AttributeDict"],
}
PLAIN: list[Any] = [
    (kind, f"{module}.{name}")
    for kind, places in ((IgnoredValue, VALUES), (EmptyMapping, MAPPINGS))
    for module, names in places.items()
    for name in names
]


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """Weights by name.

    Attributes:
        name: of the file without its ending, or of torchvision's weights.
        weights: as in the file, without what wraps them.
        published: torchvision's entry of these weights, with the preprocessing of images; None if it has none.
    """

    name: str
    weights: State
    published: Any = None


def read_checkpoint(where: str, published: Mapping[str, Any]) -> Checkpoint:
    """Read weights.

    Args:
        where: path of a file (``.safetensors``, or any that ``torch.save`` wrote), or a name in ``published``.
        published: torchvision's weights of the model, by name.

    Raises:
        UsageError: no such file or name, a failed download, a damaged file, one that holds more than data or no
            weights, weights that are complex, not finite, or without values.
    """
    path = Path(where).expanduser()
    if path.is_file():
        entry = next((w for w in published.values() if w.url.rsplit("/", 1)[-1] == path.name), None)
        # Every run calls its file checkpoint.pt; its folder names the run.
        name = path.resolve().parent.name if path.stem == "checkpoint" else path.stem
        checkpoint = Checkpoint(name, _weights(_read_file(path, where), where), entry)
    elif where.split(".")[-1] in published:
        name = where.split(".")[-1]
        checkpoint = Checkpoint(name, _weights(_download(published[name], where), where), published[name])
    else:
        raise UsageError(_missing_file(path, where, published))
    for name, weight in checkpoint.weights.items():
        if weight.is_meta:
            raise UsageError(f"--checkpoint={where}: {name} has no values: it was saved from the meta device")
        if weight.is_complex():
            raise UsageError(f"--checkpoint={where}: {name} is {weight.dtype}: the weights must be real")
        if not torch.isfinite(weight).all():
            raise UsageError(f"--checkpoint={where}: {name} is not finite: the training that left it had diverged")
    return checkpoint


def trained_and_untrained(
    build: Callable[[int], nn.Module], checkpoint: Checkpoint, seed: int
) -> tuple[nn.Module, nn.Module]:
    """Return the network with the weights, and the same network as it is before training.

    Args:
        build: from a number of classes to the network, freshly initialised.
        checkpoint: the width of its last layer is the number of classes.
        seed: seed of the untrained network.

    Raises:
        ValueError: the weights are not those of the network; names the ones that differ.
    """
    probe = build(PROBE_CLASSES).state_dict()
    weights = _network_part(probe, checkpoint.weights)
    heads = [name for name, weight in probe.items() if weight.dim() > 0 and len(weight) == PROBE_CLASSES]
    counts = [len(weights[name]) for name in heads if weights.get(name, torch.tensor(0)).dim()]
    torch.manual_seed(seed)
    untrained = build(counts[-1] if counts else PROBE_CLASSES)
    if misfit := _differences(untrained.state_dict(), weights):
        raise ValueError(misfit)
    trained = copy.deepcopy(untrained)
    trained.load_state_dict(weights, strict=False)  # old files lack the counters of batch norms
    return trained.eval(), untrained.eval()


def _missing_file(path: Path, where: str, published: Mapping[str, Any]) -> str:
    if path.is_dir():
        inside = sorted(file.name for file in path.iterdir() if file.suffix in (".pt", ".pth", ".safetensors"))
        return f"--checkpoint={where}: is a folder; name the file in it" + (f", such as {inside[0]}" if inside else "")
    text = f"--checkpoint={where}: there is no such file"
    if published:
        near = get_close_matches(where.split(".")[-1], published, n=1)
        text += f"; torchvision's own weights are {', '.join(published)}"
        text += f": did you mean {near[0]}?" if near else ""
    return text


def _read_file(path: Path, where: str) -> object:
    if path.suffix == ".safetensors":
        return _read_safetensors(path, where)
    try:
        # A warning on pickles does not concern weights.
        with torch.serialization.safe_globals(PLAIN), warnings.catch_warnings(action="ignore"):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        code = re.search(r"GLOBAL (\S+)", str(error))
        if code is None:
            raise UsageError(f"--checkpoint={where}: not a checkpoint of torch, or a damaged one") from None
        raise UsageError(
            f"--checkpoint={where}: holds {code[1]}, which is code and not weights, and was not run; "
            f"save model.state_dict() alone, or convert the file to safetensors"
        ) from None
    except OSError:  # the command line reports it with its path
        raise
    except Exception:  # a damaged file fails in many ways
        raise UsageError(f"--checkpoint={where}: not a checkpoint of torch, or a damaged one") from None


def _read_safetensors(path: Path, where: str) -> object:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError:
        raise UsageError(f"--checkpoint={where}: to read it, run pip install safetensors") from None
    try:
        return load_file(path)
    except SafetensorError as error:
        raise UsageError(f"--checkpoint={where}: not a safetensors file, or a damaged one ({error})") from None


def _download(entry: Any, where: str) -> object:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT_S)
    try:
        return entry.get_state_dict(progress=True, check_hash=True, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, pickle.UnpicklingError) as error:  # URLError is an OSError
        reason = " ".join(str(error).split())
        raise UsageError(
            f"--checkpoint={where}: the download failed ({reason}); check the network, or give the file of {entry.url}"
        ) from None
    finally:
        socket.setdefaulttimeout(before)


def _weights(content: object, where: str) -> dict[str, Tensor]:
    """Return the weights in the content of a file, by their names in the network itself."""
    while isinstance(content, Mapping):
        inner = next((content[key] for key in CONTAINERS if isinstance(content.get(key), Mapping)), None)
        if inner is None:
            break
        content = inner
    mapping = content if isinstance(content, Mapping) else {}
    weights = {str(name): weight for name, weight in mapping.items() if isinstance(weight, Tensor)}
    if not weights:
        keys = ", ".join(map(str, list(mapping)[:8]))
        held = f"its keys are {keys}" if keys else f"it is a {type(content).__name__}"
        raise UsageError(f"--checkpoint={where}: holds no weights by name, as model.state_dict() has them: {held}")
    while wrapper := next((w for w in WRAPPERS if _have_prefix(w, weights)), None):
        weights = {name.removeprefix(wrapper): weight for name, weight in weights.items() if name.startswith(wrapper)}
    return {DENSENET.sub(r"\1\2", name): w for name, w in weights.items() if not name.startswith(AUXILIARY)}


def _have_prefix(prefix: str, weights: State) -> bool:
    """Tell if every weight has the prefix, but for the counters of wrappers."""
    wrapped = [name for name in weights if name.startswith(prefix)]
    return bool(wrapped) and all(name.startswith(prefix) or name in WRAPPER_COUNTERS for name in weights)


def _network_part(model: State, weights: State) -> State:
    """Return the weights under the one prefix that has all of the network, without losses and metrics.

    Raises:
        ValueError: several prefixes have all of it.
    """
    needed = [name for name in model if not name.endswith(NORM_COUNTER)]
    if all(name in weights for name in needed):
        return weights
    first = needed[0]
    prefixes = [name.removesuffix(first) for name in weights if name.endswith(f".{first}")]
    whole = [prefix for prefix in prefixes if all(prefix + name in weights for name in needed)]
    if len(whole) > 1:
        raise ValueError(f"has the network {len(whole)} times, under {', '.join(whole)}: save one of them alone")
    if not whole:
        return weights
    return {name.removeprefix(whole[0]): weight for name, weight in weights.items() if name.startswith(whole[0])}


def _differences(model: State, weights: State) -> str:
    """Return how the weights differ from the model, in words; empty if they fit."""
    missing = [name for name in model if name not in weights and not name.endswith(NORM_COUNTER)]
    unexpected = [name for name in weights if name not in model]
    shapes = [
        f"{name} of {_shape(weights[name])} where the network has {_shape(model[name])}"
        for name in model
        if name in weights and weights[name].shape != model[name].shape
    ]
    kinds = {"lacks": missing, "also has": unexpected, "differs in": shapes}
    return "; ".join(f"{kind} {_some(names)}" for kind, names in kinds.items() if names)


def _some(names: list[str]) -> str:
    more = len(names) - MAX_NAMES
    return ", ".join(names[:MAX_NAMES]) + (f" and {more} more" if more > 0 else "")


def _shape(weight: Tensor) -> str:
    return " × ".join(map(str, weight.shape)) or "one number"
