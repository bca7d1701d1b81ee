"""Forward and backward pass compiled by ``torch.compile``, with eager mode to fall back on."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from experiments.out_of_memory import is_out_of_memory

COMPILE_OPTIONS: dict[str, Any] = {"mode": "reduce-overhead", "dynamic": False}  # with CUDA graphs
COMPILE_WARMUP_STEPS = 8  # in which both passes are built and warmed up, and CUDA graphs recorded
MAX_COMPILED_ARCHITECTURES = 256  # in one process; by default torch goes back to eager mode from the eighth on

Losses = Callable[[list[Tensor], Tensor], tuple[Tensor, Tensor]]  # inputs and labels to losses and accuracies


class CompiledPasses:
    """Both passes of a step; once they have failed, they and all that follow are run in eager mode.

    Attributes:
        error: why the compiled passes were given up, on one line; None while they work.
    """

    error: str | None = None

    def __init__(self, model: nn.Module, losses: Losses) -> None:
        """Prepare the compiler; it runs at the first step.

        Args:
            model: whose running statistics the forward pass updates and whose gradients the backward pass leaves.
            losses: forward pass of the model.
        """
        self._model, self._eager, self._steps = model, losses, 0
        self._compiled = _compile(losses)

    def __call__(self, xs: list[Tensor], y_SN: Tensor) -> tuple[Tensor, Tensor]:
        """Return losses and accuracies, (S,) each; the gradients are in the parameters.

        Running statistics that a failing forward pass has changed are put back during the first steps. In a later one
        a batch may count in them twice.
        """
        if self.error is None:
            self._steps += 1
            buffers = list(self._model.buffers()) if self._steps <= COMPILE_WARMUP_STEPS else []
            before = [buffer.clone() for buffer in buffers]
            try:
                return self._run(self._compiled, xs, y_SN)
            except Exception as error:
                if is_out_of_memory(error):
                    raise
                self.error = _reason(error)
            warning = f"warning: the compiled step failed ({self.error}); going on in eager mode"
            print(warning, file=sys.stderr, flush=True)
            self._model.zero_grad(set_to_none=True)
            for buffer, value in zip(buffers, before, strict=True):
                buffer.copy_(value)
        return self._run(self._eager, xs, y_SN)

    def _run(self, losses: Losses, xs: list[Tensor], y_SN: Tensor) -> tuple[Tensor, Tensor]:
        losses_S, accuracies_S = losses(xs, y_SN)
        losses_S.sum().backward()
        return losses_S, accuracies_S


def _compile(losses: Losses) -> Losses:
    """Return a forward pass that is compiled once for each architecture: another seed finds it done."""
    import torch._dynamo  # takes seconds, and few need it

    torch._dynamo.config.recompile_limit = MAX_COMPILED_ARCHITECTURES
    return torch.compile(losses, **COMPILE_OPTIONS)


def _reason(error: Exception) -> str:
    """Return the first line of what went wrong, without the compiler's frame around it."""
    inner = getattr(error, "inner_exception", None) or error
    lines = [line.strip() for line in str(inner).splitlines() if line.strip()]
    return f"{type(inner).__name__}: {lines[0] if lines else 'no reason given'}"
