"""Search for the fastest kernel of each layer of a model, on this machine; the times are kept in the user's table.

The ops are observed while the model runs: op, geometry, dtype, layout, size. Each op is timed with every kernel that
can compute it (``kernels/race.py``). A faster kernel may return another memory format, and so change the ops of later
layers. Therefore the model runs again until no new op is observed.
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from threading import Lock
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import increment_version
from torch.utils._pytree import tree_leaves

from gconv.kernels import DIFFERENTIABLE, OPS, different, find, runnable
from gconv.kernels import table as tables
from gconv.kernels.aten import empty_weight, is_channels_last
from gconv.kernels.choose import APART, by_kernel, by_rule, choose, pixel_bits, together
from gconv.kernels.geometry import Geometry
from gconv.kernels.machine import Machine, this_machine
from gconv.kernels.race import Race, race
from gconv.operator import dispatch
from gconv.operator.ops import grouped_conv2d
from gconv.wiring.meta import unwrapped
from gconv.wiring.text_table import aligned

VARIABLE = "GCONV_TUNE"  # environment variable: 1 measures every op at its first use
FIRST_USE_BUDGET_S = 2.0
MAX_STEP_RATIO = 1.15  # sum of the times of the ops, relative to the fastest; slower steps are not timed


class Use(NamedTuple):
    """One op of a layer at one size, or its whole training step (``step``): the unit of measurement."""

    op: str
    geometry: Geometry
    dtype: torch.dtype
    device: torch.device
    channels_last: bool
    batch: int
    height: int
    width: int

    @property
    def case(self) -> tuple[Geometry, torch.dtype, torch.device, bool, int]:
        """Arguments on which the choice of a kernel depends."""
        bits = pixel_bits(self.batch, self.height, self.width)
        return self.geometry, self.dtype, self.device, self.channels_last, bits

    @property
    def kind(self) -> tables.Kind:
        """Kind of its rows in the table."""
        geometry, dtype, _, channels_last, bits = self.case
        return tables.Kind.of(self.op, geometry, dtype, channels_last, bits)

    @property
    def chosen(self) -> str:
        """Name of the kernel that computes it now."""
        return (together(*self.case) or APART) if self.op == "step" else choose(self.op, *self.case).kernel

    @property
    def by_rule(self) -> str:
        """Name of the kernel that computes it if nothing is measured."""
        geometry, dtype, device, _, bits = self.case
        op = "weight_gradient" if self.op == "step" else self.op  # the rule has one kernel for all of a training step
        return by_rule(op, geometry, dtype, device, bits).kernel

    @property
    def order(self) -> tuple[int, int]:
        """Largest layers first; of a layer its ops, then the step, which depends on what is chosen for them."""
        macs = sum(self.geometry.links) * self.batch * self.height * self.width
        return -macs, (*OPS, "step").index(self.op)


@dataclass(frozen=True)
class TuneReport:
    """Result of ``tune``. Prints as a table of the layers.

    Attributes:
        machine: the machine of the measurements.
        seconds: duration.
        budget_s: greatest duration allowed, in seconds.
        races: race of each kind of op or step that was measured now.
        chosen: the kernel that computes each op or step of the model from now on.
        left: ops and steps that were not measured within the budget.
        write_failure: reason why the times are in the memory of this process alone; empty if they are in the table.
    """

    machine: Machine
    seconds: float
    budget_s: float
    races: dict[tables.Kind, Race]
    chosen: dict[Use, str]
    left: tuple[Use, ...]
    write_failure: str

    @property
    def line(self) -> str:
        """One line: the number of layers measured, the time taken and the machine; also if the times are not kept."""
        words = f"{len(self.races)} kinds of op measured in {self.seconds:.1f} s"
        known = len({use.kind for use in self.chosen} - self.races.keys() - {use.kind for use in self.left})
        if known:
            words += f", {known} known before"
        if self.left:
            words += f", {len(self.left)} left when the {self.budget_s:g} s were over"
        not_kept = f"; not kept after this process: {self.write_failure}" if self.write_failure else ""
        return f"kernels: {words}; {self.machine}{not_kept}"

    def gain(self, use: Use) -> float | None:
        """Return the time of the kernel by rule over that of the chosen kernel; None if either was not measured now."""
        seconds = by_kernel(self.races[use.kind].seconds) if use.kind in self.races else {}
        if use.by_rule in seconds and self.chosen[use] in seconds:
            return seconds[use.by_rule] / seconds[self.chosen[use]]
        return None

    def __str__(self) -> str:
        """Return the line, then the kernels of each layer and its gain in speed over the rule."""
        layers: dict[tuple, dict[str, Use]] = defaultdict(dict)
        for use in sorted(self.chosen, key=lambda use: use.order):
            layers[use[1:]][use.op] = use
        header = ["layer", "input", "dtype", "layout", *OPS, "step", "gain"]
        rows = []
        for uses in layers.values():
            use = next(iter(uses.values()))
            shape = f"{use.batch}×{use.geometry.in_groups.channels}×{use.height}×{use.width}"
            layout = "channels_last" if use.channels_last else "contiguous"
            kernels = [self.chosen[uses[op]] if op in uses else "" for op in (*OPS, "step")]
            gain = self.gain(uses["step" if "step" in uses else next(iter(uses))])
            dtype = str(use.dtype).removeprefix("torch.")
            rows.append([str(use.geometry), shape, dtype, layout, *kernels, "" if gain is None else f"{gain:.2f}"])
        if not rows:
            return self.line
        note = "gain: time of the kernels by rule over these, of the step or else of the first op"
        return "\n".join([self.line, aligned(header, rows, texts=len(header) - 1), note])


def tune(
    model: nn.Module,
    example: Any,
    budget_s: float = 20.0,
    clock: Callable[[], float] = time.perf_counter,
) -> TuneReport:
    """Measure the fastest kernel for each grouped convolution of a model, and use it from now on.

    The model is called once or more. The ops of these calls are measured: the forward pass, and both gradients if the
    model is in training mode. Their dtype is that of the weights, or of autocast if it surrounds the call. The number
    of threads is torch's present one. Kernels run in turn; clearly slower ones drop out. The times go into the user's
    table (``~/.cache/gconv/kernels``), for all programs on this machine; if it cannot be written, this process alone
    uses them. Ops of that table are not measured again. Parameters, gradients, running statistics and random numbers
    do not change.

    Args:
        model: model with grouped convolutions; compiled and parallel wrappers are removed first.
        example: a typical input on the device of the model; or a tuple of arguments.
        budget_s: greatest duration in seconds; the last measurement may exceed it. Ops that are not measured by then
            keep their kernels.
        clock: function that returns seconds.

    Returns:
        A report, which prints as a table.

    Raises:
        TypeError: ``model`` is no module, or ``example`` a shape.
        ValueError: ``budget_s`` is not above 0, or infinite.
    """
    model = unwrapped(model, "tune")
    if not isinstance(budget_s, int | float) or not 0 < budget_s < math.inf:
        raise ValueError(f"budget_s={budget_s!r}: must be a number of seconds above 0")
    if isinstance(example, Sequence) and example and all(isinstance(size, int) for size in example):
        raise TypeError(f"tune: example={tuple(example)} is a shape; give an input: torch.rand{tuple(example)}")
    arguments = example if isinstance(example, tuple) else (example,)
    start = clock()
    until = start + budget_s
    races: dict[tables.Kind, Race] = {}
    while True:
        uses = _uses(model, arguments)
        known = _known({use.device for use in uses}) | races.keys()
        fresh = sorted({use.kind: use for use in uses if use.kind not in known}.values(), key=lambda use: use.order)
        left = fresh
        while left and (now := clock()) < until:
            use, *left = left
            # Most are certain early, and leave their time to those that are not.
            races[use.kind] = measure(use, now + 2 * (until - now) / (1 + len(left)), clock)
        if left or not fresh:
            break
    machine = this_machine(next(iter(uses)).device if uses else torch.device("cpu"))
    chosen = {use: use.chosen for use in uses}
    return TuneReport(machine, clock() - start, budget_s, races, chosen, tuple(left), tables.write_failure(machine))


def _uses(model: nn.Module, arguments: Sequence[Any]) -> set[Use]:
    """Return the ops of one call of a model, with those of the backward pass in training mode."""
    used: set[Use] = set()
    tensors = [t for t in tree_leaves(arguments) if isinstance(t, Tensor)]
    devices = {t.device for t in (*model.parameters(), *tensors) if t.device.type == "cuda"}
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        with torch.random.fork_rng(devices), _watching(_watcher(used.add)):
            if not (model.training and torch.is_grad_enabled()):
                with torch.no_grad():
                    model(*arguments)
            else:
                outputs = [y for y in tree_leaves(model(*arguments)) if isinstance(y, Tensor) and y.requires_grad]
                wanted = [t for t in (*model.parameters(), *tensors) if t.requires_grad]
                if outputs and wanted:
                    ones = [torch.ones_like(y) for y in outputs]
                    torch.autograd.grad(outputs, wanted, ones, allow_unused=True)
    finally:
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)
    return used


@contextmanager
def _watching(watcher: dispatch.Watcher | None) -> Iterator[None]:
    """Observe every op inside the block, in all threads."""
    before = dispatch.watch(watcher)
    try:
        yield
    finally:
        dispatch.watch(before)


def _watcher(see: Callable[[Use], object]) -> dispatch.Watcher:
    """Return a watcher that passes every measurable op to a function."""

    def watch(op: str, like: Tensor, geometry: Geometry, size: Sequence[int]) -> None:
        if _is_measurable(like):
            last = is_channels_last(like)
            see(Use(op, geometry, like.dtype, like.device, last, like.shape[0], int(size[0]), int(size[1])))

    return watch


def _is_measurable(like: Tensor) -> bool:
    """Return True for plain tensors on a device, outside of tracing, transforms and capture."""
    if type(like) not in (Tensor, nn.Parameter) or like.device.type not in ("cpu", "cuda") or not like.numel():
        return False
    if like.is_complex() or torch._C._are_functorch_transforms_active() or torch._C._len_torch_dispatch_stack():
        return False
    return not (like.device.type == "cuda" and torch.cuda.is_current_stream_capturing())


def _known(devices: set[torch.device]) -> set[tables.Kind]:
    """Return the kinds measured on this machine."""
    return {kind for device in devices for kind in tables.own(this_machine(device))}


def measure(use: Use, until: float, clock: Callable[[], float] = time.perf_counter) -> Race:
    """Time every kernel that can compute one use, and extend the user's table.

    Args:
        use: op or step to measure; the ops of a step must have been measured before.
        until: time of the clock at which the measurement ends.
        clock: returns seconds.
    """
    alone = torch.inference_mode(False), torch.autocast(use.device.type, enabled=False)
    with _watching(None), alone[0], alone[1], torch.set_grad_enabled(use.op == "step"):
        ended = race(_calls(use), use.device, until, clock)
    if ended.seconds:
        tables.extend(this_machine(use.device), [(use.kind, ended.seconds)])
        dispatch.forget()
    return ended


def _calls(use: Use) -> dict[str, Callable[[], object]]:
    """Return functions that compute one use with each kernel, on random tensors."""
    geometry, size = use.geometry, (use.height, use.width)
    layout = torch.channels_last if use.channels_last else torch.contiguous_format

    def images(channels: int, size: tuple[int, int]) -> Tensor:
        numbers = torch.ones(use.batch, channels, *size, dtype=use.dtype, device=use.device)
        return numbers.uniform_(-1, 1, generator=generator).contiguous(memory_format=layout)

    generator = torch.Generator(use.device).manual_seed(0)
    x = images(geometry.in_groups.channels, size)
    dy = images(geometry.out_groups.channels, geometry.output_size(size))
    numbers = empty_weight(x, geometry)
    weight = nn.Parameter(numbers.uniform_(-0.1, 0.1, generator=generator))  # as of a layer
    runs = runnable(geometry, use.dtype, use.device)
    names = different(geometry, sorted(runs, key=lambda name: name != use.by_rule))  # the one by rule is always timed
    if use.op == "step":
        x.requires_grad_()

        def step(name: str) -> object:
            increment_version(weight)  # as an optimizer does: nothing that was made of it holds
            with dispatch.separate_ops() if name == APART else dispatch.forced_kernel(name):
                return torch.autograd.grad(grouped_conv2d(x, weight, None, geometry), [x, weight], dy)

        return {name: lambda name=name: step(name) for name in _steps(use, names)}

    def call(kernel: Any, **how: Any) -> object:
        if use.op == "conv2d":
            return kernel.conv2d(x, weight, None, geometry, **how)
        if use.op == "input_gradient":
            return kernel.input_gradient(dy, weight, geometry, size, **how)
        return kernel.weight_gradient(dy, x, geometry, **how)

    ways: dict[str, Callable[[], object]] = {}
    for name in names:
        kernel = find(name)
        if hasattr(kernel, "configs"):
            blockings = kernel.configs(geometry, use.dtype, use.device)
            ways |= {f"{name} {blocking}": partial(call, kernel, blocking=blocking) for blocking in blockings}
        else:
            ways[name] = partial(call, kernel)
    return ways


def _steps(use: Use, names: Sequence[str]) -> list[str]:
    """Return the ways to compute a whole step that are worth timing: by the rule, and those whose ops are fast.

    One kernel for all three ops, which torch differentiates; or one kernel for each op (``APART``), if they differ.
    """
    choices = [choose(op, *use.case) for op in OPS]
    seconds = [dict(choice.seconds) for choice in choices]
    best = sum(times.get(choice.kernel, math.inf) for choice, times in zip(choices, seconds, strict=True))

    def of_all(name: str) -> float:
        return sum(times.get(name, math.inf) for times in seconds)

    worth = {use.by_rule, *(name for name in names if of_all(name) <= MAX_STEP_RATIO * best)}
    whole = [name for name in names if name in worth & DIFFERENTIABLE]
    names_chosen = {choice.kernel for choice in choices}
    apart_is_one = len(names_chosen) == 1 and names_chosen <= DIFFERENTIABLE
    return whole if apart_is_one else [APART, *whole]


_lock = Lock()
_seen_uses: set[tuple] = set()


def _at_first_use(use: Use) -> None:
    """Measure an op at its first use in this process, unless it is known on this machine."""
    met = (use.op, *use.case)
    if met in _seen_uses or tables.is_pinned():
        return
    with _lock:
        if met in _seen_uses:
            return
        _seen_uses.add(met)
        if use.kind in _known({use.device}):
            return
        start = time.perf_counter()
        seconds = measure(use, start + FIRST_USE_BUDGET_S).seconds
        words = f"gconv: {use.op} of {use.geometry} measured in {time.perf_counter() - start:.1f} s"
        print(f"{words}: {use.chosen}" if seconds else f"{words}: no kernel works", file=sys.stderr, flush=True)


def wanted() -> bool:
    """Return True if ops are measured at their first use: ``GCONV_TUNE=1``.

    Raises:
        ValueError: the variable is neither 1 nor 0.
    """
    value = os.environ.get(VARIABLE, "")
    if value not in ("", "0", "1"):
        raise ValueError(f"{VARIABLE}={value}: write 1 to measure kernels at first use, or 0")
    return value == "1"


if wanted():
    dispatch.watch(_watcher(_at_first_use))
