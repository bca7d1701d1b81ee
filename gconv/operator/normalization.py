"""Batch normalisation with the ReLU after it: folded into the convolution before it, or as one op of torch's library.

In evaluation it is an affine map of each channel, which the convolution can include:
(w · x + b - m) s + β = (s w) · x + (b - m) s + β with s = γ / √(v + ε), m and v the running mean and variance.

In training, ``normalize`` computes the normalisation from given statistics by plain operations, which a compiler fuses
to one kernel. On a CPU Inductor's kernel took 1.3 to 2.9 times as long as ATen's, so there ``gconv::normalize`` calls
ATen's.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from gconv.kernels.geometry import Geometry
from gconv.operator.library import concatenate_channels, concatenate_parameters, definitions, ops

definitions.define(
    "normalize(Tensor y, Tensor weight, Tensor bias, float eps, bool relu) -> (Tensor, Tensor, Tensor, Tensor)"
)
definitions.define(
    "normalize_backward(Tensor dz, Tensor y, Tensor? z, Tensor weight, Tensor mean, Tensor reciprocal, float eps) "
    "-> (Tensor, Tensor, Tensor)"
)


def fold(
    weight: Tensor, bias: Tensor | None, norm: nn.BatchNorm2d, geometry: Geometry | None = None
) -> tuple[Tensor, Tensor]:
    """Return weight and bias of a convolution that includes the batch normalisation after it, as in evaluation.

    Args:
        weight: (O, …), or (L, Kh, Kw) of uneven groups.
        bias: (O,) or None.
        norm: batch normalisation with running statistics of O channels.
        geometry: geometry of the convolution; not needed for equal groups.
    """
    assert norm.running_mean is not None and norm.running_var is not None
    scale_O = torch.rsqrt(norm.running_var + norm.eps)
    if norm.weight is not None:
        scale_O = scale_O * norm.weight
    shift_O = (-norm.running_mean if bias is None else bias - norm.running_mean) * scale_O
    if norm.bias is not None:
        shift_O = shift_O + norm.bias
    if geometry is None or geometry.is_uniform:
        folded = weight * scale_O.view(-1, 1, 1, 1)
    else:
        scales = scale_O.split(list(geometry.out_groups.sizes))
        pairs = zip(geometry.group_weights(weight), scales, strict=True)
        folded = torch.cat([(part * scale.view(-1, 1, 1, 1)).flatten(0, 1) for part, scale in pairs])
    return folded.to(weight.dtype), shift_O.to(weight.dtype)


def normalize(y: Tensor, mean: Tensor, var: Tensor, norm: nn.BatchNorm2d, relu: bool) -> Tensor:
    """Normalise by the mean and biased variance (O,) of ``y``, update the running statistics, apply the ReLU.

    Args:
        y: (N, O, H, W), with more than one value per channel.
        mean, var: statistics of ``y``.
        norm: supplies weight, bias and running statistics.
        relu: True if a ReLU follows.
    """
    check_count(y)
    count = y.numel() // y.shape[1]
    _update_running_statistics(norm, mean.detach(), var.detach() * (count / (count - 1)))
    scale = torch.rsqrt(var + norm.eps)
    if norm.weight is not None:
        scale = scale * norm.weight
    z = (y - mean.view(-1, 1, 1)) * scale.view(-1, 1, 1)
    if norm.bias is not None:
        z = z + norm.bias.view(-1, 1, 1)
    return (z.relu() if relu else z).to(y.dtype)


def normalize_by_aten(y: Tensor, norm: nn.BatchNorm2d, relu: bool) -> Tensor:
    """Normalise as ``normalize``, with the statistics of ``y``, by ATen's kernels as one op of torch's library."""
    check_count(y)
    kept = torch.promote_types(y.dtype, torch.float32)
    weight = y.new_ones(y.shape[1], dtype=kept) if norm.weight is None else norm.weight
    bias = torch.zeros_like(weight) if norm.bias is None else norm.bias
    z, mean, unbiased, _ = ops.normalize.default(y, weight, bias, norm.eps, relu)
    _update_running_statistics(norm, mean.detach(), unbiased.detach())
    return z


def check_count(y: Tensor) -> None:
    """Raise for a single value per channel, as ``nn.BatchNorm2d`` does: it has no variance."""
    if y.shape[0] * y.shape[2] * y.shape[3] == 1:
        raise ValueError(f"Expected more than 1 value per channel when training, got input size {y.shape}")


def _update_running_statistics(norm: nn.BatchNorm2d, mean: Tensor, unbiased: Tensor) -> None:
    """Update the running statistics as ``nn.BatchNorm2d`` does: by momentum, or as a cumulative mean without one."""
    if not norm.training or norm.running_mean is None or norm.running_var is None:
        return
    assert norm.num_batches_tracked is not None
    with torch.no_grad():
        norm.num_batches_tracked.add_(1)
        share = 1.0 / norm.num_batches_tracked.float() if norm.momentum is None else norm.momentum
        for running, new in ((norm.running_mean, mean), (norm.running_var, unbiased)):
            running.copy_((1 - share) * running + share * new)


def _run(y: Tensor, weight: Tensor, bias: Tensor, eps: float, relu: bool) -> tuple[Tensor, ...]:
    # With momentum 1 the running statistics become those of this batch.
    mean, unbiased = torch.zeros_like(weight), torch.zeros_like(weight)
    z, _, reciprocal = torch.native_batch_norm(y, weight, bias, mean, unbiased, True, 1.0, eps)
    return (z.relu_() if relu else z), mean, unbiased, reciprocal


def _fake(y: Tensor, weight: Tensor, bias: Tensor, eps: float, relu: bool) -> tuple[Tensor, ...]:
    return torch.empty_like(y), *(torch.empty_like(weight) for _ in range(3))


def _run_backward(
    dz: Tensor, y: Tensor, z: Tensor | None, weight: Tensor, mean: Tensor, reciprocal: Tensor, eps: float
) -> tuple[Tensor, ...]:
    dy = dz if z is None else torch.ops.aten.threshold_backward(dz, z, 0)
    wanted = [True, True, True]
    backward = torch.ops.aten.native_batch_norm_backward.default
    return backward(dy, y, weight, None, None, mean, reciprocal, True, eps, wanted)


def _fake_backward(dz: Tensor, y: Tensor, z: Tensor | None, weight: Tensor, *_: Any) -> tuple[Tensor, ...]:
    return torch.empty_like(y), torch.empty_like(weight), torch.empty_like(weight)


def _keep(ctx: Any, inputs: tuple, output: tuple[Tensor, ...]) -> None:
    y, weight, _, ctx.eps, relu = inputs
    z, mean, unbiased, reciprocal = output
    ctx.mark_non_differentiable(mean, unbiased, reciprocal)
    ctx.save_for_backward(y, weight, mean, reciprocal, *((z,) if relu else ()))


def _backward(ctx: Any, dz: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    y, weight, mean, reciprocal, *z = ctx.saved_tensors
    # ATen's gradients are differentiable once more. The op is not; it is for a compiler, which never needs it.
    gradients = _run_backward if torch.is_grad_enabled() else ops.normalize_backward.default
    return *gradients(dz, y, z[0] if z else None, weight, mean, reciprocal, ctx.eps), None, None


def _vmap(info: Any, dims: tuple, y: Tensor, weight: Tensor, bias: Tensor, *rest: Any) -> Any:
    k = info.batch_size
    affine = concatenate_parameters(weight, dims[1], k), concatenate_parameters(bias, dims[2], k)
    z, *statistics = ops.normalize.default(concatenate_channels(y, dims[0], k), *affine, *rest)
    return (z.unflatten(1, (k, -1)), *(part.unflatten(0, (k, -1)) for part in statistics)), (1, 0, 0, 0)


def _vmap_backward(info: Any, dims: tuple, dz: Tensor, y: Tensor, z: Tensor | None, *rest: Any) -> Any:
    k = info.batch_size
    images = (
        None if t is None else concatenate_channels(t, dim, k) for t, dim in zip((dz, y, z), dims[:3], strict=True)
    )
    channels = (concatenate_parameters(t, dim, k) for t, dim in zip(rest[:3], dims[3:6], strict=True))
    dy, *affine = ops.normalize_backward.default(*images, *channels, rest[3])
    return (dy.unflatten(1, (k, -1)), *(part.unflatten(0, (k, -1)) for part in affine)), (1, 0, 0)


for _name, _real, _faked, _mapped in (
    ("normalize", _run, _fake, _vmap),
    ("normalize_backward", _run_backward, _fake_backward, _vmap_backward),
):
    definitions.impl(_name, _real, "CompositeExplicitAutograd")
    torch.library.register_fake(f"gconv::{_name}", _faked, lib=definitions)
    torch.library.register_vmap(f"gconv::{_name}", _mapped, lib=definitions)
torch.library.register_autograd("gconv::normalize", _backward, setup_context=_keep, lib=definitions)
