"""The derivatives of the three ops, each by the other two.

Forward pass y(x, w), input gradient dx(dy, w) and weight gradient dw(dy, x) are linear in either argument, and all
three are the same sum <dy, w * x> with one argument left out. So the derivative of each is made of the other two, any
number of times; written once here, for the ops in eager mode and for those in torch's library. Complex factors are
conjugated, as everywhere in torch.
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
    """The three ops, differentiable themselves: arguments as in ``gconv.dispatch``."""

    conv2d: Callable[..., Tensor]
    input_gradient: Callable[..., Tensor]
    weight_gradient: Callable[..., Tensor]


def save(ctx: Any, tensors: tuple[Tensor, ...], geometry: Geometry, activated: Tensor | None = None) -> None:
    """Keep for the derivative what it reads: two factors, and the output where a ReLU follows."""
    ctx.save_for_backward(*tensors, *(() if activated is None else (activated,)))
    ctx.geometry = geometry
    ctx.forced = forced_name()


def _by_the_same_kernel(derivative: Derivative) -> Derivative:
    """Force on a derivative what was forced on its op: torch may compute it in another thread."""

    @wraps(derivative)
    def forced(ops: Ops, ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.forced is None or forced_name() is not None:
            return derivative(ops, ctx, *gradients)
        with forced_kernel(ctx.forced):
            return derivative(ops, ctx, *gradients)

    return forced  # type: ignore[return-value]


@_by_the_same_kernel
def of_conv2d(ops: Ops, ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """For y(x, w, bias): the gradients of x, w and bias."""
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
    """For y(x, w, bias) with its mean and biased variance: dmean/dy is 1/n, dvar/dy is 2(y - mean)/n, n per channel."""
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
    """For dx(dy, w): the gradients of dy and w."""
    dy, weight = ctx.saved_tensors
    needs_dy, needs_weight = ctx.needs_input_grad[:2]
    return (
        ops.conv2d(ddx, weight.conj(), None, ctx.geometry) if needs_dy else None,
        ops.weight_gradient(dy.conj(), ddx, ctx.geometry) if needs_weight else None,
    )


@_by_the_same_kernel
def of_weight_gradient(ops: Ops, ctx: Any, ddw: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """For dw(dy, x): the gradients of dy and x."""
    dy, x = ctx.saved_tensors
    needs_dy, needs_x = ctx.needs_input_grad[:2]
    return (
        ops.conv2d(x.conj(), ddw, None, ctx.geometry) if needs_dy else None,
        ops.input_gradient(dy.conj(), ddw, ctx.geometry, x.shape[2:]) if needs_x else None,
    )
