"""Kernel chosen for each op of a layer, the reason, and the time relative to the bound of the hardware.

The floor of an op is the longer of two times: that of its multiply-accumulates at the peak rate of the device, and that
of moving its operands through memory once. For a device with unknown peaks the bound is relative to the dense layer:
connected channel pairs over all pairs, which is 1/G for G equal groups.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from gconv.conv import GroupedConv2d
from gconv.kernels import OPS
from gconv.kernels.aten import is_channels_last
from gconv.kernels.choose import APART, choose, pixel_bits, together
from gconv.kernels.geometry import Geometry
from gconv.operator import dispatch
from gconv.wiring.meta import Shape, image_shape, raise_if_scripted_or_lazy, run_on_meta, unwrapped
from gconv.wiring.text_table import aligned

# Multiply-accumulates per second of 16-bit matrix products, and bytes per second of a copy. Measured on the H200; for
# the others 0.8 and 0.9 of the data sheet, the fractions that the H200 reaches.
PEAK_RATES = {
    "NVIDIA H200": (395e12, 4.3e12),
    "NVIDIA H100 80GB HBM3": (395e12, 3.0e12),
    "NVIDIA A100-SXM4-80GB": (125e12, 1.8e12),
    "NVIDIA A100-SXM4-40GB": (125e12, 1.4e12),
    "NVIDIA A100 80GB PCIe": (125e12, 1.7e12),
    "NVIDIA GeForce RTX 4090": (66e12, 0.9e12),
}
DTYPES_16_BIT = (torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class OpExplanation:
    """One op of a layer, or a training step.

    Attributes:
        op: ``conv2d``, ``input_gradient``, ``weight_gradient``, or ``step`` for all three.
        kernel, reason: name of the kernel, and the reason of the choice.
        macs: multiply-accumulates of connected channels.
        bytes: size of the operands and the result, each counted once.
        floor: lower bound of the time in seconds; None if the peak rates of the device are not known.
        seconds: seconds of each kernel on the measured layer that decided the choice; empty if none did.
        of_dense: measured time of the chosen kernel divided by that of the dense layer, if both are known.
    """

    op: str
    kernel: str
    reason: str
    macs: int
    bytes: int
    floor: float | None
    seconds: dict[str, float]
    of_dense: float | None


@dataclass(frozen=True)
class Explanation:
    """Kernels chosen for the three ops of a layer and for a training step of it. Prints as a few lines.

    Attributes:
        layer: geometry, input, dtype, layout and device in words.
        groups, input_shape: groups of the layer, and shape (N, C, H, W) of its input.
        share: connected channel pairs over all pairs: the ideal fraction of the dense time.
        ops: the three ops, then the step.
    """

    layer: str
    groups: str
    input_shape: tuple[int, ...]
    share: float
    ops: tuple[OpExplanation, ...]

    def __str__(self) -> str:
        lines = [self.layer, f"ideal share of the dense time: {self.share:.3f}"]
        for op in self.ops:
            far = "" if op.floor is None else f", floor {1e6 * op.floor:.1f} µs"
            if op.of_dense is not None:
                far += f", measured {op.of_dense:.3f} of dense, {op.of_dense / self.share:.2f} × ideal"
            if op.kernel in op.seconds:
                others = sorted((t, name) for name, t in op.seconds.items() if name not in (op.kernel, "dense"))
                far += "".join(f", {name} {t / op.seconds[op.kernel]:.2f} × as long" for t, name in others)
            lines.append(f"  {op.op:<16} {op.kernel:<9} {op.reason}; {op.macs:,} MACs, {op.bytes:,} bytes{far}")
        return "\n".join(lines)


@dataclass(frozen=True)
class ModelExplanation:
    """Kernels chosen for the grouped convolutions of a model, in the order of the modules. Prints as a table.

    Attributes:
        layers: explanation of each GroupedConv2d that the model calls, by name.
        others: number of other convolutions, which torch itself computes.
    """

    layers: Mapping[str, Explanation]
    others: int

    def __str__(self) -> str:
        header = ["layer", "groups", "input", *OPS, "step", "share of dense"]
        rows = [
            [name, e.groups, "×".join(map(str, e.input_shape)), *(op.kernel for op in e.ops), f"{e.share:.3f}"]
            for name, e in self.layers.items()
        ]
        table = aligned(header, rows, texts=len(header) - 1)
        others = f"{self.others} other convolution{'' if self.others == 1 else 's'}"
        return table + (f"\n{others}: torch's own" if self.others else "")


def explain(
    model: nn.Module, input_shape: Shape, dtype: torch.dtype | None = None, channels_last: bool | None = None
) -> Explanation | ModelExplanation:
    """Explain which kernels compute a layer, or each grouped convolution of a model, for inputs of one shape.

    Args:
        model: a grouped convolution, or any model with grouped convolutions, for example in Blocks.
        input_shape: (N, C, H, W), or (C, H, W) of one image; or a tensor of one of these shapes.
        dtype: dtype of the computation; by default that of the weight. For autocast pass the dtype of autocast.
        channels_last: True for inputs in channels_last; by default the format of the tensor if one is given, else True.

    Raises:
        TypeError: ``model`` is no module, or ``input_shape`` no shape.
        ValueError: the layer or model does not take such inputs, or the model holds no grouped convolution.
    """
    model = unwrapped(model, "explain")
    raise_if_scripted_or_lazy(model, "explain")
    image = image_shape(input_shape, model)
    sizes = tuple(getattr(input_shape, "shape", input_shape))
    batch = int(sizes[0]) if len(sizes) > len(image) else 1
    if channels_last is None:
        is_batch = isinstance(input_shape, Tensor) and input_shape.dim() == 4
        channels_last = is_channels_last(input_shape) if is_batch else True  # type: ignore[arg-type]
    if isinstance(model, GroupedConv2d):
        return _explain(model, (batch, *image), dtype, channels_last)
    inputs = _inputs(model, image)
    if not inputs:
        kind = type(model).__name__
        raise ValueError(
            f"explain: {kind} calls no GroupedConv2d, so torch itself computes its convolutions; give a GroupedConv2d, "
            "or a model that holds some, as gconv.regroup makes"
        )
    layers = {
        name: _explain(m, (batch, *inputs[m]), dtype, channels_last) for name, m in _grouped(model) if m in inputs
    }
    others = sum(isinstance(m, _ConvNd) and not isinstance(m, GroupedConv2d) for m in model.modules())
    return ModelExplanation(layers, others)


def _grouped(model: nn.Module) -> list[tuple[str, GroupedConv2d]]:
    return [(name, module) for name, module in model.named_modules() if isinstance(module, GroupedConv2d)]


def _inputs(model: nn.Module, image: tuple[int, ...]) -> dict[nn.Module, tuple[int, ...]]:
    """Return the input shape of each grouped convolution for one image, without batch, at its first call."""
    inputs: dict[nn.Module, tuple[int, ...]] = {}

    def record(module: nn.Module, args: tuple) -> None:
        inputs.setdefault(module, tuple(args[0].shape)[-3:])

    handles = [module.register_forward_pre_hook(record) for _, module in _grouped(model)]
    try:
        run_on_meta(model, image)
    finally:
        for handle in handles:
            handle.remove()
    return inputs


def _explain(
    layer: GroupedConv2d, shape: tuple[int, ...], dtype: torch.dtype | None, channels_last: bool
) -> Explanation:
    """Explain one layer for an input of shape (N, C, H, W)."""
    geometry = layer.geometry
    left, right, top, bottom = layer._pad_first or (0, 0, 0, 0)
    padded = shape if len(shape) != 4 else (*shape[:2], shape[2] + top + bottom, shape[3] + left + right)
    if len(shape) != 4 or shape[1] != geometry.in_groups.channels or min(geometry.output_size(padded[2:])) < 1:
        given = shape if shape[0] > 1 else shape[1:]
        raise ValueError(f"input of shape {given}: the layer ({geometry}) does not take it")
    dtype = dtype or layer.weight.dtype
    device = layer.weight.device
    case = (geometry, dtype, device, channels_last, pixel_bits(shape[0], *padded[2:]))
    forced = dispatch.forced(geometry, dtype, device)
    one = None if forced else together(*case)
    macs, numbers = floor_of(geometry, padded)
    ops = []
    for op in (*OPS, "step"):
        choice = choose(op, *case)
        name, reason = choice.kernel, choice.reason
        if op == "step":
            name = one or APART
            reason = f"{name} for all three, differentiated by torch" if one else "each op by its own kernel"
        if forced:
            name, reason = forced, "forced"
        seconds = dict(choice.seconds)
        known = name in seconds and "dense" in seconds
        of_dense = seconds[name] / seconds["dense"] if known else None
        work, size = (3 if op == "step" else 1) * macs, (3 if op == "step" else 1) * numbers * dtype.itemsize
        floor = seconds_of(work, size, dtype, device)
        ops.append(OpExplanation(op, name, reason, work, size, floor, seconds, of_dense))
    layout = "channels_last" if channels_last else "contiguous"
    where = f"{geometry}; {' × '.join(map(str, shape))} {str(dtype).removeprefix('torch.')} {layout} on {device}"
    return Explanation(where, str(geometry.out_groups), shape, share_of_dense(geometry), tuple(ops))


def share_of_dense(geometry: Geometry) -> float:
    """Return connected channel pairs over all pairs: the ideal fraction of the time of the dense layer."""
    return sum(geometry.links) / (geometry.in_groups.channels * geometry.out_groups.channels)


def floor_of(geometry: Geometry, input_shape: tuple[int, ...]) -> tuple[int, int]:
    """Return the multiply-accumulates of an op, and the elements that it must read and write."""
    batch, channels, height, width = input_shape
    out_height, out_width = geometry.output_size((height, width))
    outputs = batch * out_height * out_width
    taps = geometry.kernel_size[0] * geometry.kernel_size[1]
    links = sum(geometry.links)
    numbers = batch * channels * height * width + outputs * geometry.out_groups.channels + links * taps
    return outputs * links * taps, numbers


def seconds_of(macs: int, size: int, dtype: torch.dtype, device: torch.device) -> float | None:
    """Return the floor in seconds; None if the peak rates of the device are not known.

    Args:
        macs: multiply-accumulates.
        size: bytes moved.
        dtype, device: dtype and device of the computation.
    """
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    if name not in PEAK_RATES or dtype not in DTYPES_16_BIT:
        return None
    macs_per_second, bytes_per_second = PEAK_RATES[name]
    return max(macs / macs_per_second, size / bytes_per_second)
