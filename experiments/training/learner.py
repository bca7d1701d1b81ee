"""The training step of a network, and the state that its checkpoint needs.

Legend: S networks trained together, which is 1 here; N images of a batch; C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.training.batches import Batch
from experiments.training.compiled_passes import CompiledPasses
from experiments.training.process_group import SINGLE_PROCESS, ProcessGroup
from experiments.training.recipe import make_optimizer
from experiments.training.run_context import RunContext


class Learner:
    """A network with its optimizer and schedule, trained by one process.

    Attributes:
        process_group: the processes that train together.
    """

    process_group: ProcessGroup = SINGLE_PROCESS

    def __init__(self, model: nn.Module, context: RunContext, steps: int) -> None:
        """Move a network to its device.

        Args:
            model: freshly built under the run's seed.
            context: recipe, device and precision.
            steps: of the whole training.
        """
        model.to(context.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._model, self._context = model, context
        self._optimizer, self._schedule = make_optimizer(model, context.recipe, steps)
        self._compiled = CompiledPasses(model, self._losses) if context.compiled else None

    def step(self, batches: Sequence[Batch]) -> Tensor:
        """Take one SGD step.

        Args:
            batches: inputs (N, 3, h, w) and labels (N,) for each network.

        Returns:
            (S, 2): loss and accuracy of each network on its batch, on the device.
        """
        xs, y_SN = [x for x, _ in batches], torch.stack([y for _, y in batches])
        self._optimizer.zero_grad(set_to_none=True)
        if self._compiled is None:
            losses_S, accuracies_S = self._losses(xs, y_SN)
            losses_S.sum().backward()  # no loss depends on another network's weights
        else:
            losses_S, accuracies_S = self._compiled(xs, y_SN)
        self._optimizer.step()
        self._schedule.step()
        return torch.stack([losses_S.detach(), accuracies_S], 1)

    def _losses(self, xs: list[Tensor], y_SN: Tensor) -> tuple[Tensor, Tensor]:
        """Return loss and accuracy of each network, (S,) each."""
        with self._context.autocast():
            logits_SNC = self._logits(xs)
            smoothing = self._context.recipe.label_smoothing
            losses = F.cross_entropy(
                logits_SNC.float().flatten(0, 1), y_SN.flatten(), reduction="none", label_smoothing=smoothing
            )
        return losses.view_as(y_SN).mean(1), (logits_SNC.argmax(2) == y_SN).float().mean(1)

    def _logits(self, xs: list[Tensor]) -> Tensor:
        """Return the outputs of each network for its inputs, (S, N, C)."""
        (x,) = xs
        return self._model(x).unsqueeze(0)

    def begin_epoch(self) -> None:
        """Set the networks to training mode, since an evaluation leaves them in the other."""
        self._model.train()

    @property
    def networks(self) -> list[nn.Module]:
        """The networks as they are now, in the order of their batches; not copies."""
        return [self._model]

    @property
    def rate(self) -> float:
        """Learning rate of the next step."""
        return self._optimizer.param_groups[0]["lr"]

    @property
    def compilation(self) -> dict[str, Any]:
        """``compiled`` and, if the compiled step has failed, ``compile_error``; empty where steps are not compiled."""
        if self._compiled is None:
            return {}
        error = self._compiled.error
        return {"compiled": error is None} | ({} if error is None else {"compile_error": error})

    def state(self, index: int) -> dict[str, Any]:
        """Return all that is needed to continue the training of a network, for its checkpoint."""
        assert index == 0
        return {
            "model": self._model.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "schedule": self._schedule.state_dict(),
        }

    def restore(self, index: int, state: dict[str, Any]) -> None:
        """Continue from a state, on any device, with any number of processes and of networks trained together."""
        assert index == 0
        self._model.load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._schedule.load_state_dict(state["schedule"])
