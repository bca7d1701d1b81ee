"""Batch normalisation with the statistics of a batch that several processes share.

On CUDA this is torch's ``SyncBatchNorm``, whose kernels exist for CUDA alone; elsewhere the layer below. Either way
names and values of a checkpoint are those of the layers that are replaced.

Legend: N images of this process, C channels, L positions, R ranks.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from experiments.training.process_group import ProcessGroup


def synchronise_batch_norms(model: nn.Module, process_group: ProcessGroup, device: torch.device) -> nn.Module:
    """Have the batch normalisations of a model take their statistics from all processes, in place.

    Args:
        model: its parameters stay the same tensors.
        process_group: processes, each with at least one image.
        device: of the training.
    """
    if device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(model)
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, _BatchNorm):
                setattr(module, name, SyncBatchNorm2d(child, process_group))
    return model


class SyncBatchNorm2d(_BatchNorm):
    """Batch normalisation over the images of all processes (Ioffe & Szegedy 2015, arXiv 1502.03167)."""

    def __init__(self, norm: _BatchNorm, process_group: ProcessGroup) -> None:
        """Replace a layer.

        Args:
            norm: the layer; its parameters and running statistics are shared.
            process_group: processes that share a batch.
        """
        assert norm.track_running_stats and norm.momentum is not None, "as torch makes them by default"
        super().__init__(norm.num_features, norm.eps, norm.momentum, norm.affine, device="meta")
        self._parameters, self._buffers = norm._parameters, norm._buffers
        self.process_group = process_group
        self.train(norm.training)

    def _check_input_dim(self, input: Tensor) -> None:
        assert input.dim() >= 2

    def forward(self, input: Tensor) -> Tensor:
        """Normalise (N, C, …), in training by the statistics of the whole batch."""
        if not self.training:
            return super().forward(input)
        assert self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None
        mean_C, variance_C, count = global_moments(input.detach(), self.process_group)
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean_C, self.momentum)  # type: ignore[arg-type]
            self.running_var.lerp_(variance_C * (count / (count - 1)), self.momentum)  # type: ignore[arg-type]
        return _Normalise.apply(input, self.weight, self.bias, mean_C, variance_C, count, self.eps, self.process_group)


def global_moments(x: Tensor, process_group: ProcessGroup) -> tuple[Tensor, Tensor, float]:
    """Return mean and biased variance of each channel over all processes, (C,) each, and the values of a channel.

    Each process sends count, mean and variance, and all combine them in the same order (Chan, Golub & LeVeque 1983,
    eq. 2.1). Sums of squares are never formed, since they lose small differences far from zero.
    """
    channels = x.shape[1]
    scratch = x.new_zeros(2, channels, dtype=torch.promote_types(x.dtype, torch.float32))
    mean_C, variance_C = torch.batch_norm_update_stats(x, scratch[0], scratch[1], 0.0)
    count = x.numel() // channels
    own = torch.cat([mean_C, variance_C, mean_C.new_tensor([count])])
    of_all = process_group.all_gather(own).double()
    mean_RC, variance_RC, count_R1 = of_all[:, :channels], of_all[:, channels:-1], of_all[:, -1:]
    total = count_R1.sum()
    mean = (count_R1 * mean_RC).sum(0) / total
    variance = (count_R1 * (variance_RC + (mean_RC - mean).square())).sum(0) / total
    return mean.to(own.dtype), variance.to(own.dtype), total.item()


class _Normalise(torch.autograd.Function):
    """(x − mean) / √(variance + eps) · weight + bias, where mean and variance are those of x on all processes."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        mean: Tensor,
        variance: Tensor,
        count: float,
        eps: float,
        process_group: ProcessGroup,
    ) -> Tensor:
        ctx.save_for_backward(x, weight, mean, variance)
        ctx.count, ctx.eps, ctx.process_group = count, eps, process_group
        return F.batch_norm(x, mean, variance, weight, bias, training=False, eps=eps)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """With s = 1/√(variance + eps), x̂ = (x − mean) s: dx = weight s (dy − Σdy / count − x̂ Σ(dy x̂) / count)."""
        (dy,), (x, weight, mean, variance) = gradients, ctx.saved_tensors
        # As if the statistics were constants: weight s dy, and this process's sums.
        dx, own_dyx, own_dy = torch.ops.aten.native_batch_norm_backward(
            dy.contiguous(memory_format=torch.channels_last) if dy.dim() == 4 else dy.contiguous(),
            x, weight, mean, variance, None, None, False, ctx.eps, [True, True, True],
        )  # fmt: skip
        sum_dyx, sum_dy = ctx.process_group.all_reduce(torch.stack([own_dyx, own_dy])) / ctx.count
        s = (variance + ctx.eps).rsqrt()
        slope = weight * s * s * sum_dyx
        shift = weight * s * sum_dy - slope * mean
        shape = [1, -1] + [1] * (x.dim() - 2)
        dx -= torch.addcmul(shift.view(shape), x, slope.view(shape))
        return dx, own_dyx, own_dy, None, None, None, None, None
