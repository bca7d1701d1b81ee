"""Several seeds of one variant trained in lock-step, each with the results of a separate training.

Each network has its own batches, losses and weights. SGD works element by element, so that one optimizer over all
weights equals one for each network. A small network leaves most of a GPU idle, so that k of them may take little
longer than one. On a CPU there is no gain.
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
    """Networks of one architecture, trained in lock-step by one process."""

    def __init__(self, models: Sequence[nn.Module], context: RunContext, steps: int) -> None:
        """Move networks to their device and join them to one wide network.

        Args:
            models: each freshly built under its run's seed; their weights become views of the wide network's.
            context: recipe, device and precision.
            steps: of the whole training.

        Raises:
            ValueError: the networks cannot be trained in lock-step, see ``wide_network.refusal``.
        """
        for model in models:
            model.to(context.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._networks = list(models)
        self._wide_network = WideNetwork(self._networks)
        super().__init__(self._wide_network, context, steps)

    @property
    def networks(self) -> list[nn.Module]:
        """The networks as they are now; views of the wide network, not copies."""
        return self._networks

    @property
    def wide_network(self) -> WideNetwork:
        """The network that computes all of them in training; in evaluation each computes for itself."""
        return self._wide_network

    def _logits(self, xs: list[Tensor]) -> Tensor:
        return self._model(xs)

    def state(self, index: int) -> dict[str, Any]:
        """Return all that is needed to continue the training of a network, in the form of ``Learner.state``."""
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
        """Continue from a state, on any device, with any networks that are equally far."""
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
        """Return one network's part of a parameter or of its momentum."""
        return whole.chunk(len(self._networks))[index]
