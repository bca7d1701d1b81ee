"""What computes a layer, why, and how far that is from what the hardware allows.

The floor of an op is the longer of two times: that of its multiply-accumulates at the device's peak, and that of moving
its operands through memory once. Where the peaks of a device are not known, the floor is told relative to the dense
layer: connected channel pairs over all pairs, 1/G for G equal groups.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from gconv import dispatch
from gconv.conv import GroupedConv2d
from gconv.geometry import Geometry
from gconv.kernels import OPS
from gconv.kernels.choose import APART, choose, pixel_bits, together

# Multiply-accumulates per second of 16-bit matrices and bytes per second of a copy, both as measured.
PEAKS = {"NVIDIA H200": (395e12, 4.3e12)}
SIXTEEN_BITS = (torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class OpExplanation:
    """One op of a layer, or a training step.

    Attributes:
        op: ``conv2d``, ``input_gradient``, ``weight_gradient``, or ``step``, all three.
        kernel, reason: what computes it, and why.
        macs: multiply-accumulates of connected channels.
        bytes: of its operands and its result, each once.
        floor: seconds, or None where the device's peaks are not known.
        seconds: what each kernel took on the measured layer that decided; empty if none did.
        of_dense: measured time of the chosen kernel over that of the dense layer, if both are known.
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
    """What computes the three ops of a layer, and a training step of it; printed as a few lines."""

    layer: str
    share: float  # connected channel pairs over all pairs: the ideal share of the dense time
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


def explain(
    layer: GroupedConv2d, input_shape: tuple[int, ...], dtype: torch.dtype | None = None, channels_last: bool = True
) -> Explanation:
    """What computes a layer on its device, for inputs of one shape.

    Args:
        layer: any grouped convolution.
        input_shape: (N, C, H, W), or (C, H, W) of one image.
        dtype: that it computes in; that of its weight unless given. Under autocast give autocast's.
        channels_last: whether its input is.

    Raises:
        ValueError: the layer does not take such inputs.
    """
    shape = (1, *input_shape) if len(input_shape) == 3 else tuple(input_shape)
    geometry = layer.geometry
    if len(shape) != 4 or shape[1] != geometry.in_groups.channels or min(geometry.output_size(shape[2:])) < 1:
        raise ValueError(f"input of shape {tuple(input_shape)}: the layer ({geometry}) does not take it")
    dtype = dtype or layer.weight.dtype
    device = layer.weight.device
    case = (geometry, dtype, device, channels_last, pixel_bits(shape[0], *shape[2:]))
    forced = dispatch.forced(geometry, dtype, device)
    one = None if forced else together(*case)
    macs, numbers = floor_of(geometry, shape)
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
    return Explanation(where, share_of_dense(geometry), tuple(ops))


def share_of_dense(geometry: Geometry) -> float:
    """Connected channel pairs over all pairs: the share of the dense layer's time that is ideal."""
    return sum(geometry.links) / (geometry.in_groups.channels * geometry.out_groups.channels)


def floor_of(geometry: Geometry, input_shape: tuple[int, ...]) -> tuple[int, int]:
    """Multiply-accumulates of any of the three ops, and numbers that it reads or writes at least: the same for each."""
    batch, channels, height, width = input_shape
    out_height, out_width = geometry.output_size((height, width))
    outputs = batch * out_height * out_width
    taps = geometry.kernel_size[0] * geometry.kernel_size[1]
    links = sum(geometry.links)
    numbers = batch * channels * height * width + outputs * geometry.out_groups.channels + links * taps
    return outputs * links * taps, numbers


def seconds_of(macs: int, size: int, dtype: torch.dtype, device: torch.device) -> float | None:
    """The floor in seconds of so many multiply-accumulates and bytes; None where the device's peaks are not known."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    if name not in PEAKS or dtype not in SIXTEEN_BITS:
        return None
    macs_per_second, bytes_per_second = PEAKS[name]
    return max(macs / macs_per_second, size / bytes_per_second)
