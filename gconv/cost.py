"""Cost of a model: exact parameters, MACs and activations per layer; measured latency and memory.

MACs are multiply-accumulates of convolutions and linear layers without biases, half of torch's forward FLOP count;
activations are the output elements of convolutions (Radosavovic et al. 2020, arXiv 2003.13678). Both are counted for
one image, on the meta device, without any computation.
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

from gconv.kernels.machine import synchronize
from gconv.wiring.meta import Shape, image_shape, raise_if_scripted_or_lazy, run_on_meta, unwrapped
from gconv.wiring.text_table import MAX_ROWS, aligned

PARAMETRISATIONS = ".parametrizations."


@dataclass(frozen=True)
class LayerCost:
    """Cost of one module for one image, without its submodules.

    Attributes:
        name, kind: name and type of the module.
        parameters: learned numbers, biases included.
        macs: multiply-accumulates of the forward pass.
        activations: output elements, of convolutions only.
    """

    name: str
    kind: str
    parameters: int
    macs: int
    activations: int


@dataclass(frozen=True)
class Cost:
    """Cost of a model for one image: per layer, in the order of the modules, and in total. Prints as a table."""

    layers: tuple[LayerCost, ...]

    @property
    def parameters(self) -> int:
        """Learned numbers of all layers."""
        return sum(layer.parameters for layer in self.layers)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one forward pass, of all layers."""
        return sum(layer.macs for layer in self.layers)

    @property
    def activations(self) -> int:
        """Output elements of all convolutions."""
        return sum(layer.activations for layer in self.layers)

    def table(self, most: int | None = MAX_ROWS) -> str:
        """Return one line per layer and the total; ``most`` limits the number of lines, None prints all."""
        header = ["layer", "kind", "parameters", "MACs", "activations"]
        rows = [
            [layer.name, layer.kind, f"{layer.parameters:,}", f"{layer.macs:,}", f"{layer.activations:,}"]
            for layer in self.layers
        ]
        total = ["total", "", f"{self.parameters:,}", f"{self.macs:,}", f"{self.activations:,}"]
        return aligned(header, rows, total, texts=2, max_rows=most)

    def __str__(self) -> str:
        return self.table()


def count_cost(model: nn.Module, input_shape: Shape) -> Cost:
    """Count parameters, MACs and activations exactly.

    The counts do not depend on dtype and device. Wrappers (``torch.compile``, ``DataParallel``,
    ``DistributedDataParallel``) are removed first. A parametrised layer is one layer with all parameters of its
    parametrisations.

    Args:
        model: any module, on any device. It is not changed, and not run on its device.
        input_shape: shape of one image, (C, H, W); or a batch of images, or its shape. One image is counted.

    Raises:
        TypeError: arguments that are no model or no shape.
        ValueError: the model cannot take such an image, is scripted, or has a ``forward`` that depends on the values of
            tensors.
    """
    model = unwrapped(model, "count_cost")
    raise_if_scripted_or_lazy(model, "count_cost")
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
                if stack:  # submodules are counted under their own names
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
            continue  # counted with their layer, whose weight is computed once, not for each image
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
    """Return the MACs of one forward and backward pass for one image: 3 × forward, with the gradient of the input.

    Args:
        model, input_shape: as in ``count_cost``.

    Raises:
        TypeError, ValueError: as ``count_cost``.
        ValueError: no output of the model can be differentiated.
    """
    model = unwrapped(model, "count_training_macs")
    raise_if_scripted_or_lazy(model, "count_training_macs")
    shape = image_shape(input_shape, model)
    with flop_counter() as counter:
        outputs = [t for t in tree_leaves(run_on_meta(model, shape, requires_grad=True)) if isinstance(t, Tensor)]
        outputs = [t for t in outputs if t.requires_grad]
        if not outputs:
            raise ValueError(f"{type(model).__name__} returns nothing that can be differentiated")
        torch.autograd.backward(outputs, [torch.ones_like(t) for t in outputs])
    return counter.get_total_flops() // 2


class _Spent:
    """MACs and output elements of convolutions, counted so far."""

    def __init__(self) -> None:
        self.counter = flop_counter(self._note)
        self.activations = 0

    @property
    def macs(self) -> int:
        return self.counter.get_total_flops() // 2

    def _note(self, out_shape: torch.Size) -> None:
        self.activations += out_shape.numel()


def flop_counter(on_convolution: Callable[[torch.Size], None] | None = None) -> FlopCounterMode:
    """Return torch's FLOP counter with a corrected count of the backward pass of grouped convolutions.

    torch (2.11–2.13) counts the weight gradient as if every input channel fed every output channel: G times too many.

    Args:
        on_convolution: called with the output shape of each convolution.
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
    """Return the FLOPs of the gradients asked for: each has as many as the forward pass."""
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
    """Time several calls in turn, so that slow drifts of the machine affect all of them equally.

    Args:
        calls: functions to time, by name; each is called once beforehand to warm up.
        device: device that is synchronised before the clock is read.
        repeats: number of timed calls of each function.

    Returns:
        Median and quartiles of each function by its name, in seconds.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for repeat in range(repeats + 1):
        for name, call in calls.items():
            synchronize(device)
            start = time.perf_counter()
            call()
            synchronize(device)
            if repeat:
                seconds[name].append(time.perf_counter() - start)
    return {name: _quartiles(times) for name, times in seconds.items()}


def _quartiles(times: list[float]) -> Latency:
    if len(times) == 1:
        return Latency(times[0], times[0], times[0])
    lower, median, upper = statistics.quantiles(times, n=4, method="inclusive")
    return Latency(median, lower, upper)


def measure_peak_memory(call: Callable[[], object], device: torch.device) -> int:
    """Return the peak number of bytes of the tensors that ``call`` creates.

    On CUDA it is the peak of the allocator, workspaces included, of a second call. On other devices it is the peak of
    the storages of live tensors.
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
    """Count the bytes of the storages that operations create, and subtract them when they are freed."""

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
