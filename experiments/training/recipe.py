"""The recipe of a training, and its optimizer and schedule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

Precision = Literal["auto", "fp32", "bf16"]


@dataclass(frozen=True)
class Recipe:
    """Recipe of a training: SGD with Nesterov momentum on a one-cycle schedule.

    Args:
        epochs: passes over the training images.
        batch_size: images per step.
        lr: peak learning rate of the one-cycle schedule (Smith & Topin 2018).
        warmup: fraction of the steps in which the rate rises to its peak.
        momentum: momentum of SGD.
        weight_decay: weight decay of convolutions and linear layers; norms and biases have none.
        label_smoothing: probability mass spread over all classes.
        evaluate_every: epochs between evaluations on the test images; the last epoch is always evaluated.
        precision: ``auto`` is bf16 on hardware with bf16 arithmetic (CUDA, AMX or AVX512-BF16), else fp32; on CUDA
            torch computes fp32 convolutions in TF32.
        device: ``auto`` is CUDA, then MPS, then the CPU.
    """

    epochs: int = 10
    batch_size: int = 128
    lr: float = 0.1
    warmup: float = 0.25
    momentum: float = 0.9
    weight_decay: float = 5e-4
    label_smoothing: float = 0.1
    evaluate_every: int = 1
    precision: Precision = "auto"
    device: str = "auto"

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "evaluate_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"recipe.{name}={getattr(self, name)}: must be at least 1")
        for name, low, high in (("warmup", 0, 1), ("momentum", 0, 1), ("label_smoothing", 0, 1)):
            if not low <= getattr(self, name) < high:
                raise ValueError(f"recipe.{name}={getattr(self, name)}: must be at least {low} and below {high}")
        if not 0 < self.lr < float("inf"):
            raise ValueError(f"recipe.lr={self.lr}: must be above 0 and finite")
        if not 0 <= self.weight_decay < float("inf"):
            raise ValueError(f"recipe.weight_decay={self.weight_decay}: must be at least 0 and finite")
        if self.batch_size > 2**31:
            raise ValueError(f"recipe.batch_size={self.batch_size}: must be at most 2^31")


def make_optimizer(model: nn.Module, recipe: Recipe, steps: int) -> tuple[torch.optim.SGD, Any]:
    """Return SGD and its one-cycle schedule over ``steps`` steps."""
    weights = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() <= 1]
    optimizer = torch.optim.SGD(
        [{"params": weights, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0.0}],
        lr=recipe.lr,
        momentum=recipe.momentum,
        nesterov=recipe.momentum > 0,
        fused=all(p.is_cuda for p in weights + others) or None,  # one kernel a step where there is one
    )
    steps = max(steps, 2)
    # OneCycleLR divides by zero where the rate would rise in exactly one step.
    warmup = recipe.warmup + (1e-6 if recipe.warmup * steps == 1 else 0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.lr, total_steps=steps, pct_start=warmup, cycle_momentum=False
    )
    return optimizer, schedule
