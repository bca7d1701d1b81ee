"""What a model costs: exact parameters, MACs and activations per layer; measured latency and memory.

MACs are multiply-accumulates of convolutions and linear layers without biases, half of torch's forward FLOP count;
activations are the elements that convolutions put out (Radosavovic et al. 2020, arXiv 2003.13678). Both are counted for
one image, on the meta device: nothing is computed, so any model is counted at once.
"""

from __future__ import annotations

import statistics
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

from gconv.conv import GroupedConv2d


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
    """What a model costs for one image: per layer, in the order of the modules, and in sum."""

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


def count_cost(model: nn.Module, input_shape: tuple[int, ...]) -> Cost:
    """Count parameters, MACs and activations exactly.

    Args:
        model: any module, on any device; it is neither changed nor run there.
        input_shape: of one image, (C, H, W).

    Raises:
        ValueError: the model cannot take an input of this shape.
    """
    macs: dict[str, int] = {}
    activations: dict[str, int] = {}

    def watch(name: str) -> tuple[Callable, Callable]:
        def enter(module: nn.Module, args: Any) -> None:
            stack.append((name, counter.get_total_flops()))

        def leave(module: nn.Module, args: Any, output: Any) -> None:
            entered, before = stack.pop()
            spent = (counter.get_total_flops() - before) // 2
            inner = inside.pop(entered, 0)
            macs[entered] = macs.get(entered, 0) + spent - inner
            if stack:
                inside[stack[-1][0]] = inside.get(stack[-1][0], 0) + spent
            if isinstance(module, nn.Conv2d | GroupedConv2d):
                activations[entered] = activations.get(entered, 0) + output.numel()

        return enter, leave

    stack: list[tuple[str, int]] = []
    inside: dict[str, int] = {}
    handles = []
    for name, module in model.named_modules():
        enter, leave = watch(name)
        handles += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
    try:
        with flop_counter() as counter:
            _run_on_meta(model, torch.empty(1, *input_shape, device="meta"))
    finally:
        for handle in handles:
            handle.remove()
    seen: set[int] = set()
    layers = []
    for name, module in model.named_modules():
        own = [p for p in module.parameters(recurse=False) if id(p) not in seen and not seen.add(id(p))]
        layer = LayerCost(
            name or type(model).__name__,
            type(module).__name__,
            sum(p.numel() for p in own),
            macs.get(name, 0),
            activations.get(name, 0),
        )
        if layer.parameters or layer.macs:
            layers.append(layer)
    return Cost(tuple(layers))


def count_training_macs(model: nn.Module, input_shape: tuple[int, ...]) -> int:
    """MACs of one forward and backward pass for one image, the gradient of the input included: 3 × forward."""
    x = torch.empty(1, *input_shape, device="meta", requires_grad=True)
    with flop_counter() as counter:
        _run_on_meta(model, x).sum().backward()
    return counter.get_total_flops() // 2


def _run_on_meta(model: nn.Module, x: Tensor) -> Tensor:
    """Run a model on the meta device in evaluation mode, leaving it as it was."""
    training = {module: module.training for module in model.modules()}
    tensors: dict[str, Tensor] = {n: torch.empty_like(b, device="meta") for n, b in model.named_buffers()}
    tensors |= {n: torch.empty_like(p, device="meta").requires_grad_() for n, p in model.named_parameters()}
    model.eval()
    try:
        return torch.func.functional_call(model, tensors, (x,))
    except (RuntimeError, TypeError, ValueError, AssertionError) as error:
        shape = " × ".join(map(str, x.shape[1:]))
        raise ValueError(
            f"{type(model).__name__} cannot take an input of {shape}: {str(error).splitlines()[0]}"
        ) from None
    finally:
        for module, was_training in training.items():
            module.training = was_training


def flop_counter() -> FlopCounterMode:
    """The FLOP counter of torch, with its count of the backward pass of grouped convolutions put right.

    torch (2.11–2.13) counts the weight gradient as if every input channel met every output channel, G times too much.
    """
    return FlopCounterMode(display=False, custom_mapping={torch.ops.aten.convolution_backward: _backward_flops})


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
            _wait(device)
            start = time.perf_counter()
            call()
            _wait(device)
            if repeat:
                seconds[name].append(time.perf_counter() - start)
    return {name: _quartiles(times) for name, times in seconds.items()}


def _quartiles(times: list[float]) -> Latency:
    if len(times) == 1:
        return Latency(times[0], times[0], times[0])
    lower, median, upper = statistics.quantiles(times, n=4, method="inclusive")
    return Latency(median, lower, upper)


def _wait(device: torch.device) -> None:
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
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, list | tuple):
        for item in tree:
            yield from _tensors(item)
    elif isinstance(tree, dict):
        yield from _tensors(list(tree.values()))
