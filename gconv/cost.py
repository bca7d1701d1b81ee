"""What a model costs: exact parameters, MACs and activations per layer; measured latency and memory.

MACs are multiply-accumulates of convolutions and linear layers without biases, half of torch's forward FLOP count;
activations are the elements that convolutions put out (Radosavovic et al. 2020, arXiv 2003.13678). Both are counted for
one image, on the meta device: nothing is computed, so any model is counted at once.
"""

from __future__ import annotations

import statistics
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

from gconv.wiring.meta import Shape, image_shape, raise_if_closed, run_on_meta, unwrapped
from gconv.wiring.text_table import MOST_ROWS, aligned

PARAMETRISATIONS = ".parametrizations."


@dataclass(frozen=True)
class LayerCost:
    """What one module costs for one image, its submodules not included.

    Attributes:
        name, kind: of the module.
        parameters: learned numbers, biases included.
        macs: multiply-accumulates of the forward pass.
        activations: elements put out, convolutions only.
    """

    name: str
    kind: str
    parameters: int
    macs: int
    activations: int


@dataclass(frozen=True)
class Cost:
    """What a model costs for one image: per layer, in the order of the modules, and in sum; printed as a table."""

    layers: tuple[LayerCost, ...]

    @property
    def parameters(self) -> int:
        """Learned numbers."""
        return sum(layer.parameters for layer in self.layers)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one forward pass."""
        return sum(layer.macs for layer in self.layers)

    @property
    def activations(self) -> int:
        """Elements that convolutions put out."""
        return sum(layer.activations for layer in self.layers)

    def table(self, most: int | None = MOST_ROWS) -> str:
        """One line per layer, at most so many, and their sum."""
        header = ["layer", "kind", "parameters", "MACs", "activations"]
        rows = [
            [layer.name, layer.kind, f"{layer.parameters:,}", f"{layer.macs:,}", f"{layer.activations:,}"]
            for layer in self.layers
        ]
        total = ["total", "", f"{self.parameters:,}", f"{self.macs:,}", f"{self.activations:,}"]
        return aligned(header, rows, total, texts=2, most=most)

    def __str__(self) -> str:
        return self.table()


def count_cost(model: nn.Module, input_shape: Shape) -> Cost:
    """Count parameters, MACs and activations exactly.

    Dtypes and devices play no part. Of a model in ``torch.compile``, ``DataParallel`` or ``DistributedDataParallel``
    the model inside is counted. A parametrised layer is one layer with all parameters of its parametrisations.

    Args:
        model: any module, on any device; it is neither changed nor run there.
        input_shape: of one image, (C, H, W); or a batch of images, or its shape, of which one is counted.

    Raises:
        TypeError: arguments that are no model or no shape.
        ValueError: the model cannot take such an image, needs to know numbers in its ``forward``, or is scripted.
    """
    model = unwrapped(model, "count_cost")
    raise_if_closed(model, "count_cost")
    shape = image_shape(input_shape, model)
    spent, stack = _Spent(), list[tuple[str, int, int]]()
    macs: Counter[str] = Counter()
    activations: Counter[str] = Counter()

    def watch(name: str) -> tuple[Callable, Callable]:
        def enter(module: nn.Module, args: Any) -> None:
            stack.append((name, spent.macs, spent.activations))

        def leave(module: nn.Module, args: Any, output: Any) -> None:
            entered, macs_before, activations_before = stack.pop()
            for counts, count in (
                (macs, spent.macs - macs_before),
                (activations, spent.activations - activations_before),
            ):
                counts[entered] += count
                if stack:  # what the modules inside spend is theirs
                    counts[stack[-1][0]] -= count

        return enter, leave

    handles = []
    for name, module in model.named_modules():
        enter, leave = watch(name)
        handles += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
    try:
        with spent.counter:
            run_on_meta(model, shape)
    finally:
        for handle in handles:
            handle.remove()
    seen: set[int] = set()
    layers = []
    for name, module in model.named_modules():
        if PARAMETRISATIONS in f".{name}":
            continue  # counted with the layer that they belong to; its weight is computed once, not for each image
        owned = list(module.parameters(recurse=False))
        kind = type(module)
        if is_parametrized(module):
            owned += module.parametrizations.parameters()  # type: ignore[union-attr]
            kind = kind.__bases__[0]
        own = [p for p in owned if id(p) not in seen and not seen.add(id(p))]
        numbers = sum(p.numel() for p in own), macs[name], activations[name]
        if any(numbers):
            layers.append(LayerCost(name or type(model).__name__, kind.__name__, *numbers))
    return Cost(tuple(layers))


def count_training_macs(model: nn.Module, input_shape: Shape) -> int:
    """MACs of one forward and backward pass for one image, the gradient of the input included: 3 × forward.

    Args:
        model, input_shape: as of ``count_cost``, and raises the same.
    """
    model = unwrapped(model, "count_training_macs")
    raise_if_closed(model, "count_training_macs")
    shape = image_shape(input_shape, model)
    with flop_counter() as counter:
        outputs = [t for t in tree_leaves(run_on_meta(model, shape, requires_grad=True)) if isinstance(t, Tensor)]
        outputs = [t for t in outputs if t.requires_grad]
        if not outputs:
            raise ValueError(f"{type(model).__name__} puts out nothing that can be differentiated")
        torch.autograd.backward(outputs, [torch.ones_like(t) for t in outputs])
    return counter.get_total_flops() // 2


class _Spent:
    """MACs and elements put out by convolutions so far."""

    def __init__(self) -> None:
        self.counter = flop_counter(self._note)
        self.activations = 0

    @property
    def macs(self) -> int:
        return self.counter.get_total_flops() // 2

    def _note(self, out_shape: torch.Size) -> None:
        self.activations += out_shape.numel()


def flop_counter(on_convolution: Callable[[torch.Size], None] | None = None) -> FlopCounterMode:
    """The FLOP counter of torch, with its count of the backward pass of grouped convolutions put right.

    torch (2.11–2.13) counts the weight gradient as if every input channel met every output channel, G times too much.

    Args:
        on_convolution: called with the shape that each convolution puts out.
    """

    def forward_flops(
        x_shape: Any,
        w_shape: Any,
        _bias: Any,
        _stride: Any,
        _padding: Any,
        _dilation: Any,
        transposed: bool,
        *_: Any,
        out_shape: Any,
        **__: Any,
    ) -> int:
        if on_convolution is not None:
            on_convolution(torch.Size(out_shape))
        return conv_flop_count(x_shape, w_shape, out_shape, transposed=transposed)

    aten = torch.ops.aten
    mapping = {aten.convolution_backward: _backward_flops, aten.convolution: forward_flops}
    return FlopCounterMode(display=False, custom_mapping=mapping)


def _backward_flops(
    grad_out_shape: Any,
    x_shape: Any,
    w_shape: Any,
    _bias: Any,
    _stride: Any,
    _padding: Any,
    _dilation: Any,
    transposed: bool,
    _output_padding: Any,
    _groups: int,
    output_mask: list[bool],
    out_shape: Any,
) -> int:
    """Either gradient multiplies exactly as many pairs as the forward pass."""
    forward = conv_flop_count(x_shape, w_shape, grad_out_shape, transposed=transposed)
    return forward * (int(output_mask[0]) + int(output_mask[1]))


@dataclass(frozen=True)
class Latency:
    """Seconds per call: median and quartiles."""

    median: float
    lower: float
    upper: float


def measure_latencies(
    calls: Mapping[str, Callable[[], object]], device: torch.device, repeats: int
) -> dict[str, Latency]:
    """Time several calls side by side, in turn, so that a drifting machine treats them alike.

    Args:
        calls: what to time, by name; each is called once more beforehand to warm up.
        device: waited for before the clock is read.
        repeats: timed calls of each.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for repeat in range(repeats + 1):
        for name, call in calls.items():
            wait_for(device)
            start = time.perf_counter()
            call()
            wait_for(device)
            if repeat:
                seconds[name].append(time.perf_counter() - start)
    return {name: _quartiles(times) for name, times in seconds.items()}


def _quartiles(times: list[float]) -> Latency:
    if len(times) == 1:
        return Latency(times[0], times[0], times[0])
    lower, median, upper = statistics.quantiles(times, n=4, method="inclusive")
    return Latency(median, lower, upper)


def wait_for(device: torch.device) -> None:
    """Wait until a device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def measure_peak_memory(call: Callable[[], object], device: torch.device) -> int:
    """Bytes of tensors that ``call`` holds at once beyond those that lived before it.

    On CUDA the allocator's own peak, work space included; elsewhere the peak of live tensor storage.
    """
    if device.type == "cuda":
        call()
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with _StorageTracker() as tracker:
        call()
    return tracker.peak


class _StorageTracker(TorchDispatchMode):
    """Adds up the storages that operations create, and takes them off as they are freed."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        before = {t.untyped_storage()._cdata for t in _tensors((args, kwargs or {}))}
        output = func(*args, **(kwargs or {}))
        for tensor in _tensors(output):
            storage = tensor.untyped_storage()
            key = storage._cdata
            if key in before or key in self._known:
                continue
            self._known.add(key)
            self.live += storage.nbytes()
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._free, key, storage.nbytes())
        return output

    def _free(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


def _tensors(tree: Any) -> Iterator[Tensor]:
    return (leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor))
