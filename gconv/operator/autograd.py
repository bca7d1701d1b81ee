"""Derivatives of the three ops, each computed by the other two.

The forward pass y(x, w), the input gradient dx(dy, w) and the weight gradient dw(dy, x) are linear in each argument.
All three are the sum <dy, w * x> without one argument. So the derivative of each consists of the other two, to any
order. The derivatives are written once here, for the ops in eager mode and for those in torch's library. Complex
factors are conjugated, as in torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any, TypeVar

import torch
from torch import Tensor

from gconv.kernels.geometry import Geometry
from gconv.operator.dispatch import forced_kernel, forced_name

Derivative = TypeVar("Derivative", bound=Callable[..., tuple[Tensor | None, ...]])


@dataclass(frozen=True)
class Ops:
    """The three ops, themselves differentiable; arguments as in ``dispatch.py``."""

    conv2d: Callable[..., Tensor]
    input_gradient: Callable[..., Tensor]
    weight_gradient: Callable[..., Tensor]


def save(ctx: Any, tensors: tuple[Tensor, ...], geometry: Geometry, activated: Tensor | None = None) -> None:
    """Save the tensors of the derivative: two factors, and the output if a ReLU follows."""
    ctx.save_for_backward(*tensors, *(() if activated is None else (activated,)))
    ctx.geometry = geometry
    ctx.forced = forced_name()


def _by_the_same_kernel(derivative: Derivative) -> Derivative:
    """Force the kernel of an op on its derivative, which torch may compute in another thread."""

    @wraps(derivative)
    def forced(ops: Ops, ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.forced is None or forced_name() is not None:
            return derivative(ops, ctx, *gradients)
        with forced_kernel(ctx.forced):
            return derivative(ops, ctx, *gradients)

    return forced  # type: ignore[return-value]


@_by_the_same_kernel
def of_conv2d(ops: Ops, ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Return the gradients of x, w and bias, for y(x, w, bias)."""
    x, weight, *activated = ctx.saved_tensors
    if activated:
        dy = torch.ops.aten.threshold_backward(dy, activated[0], 0)
    needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:3]
    return (
        ops.input_gradient(dy, weight.conj(), ctx.geometry, x.shape[2:]) if needs_x else None,
        ops.weight_gradient(dy, x.conj(), ctx.geometry) if needs_weight else None,
        dy.sum((0, 2, 3)) if needs_bias else None,
    )


@_by_the_same_kernel
def of_conv2d_statistics(
    ops: Ops, ctx: Any, dy: Tensor, dmean: Tensor, dvar: Tensor
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Return the gradients of x, w and bias, for y(x, w, bias) with its mean and biased variance.

    With n elements per channel, dmean/dy is 1/n and dvar/dy is 2(y - mean)/n.
    """
    x, weight, y, mean = ctx.saved_tensors
    count = max(y.numel() // y.shape[1], 1)
    dmean, dvar, mean = (part.view(-1, 1, 1) for part in (dmean, dvar, mean))
    dy = (dy + (dmean + 2 * dvar * (y - mean)) / count).to(y.dtype)
    needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:3]
    return (
        ops.input_gradient(dy, weight, ctx.geometry, x.shape[2:]) if needs_x else None,
        ops.weight_gradient(dy, x, ctx.geometry) if needs_weight else None,
        dy.sum((0, 2, 3)) if needs_bias else None,
    )


@_by_the_same_kernel
def of_input_gradient(ops: Ops, ctx: Any, ddx: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """Return the gradients of dy and w, for dx(dy, w)."""
    dy, weight = ctx.saved_tensors
    needs_dy, needs_weight = ctx.needs_input_grad[:2]
    return (
        ops.conv2d(ddx, weight.conj(), None, ctx.geometry) if needs_dy else None,
        ops.weight_gradient(dy.conj(), ddx, ctx.geometry) if needs_weight else None,
    )


@_by_the_same_kernel
def of_weight_gradient(ops: Ops, ctx: Any, ddw: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """Return the gradients of dy and x, for dw(dy, x)."""
    dy, x = ctx.saved_tensors
    needs_dy, needs_x = ctx.needs_input_grad[:2]
    return (
        ops.conv2d(x.conj(), ddw, None, ctx.geometry) if needs_dy else None,
        ops.input_gradient(dy.conj(), ddw, ctx.geometry, x.shape[2:]) if needs_x else None,
    )
