"""All that a run is trained with, on its device: images, views, recipe, precision."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.util import find_spec
from typing import Literal

import torch

from experiments.data.augment import Views, evaluation_batch, normalise, to_device, training_batch
from experiments.data.datasets import Dataset, Images
from experiments.errors import UsageError
from experiments.training.recipe import Recipe

Compile = Literal["auto", "always", "never"]
MIN_STEPS_TO_COMPILE = 2000  # of a training; a shorter one takes longer with the compiler than without


def epoch_generator(seed: int, epoch: int) -> torch.Generator:
    """Return the random numbers of one epoch of one run; they do not depend on earlier draws."""
    return torch.Generator().manual_seed(seed * 1_000_003 + epoch)


def choose_device(name: str) -> torch.device:
    """Return the device that ``recipe.device`` names on this machine; ``auto`` is CUDA, then MPS, then the CPU.

    Raises:
        UsageError: this machine has no such device.
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
    """Return the dtype of convolutions; ``auto`` is bf16 on hardware that multiplies it, else fp32."""
    if precision != "auto":
        return {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    elif device.type == "cpu":
        fast = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    else:
        fast = False
    return torch.bfloat16 if fast else torch.float32


def usable_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def device_name(device: torch.device) -> str:
    """Return the model of the hardware, for provenance; for a CPU with the number of threads."""
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
    """Return the dataset on a device, where all runs share it."""
    return dataset.to(device)


@dataclass(frozen=True)
class RunContext:
    """All that a run is trained with, on its device.

    Attributes:
        dataset: on the device.
        views: from images to inputs.
        recipe: optimizer, schedule, epochs.
        device: of network and images.
        dtype: of convolutions.
        compiled: both passes of a step are compiled, and replayed as CUDA graphs on a GPU.
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
        """Number of steps of the whole training."""
        return self.recipe.epochs * max(1, len(self.dataset.train.labels) // self.recipe.batch_size)

    def with_compiler(self, wanted: Compile) -> RunContext:
        """Return the context with or without compiled steps.

        ``auto`` compiles on a GPU with Triton, for trainings long enough to save the minute that the compiler
        takes. On a CPU a compiled step is no faster (``make bench-blocks``).
        """
        pays = self.device.type == "cuda" and self.steps >= MIN_STEPS_TO_COMPILE and find_spec("triton") is not None
        return replace(self, compiled=wanted == "always" or (wanted == "auto" and pays))

    def with_labels(self, seed: int) -> RunContext:
        """Return the context of a run with this seed: with permuted training labels if the views ask for them.

        The permutation depends on the seed alone, so that a resumed run keeps the labels that it began with. Zhang et
        al. 2017 (arXiv 1611.03530) draw every label anew; a permutation also keeps the number of images of each class.
        """
        if self.views.labels == "stored":
            return self
        images = self.dataset.train
        order = torch.randperm(
            len(images.labels), generator=epoch_generator(seed, -1)
        )  # separate from the random numbers of the epochs
        permuted = Images(images.pixels, images.labels[order.to(images.labels.device)])
        return replace(self, dataset=replace(self.dataset, train=permuted))

    def autocast(self) -> torch.autocast:
        """Return the context manager of mixed precision; it does nothing in fp32."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def training_inputs(
        self, index: torch.Tensor, generator: torch.Generator, share: slice = slice(None)
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return augmented inputs (B, 3, h, w) and labels (B,) of the indexed training images, or of a share of them.

        The number of random numbers drawn does not depend on the share, so that the shares of several processes make
        up the batch of one.
        """
        images = self.dataset.train
        x = training_batch(images.pixels, index, self.views, generator, share)
        return self._inputs(x), self._labels(images, index[share])

    def test_inputs(self, index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return centre crops (B, 3, h, w) and labels (B,) of the indexed test images."""
        images = self.dataset.test
        x = evaluation_batch(images.pixels, index, self.views)
        return self._inputs(x), self._labels(images, index)

    def _labels(self, images: Images, index: torch.Tensor) -> torch.Tensor:
        return to_device(images.labels[to_device(index, images.labels.device)], self.device)

    def _inputs(self, x: torch.Tensor) -> torch.Tensor:
        return normalise(to_device(x, self.device), self.dataset.mean, self.dataset.std, self.dtype)
