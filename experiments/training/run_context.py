"""What a run is trained with, on its device: images, views, recipe, precision."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.util import find_spec
from typing import Literal

import torch

from experiments.data.augment import Views, evaluation_batch, normalise, send, training_batch
from experiments.data.datasets import Dataset, Images
from experiments.errors import UsageError
from experiments.training.recipe import Recipe

Compile = Literal["auto", "always", "never"]
MIN_STEPS_TO_COMPILE = 2000  # steps of a training from which on compiling is worth its time


def epoch_generator(seed: int, epoch: int) -> torch.Generator:
    """The random numbers of one epoch of one run, whatever was drawn before."""
    return torch.Generator().manual_seed(seed * 1_000_003 + epoch)


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
            with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
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
class RunContext:
    """Everything a run is trained with, on its device.

    Attributes:
        dataset: on the device.
        views: how images become inputs.
        recipe: how to train.
        device, dtype: where, and in what precision convolutions run.
        compiled: whether both passes of a step are compiled, and replayed as CUDA graphs on a GPU.
    """

    dataset: Dataset
    views: Views
    recipe: Recipe
    device: torch.device
    dtype: torch.dtype
    compiled: bool = False

    @classmethod
    def of(cls, dataset: Dataset, views: Views, recipe: Recipe) -> RunContext:
        """Choose device and precision, and move the images there."""
        device = choose_device(recipe.device)
        return cls(_on_device(dataset, device), views, recipe, device, choose_dtype(recipe.precision, device))

    @property
    def steps(self) -> int:
        """In the whole training."""
        return self.recipe.epochs * max(1, len(self.dataset.train.labels) // self.recipe.batch_size)

    def with_compiler(self, wanted: Compile) -> RunContext:
        """The setting with or without a compiler; ``auto``: on a GPU that Triton is there for, for trainings that repay
        the minute that it takes. On a CPU a compiled step is no faster (``make bench-blocks``).
        """
        pays = self.device.type == "cuda" and self.steps >= MIN_STEPS_TO_COMPILE and find_spec("triton") is not None
        return replace(self, compiled=wanted == "always" or (wanted == "auto" and pays))

    def with_labels(self, seed: int) -> RunContext:
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

    def training_inputs(
        self, index: torch.Tensor, generator: torch.Generator, share: slice = slice(None)
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Augmented inputs (B, 3, h, w) and labels (B,) of the indexed training images, or of a share of them.

        As many random numbers are drawn whatever the share, so that several processes make up the batch of one.
        """
        images = self.dataset.train
        x = training_batch(images.pixels, index, self.views, generator, share)
        return self._inputs(x), self._labels(images, index[share])

    def test_inputs(self, index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Centre crops (B, 3, h, w) and labels (B,) of the indexed test images."""
        images = self.dataset.test
        x = evaluation_batch(images.pixels, index, self.views)
        return self._inputs(x), self._labels(images, index)

    def _labels(self, images: Images, index: torch.Tensor) -> torch.Tensor:
        return send(images.labels[send(index, images.labels.device)], self.device)

    def _inputs(self, x: torch.Tensor) -> torch.Tensor:
        return normalise(send(x, self.device), self.dataset.mean, self.dataset.std, self.dtype)
