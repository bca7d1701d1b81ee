"""Several seeds of one variant at once: their networks side by side, each trained as if it were alone.

The networks see their own batches, have their own losses and update their own weights; SGD works number by number, so
that one optimizer over all is as many optimizers. Small networks leave most of a GPU idle, where k of them may take
little longer than one. A CPU they do not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from experiments.training.learner import Learner
from experiments.training.run_context import RunContext
from experiments.training.wide_network import WideNetwork


class MultiSeedLearner(Learner):
    """Networks of one architecture, trained side by side by one process."""

    def __init__(self, models: Sequence[nn.Module], context: RunContext, steps: int) -> None:
        """Move networks to the device of a setting, and put them side by side.

        Args:
            models: each freshly built under its run's seed; they show the training from here on.
            context: what they are trained with; labels of their own are in their batches.
            steps: in the whole training.

        Raises:
            ValueError: networks that cannot be trained so (``wide_network.refusal``).
        """
        for model in models:
            model.to(context.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._networks = list(models)
        super().__init__(WideNetwork(self._networks), context, steps)

    @property
    def networks(self) -> list[nn.Module]:
        """As they are now, for evaluation: views, not copies."""
        return self._networks

    def _logits(self, xs: list[Tensor]) -> Tensor:
        return self._model(xs)

    def state(self, index: int) -> dict[str, Any]:
        """Everything that is needed to go on with a network, as ``Learner`` alone would give it."""
        optimizer = self._optimizer.state_dict()
        optimizer["state"] = {
            number: {name: self._slice(value, index).clone() for name, value in of.items()}
            for number, of in optimizer["state"].items()
        }
        return {
            "model": {name: value.clone() for name, value in self._networks[index].state_dict().items()},
            "optimizer": optimizer,
            "schedule": self._schedule.state_dict(),
        }

    def restore(self, index: int, state: dict[str, Any]) -> None:
        """Go on from what ``state`` gave, on whatever device, in whatever company that is equally far."""
        self._networks[index].load_state_dict(state["model"])
        saved = state["optimizer"]
        parameters = [p for group in self._optimizer.param_groups for p in group["params"]]
        for number, of in saved["state"].items():
            mine = self._optimizer.state[parameters[number]]
            for name, value in of.items():
                if name not in mine:
                    mine[name] = torch.zeros_like(parameters[number])
                self._slice(mine[name], index).copy_(value)
        for group, values in zip(self._optimizer.param_groups, saved["param_groups"], strict=True):
            group.update({name: value for name, value in values.items() if name != "params"})
        self._schedule.load_state_dict(state["schedule"])

    def _slice(self, whole: Tensor, index: int) -> Tensor:
        """One network's part of a parameter, or of what goes with it."""
        return whole.chunk(len(self._networks))[index]
