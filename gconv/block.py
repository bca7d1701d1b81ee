"""Convolution, batch normalisation and ReLU computed together, where measurements show that it is faster.

``run_block`` returns the result of the three modules. ``Block`` is an ``nn.Sequential`` that calls it for every such
sequence of its modules. ``gconv.fuse`` applies both to a whole model. Parameters, buffers, names and modes stay those
of the modules.

Computed together:

- Evaluation without gradients: every call folds the normalisation into weight and bias, and applies the ReLU before it
  writes the result.
- Training under ``torch.compile`` on a CPU: batch normalisation with ReLU by ATen's kernels, which are faster than
  Inductor's.
- Training under ``torch.compile`` on CUDA, if the band kernel computes the forward pass: its epilogue returns mean and
  variance of the result. The compiler fuses the rest into one pass with the operations that follow (a shuffle, a sum).
  That saves one reading of the activations.

Measured on two threads of an AVX-512 Xeon (``make bench-blocks``: fp32 channels_last, 64 images of 64@32, 128@16 and
256@8; dense, 4 groups, log:4; medians): fused evaluation in eager mode takes 0.83 to 1.00 of the time of the modules
one after the other. A compiled training step takes 0.56 to 0.88 of the time of the compiled modules, but 0.93 to 1.16
of that of the modules in eager mode. So on a CPU train in eager mode.

The modules themselves compute everything else: training in eager mode, where fusion saves no time; modules with hooks;
modules of other types (``SyncBatchNorm``, parametrised ones); programs traced by torch.fx or export.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.fx import Proxy

from gconv.conv import CONVOLUTIONS, GroupedConv2d
from gconv.kernels.geometry import Geometry
from gconv.operator import dispatch
from gconv.operator.normalization import fold, normalize, normalize_by_aten
from gconv.operator.ops import conv2d_statistics, grouped_conv2d
from gconv.partition import Partition

Conv = nn.Conv2d | GroupedConv2d
Run = tuple[Conv, nn.BatchNorm2d | None, nn.ReLU | None]
Way = Literal["modules", "folded", "counted", "by ATen"]
PLAIN = (*CONVOLUTIONS, nn.BatchNorm2d, nn.ReLU)
RELU = nn.ReLU()  # stands for a ReLU that is called as a function
EPILOGUE_DEVICES = ("cuda",)  # device types whose kernels may have an epilogue
MIN_OUTPUTS_TO_FOLD = 2**17  # output elements from which on folding is faster in eager mode


class Block(nn.Sequential):
    """``nn.Sequential`` that computes every sequence of convolution, batch normalisation and ReLU together.

    The sequence may lack the batch normalisation or the ReLU. A Block replaces a Sequential: names and ``state_dict``
    are the same.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Return the result of ``nn.Sequential``, within rounding."""
        modules = list(self)
        at = 0
        while at < len(modules):
            run = run_at(modules, at)
            if run is None:
                input = modules[at](input)
                at += 1
            else:
                input = run_block(input, *run)
                at += sum(module is not None for module in run)
        return input

    def __prepare_scriptable__(self) -> nn.Module:
        """Give ``torch.jit.script`` an ``nn.Sequential``, which it can read."""
        return nn.Sequential(OrderedDict(self.named_children())).train(self.training)


def run_at(modules: Sequence[nn.Module | None], at: int) -> Run | None:
    """Return the convolution with batch normalisation, ReLU or both that begins at index ``at``; None if none does."""
    following = [*modules[at : at + 3], None, None, None]
    conv, norm, relu = following[:3]
    if type(norm) is not nn.BatchNorm2d:
        norm, relu = None, norm
    relu = relu if type(relu) is nn.ReLU else None
    if type(conv) not in CONVOLUTIONS or (norm is None and relu is None):
        return None
    return conv, norm, relu  # type: ignore[return-value]


def run_block(x_NCHW: Tensor, conv: nn.Module, norm: nn.Module | None = None, relu: nn.Module | None = None) -> Tensor:
    """Compute relu(norm(conv(x))), in a module that calls its layers by name.

    Args:
        x_NCHW: input of ``conv``.
        conv, norm, relu: modules of any type; norm or relu may be None. Only Conv2d, GroupedConv2d, BatchNorm2d and
            ReLU are computed together.

    Returns:
        (N, O, H', W'): the result of the modules one after the other, within rounding.
    """
    way = way_of(x_NCHW, conv, norm, relu)
    if way == "modules":
        y = conv(x_NCHW)
        y = y if norm is None else norm(y)
        return y if relu is None else relu(y)
    assert isinstance(conv, Conv) and (norm is None or isinstance(norm, nn.BatchNorm2d))
    if way == "folded":
        return _folded(x_NCHW, conv, norm, relu is not None)
    if way == "counted":
        assert isinstance(conv, GroupedConv2d)
        if norm is None:
            return grouped_conv2d(x_NCHW, conv.weight, conv.bias, conv.geometry, "relu")
        y, mean, var = conv2d_statistics(x_NCHW, conv.weight, conv.bias, conv.geometry)
        return normalize(y, mean, var, norm, relu is not None)
    assert norm is not None
    return normalize_by_aten(conv(x_NCHW), norm, relu is not None)


def way_of(x_NCHW: Tensor, conv: Any, norm: Any, relu: Any) -> Way:
    """Return how ``run_block`` computes these modules now, by the rule at the head of this file.

    ``modules``: one after the other; ``folded``: the normalisation in weight and bias; ``counted``: with the statistics
    or the ReLU of the convolution's epilogue; ``by ATen``: the convolution, then the rest as one op.
    """
    modules = [module for module in (conv, norm, relu) if module is not None]
    if isinstance(x_NCHW, Proxy) or torch.compiler.is_exporting() or torch.jit.is_tracing():  # type: ignore[attr]
        return "modules"
    if not isinstance(x_NCHW, Tensor) or x_NCHW.dim() != 4 or not all(map(_plain, modules)):
        return "modules"
    if isinstance(conv, GroupedConv2d) and conv._pad_first is not None:
        return "modules"
    compiled = torch.compiler.is_compiling()
    if not compiled and nn.modules.module._has_any_global_hook():
        return "modules"
    live = norm is not None and (norm.training or norm.running_mean is None)
    if not live and not _records_gradient(x_NCHW, modules):
        return "folded" if compiled or _worth_folding(x_NCHW, conv, norm) else "modules"
    if not compiled or x_NCHW.numel() == 0 or (norm is not None and not (live and _keeps_count(norm))):
        return "modules"
    if x_NCHW.device.type in EPILOGUE_DEVICES:
        counted = isinstance(conv, GroupedConv2d) and _has_epilogue(x_NCHW, conv)
        return "counted" if counted else "modules"
    return "by ATen" if x_NCHW.device.type == "cpu" and norm is not None and _suits_aten(x_NCHW, norm) else "modules"


def _plain(module: nn.Module) -> bool:
    """Return True if the type of a module defines its result, and it has no hooks."""
    hooks = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    return type(module) in PLAIN and not hooks and "forward" not in module.__dict__


def _records_gradient(x: Tensor, modules: Sequence[nn.Module]) -> bool:
    """Return True if autograd records a call of these modules."""
    if not torch.is_grad_enabled():
        return False
    return x.requires_grad or any(p is not None and p.requires_grad for m in modules for p in m._parameters.values())


def _worth_folding(x: Tensor, conv: Conv, norm: nn.BatchNorm2d | None) -> bool:
    """Return True if folding is worth its extra calls in eager mode, several for each uneven group."""
    if torch._C._are_functorch_transforms_active():
        return False
    if norm is None:
        return True
    height, width = (side // step for side, step in zip(x.shape[2:], conv.stride, strict=True))
    numbers = x.shape[0] * conv.out_channels * height * width
    calls, share = (1, 2) if conv.weight.dim() == 4 else (conv.groups, 8)
    return numbers >= max(MIN_OUTPUTS_TO_FOLD * calls, share * conv.weight.numel())


def _folded(x: Tensor, conv: Conv, norm: nn.BatchNorm2d | None, relu: bool) -> Tensor:
    geometry = conv.geometry if isinstance(conv, GroupedConv2d) else None
    weight, bias = (conv.weight, conv.bias) if norm is None else fold(conv.weight, conv.bias, norm, geometry)
    compiled = torch.compiler.is_compiling()
    if geometry is None and not compiled and conv.padding_mode == "zeros" and not isinstance(conv.padding, str):
        cut = conv.in_channels, conv.out_channels, conv.groups
        geometry = _geometry(*cut, conv.kernel_size, conv.stride, conv.padding, conv.dilation)  # type: ignore[arg-type]
    if geometry is None:
        assert isinstance(conv, nn.Conv2d)
        y = conv._conv_forward(x, weight, bias)
        return y.relu() if relu else y
    # A compiler fuses the ReLU with the operations that follow, if the convolution has no epilogue for it.
    separate = relu and compiled and x.device.type != "cpu" and not _has_epilogue(x, conv)
    y = grouped_conv2d(x, weight, bias, geometry, "relu" if relu and not separate else "none")
    return y.relu() if separate else y


@lru_cache(maxsize=4096)
def _geometry(in_channels: int, out_channels: int, groups: int, *window: tuple[int, int]) -> Geometry:
    cuts = Partition.uniform(in_channels, groups), Partition.uniform(out_channels, groups)
    kernel_size, stride, padding, dilation = window
    return Geometry(*cuts, kernel_size, stride, padding, dilation)


def _has_epilogue(x: Tensor, conv: Conv) -> bool:
    return isinstance(conv, GroupedConv2d) and dispatch.has_epilogue(conv.geometry, _dtype(x), x.device)


def _dtype(x: Tensor) -> torch.dtype:
    """Return the dtype in which a convolution computes."""
    device = x.device.type
    cast = torch.is_autocast_enabled(device) and x.dtype != torch.float64
    return torch.get_autocast_dtype(device) if cast else x.dtype


def _keeps_count(norm: nn.BatchNorm2d) -> bool:
    """Return True if a norm counts its batches, or has no running statistics."""
    return norm.running_mean is None or norm.num_batches_tracked is not None


def _suits_aten(x: Tensor, norm: nn.BatchNorm2d) -> bool:
    """Return True if ATen keeps the statistics in the dtype of the norm."""
    return norm.weight is None or norm.weight.dtype == torch.promote_types(_dtype(x), torch.float32)
