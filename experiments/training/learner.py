"""What takes the steps of a training: a network, its optimizer and its schedule."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.memory import is_out_of_memory
from experiments.training.process_group import SINGLE_PROCESS, ProcessGroup
from experiments.training.recipe import make_optimizer
from experiments.training.run_context import RunContext

Batch = tuple[Tensor, Tensor]  # inputs (B, 3, h, w), labels (B,)
COMPILE_OPTIONS: dict[str, Any] = {"mode": "reduce-overhead", "dynamic": False}  # of torch.compile: with CUDA graphs
COMPILE_WARMUP_STEPS = 8  # first steps, in which the compiler builds both passes, warms them up and records CUDA graphs
MAX_COMPILED_ARCHITECTURES = 256  # of one process, at most; torch goes back to eager mode from the eighth on


class Learner:
    """One network, trained by one process.

    Attributes:
        networks: that are trained, in the order of their batches: one here.
        process_group: the processes that train together.
        compile_error: why the compiled step was given up; None while it works, and where none was asked for.
    """

    process_group: ProcessGroup = SINGLE_PROCESS
    compile_error: str | None = None

    def __init__(self, model: nn.Module, context: RunContext, steps: int) -> None:
        """Move a network to the device of a setting.

        Args:
            model: freshly built under the run's seed.
            context: what it is trained with.
            steps: in the whole training.
        """
        model.to(context.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._model, self._context = model, context
        self._optimizer, self._schedule = make_optimizer(model, context.recipe, steps)
        self._outcome: Callable[..., tuple[Tensor, Tensor]] | None = None if context.compiled else self._losses
        self._compiled_steps = 0

    @property
    def networks(self) -> list[nn.Module]:
        """As they are now, for evaluation."""
        return [self._model]

    @property
    def rate(self) -> float:
        """Learning rate of the next step."""
        return self._optimizer.param_groups[0]["lr"]

    def begin_epoch(self, epoch: int) -> None:
        """Be ready to train, after an evaluation."""
        self._model.train()

    def step(self, batches: Sequence[Batch]) -> Tensor:
        """Take a step on a batch for each network.

        A compiled step that fails is taken again in eager mode, and so are all that follow (``compile_error``).

        Returns:
            (S, 2): loss and accuracy of each, on the device.
        """
        xs, y_SN = [x for x, _ in batches], torch.stack([y for _, y in batches])
        if self.compile_error is None and self._context.compiled:
            losses_S, accuracies_S = self._compiled_gradients(xs, y_SN)
        else:
            losses_S, accuracies_S = self._gradients(xs, y_SN)
        self._optimizer.step()
        self._schedule.step()
        return torch.stack([losses_S.detach(), accuracies_S], 1)

    def _gradients(self, xs: list[Tensor], y_SN: Tensor) -> tuple[Tensor, Tensor]:
        """Loss and accuracy of each network; the gradients are in the parameters."""
        self._optimizer.zero_grad(set_to_none=True)
        if self._outcome is None:
            self._outcome = _compiled(self._losses)
        losses_S, accuracies_S = self._outcome(xs, y_SN)
        losses_S.sum().backward()  # no loss depends on another network's weights
        return losses_S, accuracies_S

    def _compiled_gradients(self, xs: list[Tensor], y_SN: Tensor) -> tuple[Tensor, Tensor]:
        """``_gradients`` of a compiled step, or of the same step in eager mode if it fails.

        Running statistics that a failing step has changed are put back during the first steps. In a later one a batch
        may count in them twice.
        """
        self._compiled_steps += 1
        buffers = list(self._model.buffers()) if self._compiled_steps <= COMPILE_WARMUP_STEPS else []
        before = [buffer.clone() for buffer in buffers]
        try:
            return self._gradients(xs, y_SN)
        except Exception as error:
            if is_out_of_memory(error):
                raise
            self.compile_error = _reason(error)
        print(
            f"warning: the compiled step failed ({self.compile_error}); going on in eager mode",
            file=sys.stderr,
            flush=True,
        )
        self._outcome = self._losses
        for buffer, value in zip(buffers, before, strict=True):
            buffer.copy_(value)
        return self._gradients(xs, y_SN)

    @property
    def compilation(self) -> dict[str, Any]:
        """Whether the step was compiled, and why no longer, for the record of a run; nothing where not asked for."""
        if not self._context.compiled:
            return {}
        failed = self.compile_error is not None
        return {"compiled": not failed, **({"compile_error": self.compile_error} if failed else {})}

    def _losses(self, xs: list[Tensor], y_SN: Tensor) -> tuple[Tensor, Tensor]:
        """Loss and accuracy of each network."""
        with self._context.autocast():
            logits_SNC = self._logits(xs)
            smoothing = self._context.recipe.label_smoothing
            losses = F.cross_entropy(
                logits_SNC.float().flatten(0, 1), y_SN.flatten(), reduction="none", label_smoothing=smoothing
            )
        return losses.view_as(y_SN).mean(1), (logits_SNC.argmax(2) == y_SN).float().mean(1)

    def _logits(self, xs: list[Tensor]) -> Tensor:
        """(S, N, classes) of a batch for each network."""
        (x,) = xs
        return self._model(x).unsqueeze(0)

    def state(self, place: int) -> dict[str, Any]:
        """Everything that is needed to go on with a network, as its checkpoint holds it."""
        assert place == 0
        return {
            "model": self._model.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "schedule": self._schedule.state_dict(),
        }

    def restore(self, place: int, state: dict[str, Any]) -> None:
        """Go on from what ``state`` gave, on whatever device, in whatever company."""
        assert place == 0
        self._model.load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._schedule.load_state_dict(state["schedule"])


def _compiled(losses: Callable[..., tuple[Tensor, Tensor]]) -> Callable[..., tuple[Tensor, Tensor]]:
    """Compiled once for each architecture: another seed of one finds it done."""
    import torch._dynamo  # takes seconds, and few need it

    torch._dynamo.config.recompile_limit = MAX_COMPILED_ARCHITECTURES
    return torch.compile(losses, **COMPILE_OPTIONS)


def _reason(error: Exception) -> str:
    """The first line of what went wrong, without the compiler's frame around it."""
    inner = getattr(error, "inner_exception", None) or error
    lines = [line.strip() for line in str(inner).splitlines() if line.strip()]
    return f"{type(inner).__name__}: {lines[0] if lines else 'no reason given'}"
