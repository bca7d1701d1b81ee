"""Train one run: the loop, mixed precision, going on from where it was stopped."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

from experiments.augment import Views, evaluation_batch, normalise, training_batch
from experiments.data import Dataset, Images
from experiments.errors import RunFailedError, UsageError
from experiments.memory import advice, is_out_of_memory
from experiments.store import notice
from experiments.store.progress import Part, Progress
from experiments.store.runs import Run
from experiments.tracking import Tracker

CHECK_EVERY = 25  # steps between looks at the loss: each look waits for the device
EVALUATION_BATCH = 512


@dataclass(frozen=True)
class Recipe:
    """How a network is trained: SGD with Nesterov momentum on a one-cycle schedule.

    Args:
        epochs: passes over the training images.
        batch_size: images per step.
        lr: peak learning rate of the one-cycle schedule (Smith & Topin 2018).
        warmup: fraction of the steps in which the rate rises to its peak.
        momentum: of SGD.
        weight_decay: on the weights of convolutions and linear layers; norms and biases have none.
        label_smoothing: probability mass spread over all classes.
        evaluate_every: epochs between evaluations on the test images; the last epoch is always evaluated.
        precision: ``auto`` is bf16 where the hardware multiplies it (CUDA, AMX or AVX512-BF16), else fp32; on CUDA
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
    precision: Literal["auto", "fp32", "bf16"] = "auto"
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


def choose_device(name: str) -> torch.device:
    """The device that ``name`` means on this machine.

    Raises:
        UsageError: no such device here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda", "mps"):
            raise RuntimeError("cpu, cuda and mps are known")
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"recipe.device={name}: not usable here ({reason}); try auto or cpu") from None
    return device


def choose_dtype(precision: str, device: torch.device) -> torch.dtype:
    """The dtype that convolutions run in: bf16 only where the hardware multiplies it, since elsewhere it crawls."""
    if precision != "auto":
        return {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    elif device.type == "cpu":
        fast = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    else:
        fast = False
    return torch.bfloat16 if fast else torch.float32


def device_name(device: torch.device) -> str:
    """What the hardware calls itself, for provenance."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "cpu":
        try:
            with open("/proc/cpuinfo") as file:
                model = next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
        except (OSError, StopIteration):
            model = "CPU"
        return f"{model}, {torch.get_num_threads()} threads"
    return device.type


@lru_cache(maxsize=4)
def _on_device(dataset: Dataset, device: torch.device) -> Dataset:
    """The dataset on a device, there once for all runs."""
    return dataset.to(device)


@dataclass(frozen=True)
class Setting:
    """Everything a run is trained with, on its device.

    Attributes:
        dataset: on the device.
        views: how images become inputs.
        recipe: how to train.
        device, dtype: where, and in what precision convolutions run.
    """

    dataset: Dataset
    views: Views
    recipe: Recipe
    device: torch.device
    dtype: torch.dtype

    @classmethod
    def of(cls, dataset: Dataset, views: Views, recipe: Recipe) -> Setting:
        """Choose device and precision, and move the images there."""
        device = choose_device(recipe.device)
        return cls(_on_device(dataset, device), views, recipe, device, choose_dtype(recipe.precision, device))

    def with_labels(self, seed: int) -> Setting:
        """The setting in which a run with this seed is trained: training labels permuted if its views say so.

        The permutation depends on the seed alone, so that a resumed run goes on with the labels that it began with.
        Zhang et al. 2017 (arXiv 1611.03530) draw every label anew; permuted, each class also keeps its images' number.
        """
        if self.views.labels == "stored":
            return self
        images = self.dataset.train
        order = torch.randperm(len(images.labels), generator=epoch_generator(seed, -1))  # numbers that no epoch draws
        permuted = Images(images.pixels, images.labels[order.to(images.labels.device)])
        return replace(self, dataset=replace(self.dataset, train=permuted))

    def autocast(self) -> torch.autocast:
        """Mixed precision where the dtype asks for it."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def training_inputs(self, index: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Augmented inputs (B, 3, h, w) and labels (B,) of the indexed training images."""
        images = self.dataset.train
        x = training_batch(images.pixels, index, self.views, generator)
        return self._inputs(x), images.labels[index.to(images.labels.device)].to(self.device)

    def test_inputs(self, index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Centre crops (B, 3, h, w) and labels (B,) of the indexed test images."""
        images = self.dataset.test
        x = evaluation_batch(images.pixels, index, self.views)
        return self._inputs(x), images.labels[index.to(images.labels.device)].to(self.device)

    def _inputs(self, x: torch.Tensor) -> torch.Tensor:
        return normalise(x.to(self.device), self.dataset.mean, self.dataset.std, self.dtype)


def make_optimizer(model: nn.Module, recipe: Recipe, steps: int) -> tuple[torch.optim.SGD, Any]:
    """SGD and its one-cycle schedule over ``steps`` steps."""
    weights = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() <= 1]
    optimizer = torch.optim.SGD(
        [{"params": weights, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0.0}],
        lr=recipe.lr,
        momentum=recipe.momentum,
        nesterov=recipe.momentum > 0,
    )
    steps = max(steps, 2)
    # OneCycleLR divides by zero where the rate would rise in exactly one step.
    warmup = recipe.warmup + (1e-6 if recipe.warmup * steps == 1 else 0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.lr, total_steps=steps, pct_start=warmup, cycle_momentum=False
    )
    return optimizer, schedule


def epoch_generator(seed: int, epoch: int) -> torch.Generator:
    """The random numbers of one epoch of one run, whatever was drawn before."""
    return torch.Generator().manual_seed(seed * 1_000_003 + epoch)


def train_epoch(
    model: nn.Module,
    setting: Setting,
    optimizer: torch.optim.SGD,
    schedule: Any,
    seed: int,
    epoch: int,
    label: str,
    part: Part | None = None,
    after_step: Callable[[int, torch.Tensor, torch.Generator], None] = lambda *_: None,
    tracker: Tracker | None = None,
) -> dict[str, float]:
    """One pass over the training images; returns its mean loss and accuracy.

    Order and augmentation depend on (seed, epoch) alone, so that a resumed run sees the batches it would have seen.

    Args:
        part: of the epoch, that was trained before.
        after_step: told the number of steps taken, loss and accuracy summed over them (2,), and the random numbers.
        tracker: told loss and rate at every look at the loss.

    Raises:
        RunFailedError: the loss is no longer finite.
    """
    recipe, count = setting.recipe, len(setting.dataset.train.labels)
    generator = epoch_generator(seed, epoch)
    order = torch.randperm(count, generator=generator)
    batches = order.split(recipe.batch_size)
    if len(batches) > 1 and len(batches[-1]) < recipe.batch_size:
        batches = batches[:-1]  # a short batch would have other batch statistics and another noise scale
    done, total = 0, torch.zeros(2, device=setting.device)
    if part is not None:
        done, total = part.step, part.total.to(setting.device, copy=True)
        generator.set_state(part.generator)
    before, seen = total[0].item(), done  # at the last look at the loss
    model.train()
    title = f"{label} epoch {epoch + 1}/{recipe.epochs}"
    with tqdm(batches[done:], title, len(batches), initial=done, disable=None, leave=False) as progress:
        for step, index in enumerate(progress, done + 1):
            x, y = setting.training_inputs(index, generator)
            optimizer.zero_grad(set_to_none=True)
            with setting.autocast():
                logits = model(x)
                loss = F.cross_entropy(logits.float(), y, label_smoothing=recipe.label_smoothing)
            loss.backward()
            optimizer.step()
            schedule.step()
            total += torch.stack([loss.detach(), (logits.argmax(1) == y).float().mean()])
            if step % CHECK_EVERY == 1 or step == len(batches):
                mean_loss = total[0].item() / step
                if not mean_loss < float("inf"):
                    raise RunFailedError(f"the loss became {mean_loss} in epoch {epoch + 1}, step {step}")
                progress.set_postfix(loss=f"{mean_loss:.3f}")
                if tracker is not None:
                    lately = (mean_loss * step - before) / (step - seen)
                    rate = optimizer.param_groups[0]["lr"]
                    tracker.log_step(epoch * len(batches) + step, {"loss": lately, "lr": rate})
                    before, seen = mean_loss * step, step
            after_step(step, total, generator)
    return {"train_loss": total[0].item() / len(batches), "train_accuracy": total[1].item() / len(batches)}


@torch.no_grad()
def evaluate(
    model: nn.Module, setting: Setting, batch: int = EVALUATION_BATCH, after_batch: Callable[[], None] = lambda: None
) -> dict[str, float]:
    """Loss and accuracy on the test images, ``batch`` at a time, or fewer where memory is short."""
    model.eval()
    count = len(setting.dataset.test.labels)
    total = torch.zeros(2, device=setting.device)
    try:
        for index in torch.arange(count).split(batch):
            x, y = setting.test_inputs(index)
            with setting.autocast():
                logits = model(x).float()
            total += torch.stack([F.cross_entropy(logits, y, reduction="sum"), (logits.argmax(1) == y).sum()])
            after_batch()
    except (RuntimeError, MemoryError) as error:
        if batch == 1 or not is_out_of_memory(error):
            raise
    else:
        return {"test_loss": total[0].item() / count, "test_accuracy": total[1].item() / count}
    return evaluate(model, setting, batch // 2, after_batch)


def train_run(run: Run, model: nn.Module, setting: Setting, tracker: Tracker) -> dict[str, float]:
    """Train ``model`` from its last checkpoint, or from the start, to the end of the recipe.

    Args:
        run: where checkpoints and metrics go.
        model: freshly built under the run's seed.
        setting: what to train it with.
        tracker: told the metrics of every epoch.

    Returns:
        The metrics of the last epoch and the seconds spent in training.

    Raises:
        RunFailedError: the loss or a weight is no longer finite, or the device has too little memory; the last
            checkpoint is from before.
        KeyboardInterrupt: a notice to stop has come; the checkpoint is of the last step.
    """
    try:
        with notice.looking_out():
            return _train_on(run, model, setting.with_labels(run.seed), tracker)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise RunFailedError(advice(setting.recipe.batch_size, setting.device), lasting=False) from None


def _train_on(run: Run, model: nn.Module, setting: Setting, tracker: Tracker) -> dict[str, float]:
    recipe = setting.recipe
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    model.to(setting.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    count = len(setting.dataset.train.labels)
    optimizer, schedule = make_optimizer(model, recipe, recipe.epochs * max(1, count // recipe.batch_size))
    progress = Progress(run, model, optimizer, schedule)
    progress.restore()
    label = run.folder.name.rsplit("-", 1)[0]
    for epoch in range(len(progress.history), recipe.epochs):
        part, last = progress.begin_epoch(), epoch + 1 == recipe.epochs
        trained = train_epoch(
            model, setting, optimizer, schedule, run.seed, epoch, label, part, progress.after_step, tracker
        )
        metrics = {"epoch": epoch + 1, **trained, "lr": schedule.get_last_lr()[0], "seconds": progress.seconds()}
        if (epoch + 1) % recipe.evaluate_every == 0 or last:
            metrics |= evaluate(model, setting, after_batch=progress.look_out)
        # The last step may have gone wrong after the last look at the loss.
        finite = all(torch.isfinite(p).all() for p in model.parameters())
        if not (finite and math.isfinite(metrics.get("test_loss", 0.0))):
            raise RunFailedError(f"the weights or the test loss are no longer finite after epoch {epoch + 1}")
        progress.end_epoch(metrics, last)
        tracker.log(metrics)
    return {**progress.history[-1], "seconds": sum(epoch["seconds"] for epoch in progress.history)}
