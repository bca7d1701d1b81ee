"""One training step of a network on several devices, by groups or by data, and what it costs on each of them."""

from __future__ import annotations

import copy
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from experiments.group_parallel.rank_network import count_sent_bytes, rank_network, rank_values
from experiments.models import build_model
from gconv.cost import Latency, measure_latencies, measure_peak_memory
from gconv.placement import Plan, plan

SEED = 0
STEPS = 2  # of which the second finds momentum and gradients in place, as every later one does
ALL_REDUCE = "all-reduce"
Way = Literal["groups", "data"]
Answers = tuple[Tensor, dict[str, Tensor]]  # outputs, and gradients by name


@dataclass(frozen=True)
class Case:
    """One way to take a step.

    Attributes:
        name: of the variant.
        model: name and arguments of the network.
        input_size: height and width of the images in pixels.
        batch_size: images of a step, on all devices together.
        devices: how many.
        way: ``groups``: each device has its own towers and all images; ``data``: the network and its own images.
    """

    name: str
    model: dict[str, Any]
    input_size: int
    batch_size: int
    devices: int
    way: Way = "groups"

    def build(self) -> nn.Module:
        """Return the whole network, the same on every rank."""
        torch.manual_seed(SEED)
        return build_model(**self.model, input_size=self.input_size)

    def plan(self, model: nn.Module) -> Plan:
        """Return the network's plan over the devices; by data, each device computes all of it."""
        return plan(model, (3, self.input_size, self.input_size), self.devices if self.way == "groups" else 1)

    def bytes_by_formula(self, plan: Plan, rank: int, parameters: int) -> dict[str, float]:
        """Return the bytes that a rank sends in one step, by the layer that reads them; by data, by ``all-reduce``.

        Args:
            plan: of this case.
            rank: in the case.
            parameters: numbers that the rank learns.
        """
        if self.way == "data" and self.devices > 1:
            return {ALL_REDUCE: bytes_of_all_reduce(4 * parameters, self.devices)}
        sent = Counter[str]()
        for exchange in plan.exchanges:
            sent[exchange.layer] += 4 * self.batch_size * exchange.sent(self.devices)[rank]
        return dict(sent)


def bytes_of_all_reduce(size: int, devices: int) -> float:
    """Return the fewest bytes that each rank sends to sum ``size`` bytes over all (Patarasuk & Yuan 2009: a ring)."""
    return 2 * (devices - 1) / devices * size


@dataclass(frozen=True)
class StepCost:
    """Measurements of one device in one case.

    Attributes:
        parameters: numbers that it learns.
        memory: peak bytes of tensors: parameters, gradients, momentum and activations.
        sent: bytes that it sent in one step, by the layer that reads them; by data, by ``all-reduce``.
        into_grouped: of the sent bytes, those that a grouped layer reads.
        difference: from the whole network on one device, of outputs and of gradients (``_distance``), in fp32; under
            ``float64`` of both computed in it; under ``rounding`` what single precision does on one device. Empty
            where the network is whole.
        time: seconds of a step; None until it is timed.
    """

    parameters: int
    memory: int
    sent: dict[str, float]
    into_grouped: float
    difference: dict[str, tuple[float, float]]
    time: Latency | None


def measure_rank(rank: int, cases: list[Case], repeats: int, kind: str) -> list[StepCost | None]:
    """Measure every case on this rank; None for a case in which it has no part. Every rank of the world calls it.

    Steps of all cases are timed in turn. A step has ended when all devices have ended theirs.

    Args:
        rank: in the world.
        cases: of which none has more devices than the world has ranks.
        repeats: timed steps of each.
        kind: ``cpu`` or ``cuda``.
    """
    device = torch.device(kind, rank) if kind == "cuda" else torch.device(kind)
    counts = sorted({case.devices for case in cases})
    groups: dict[int, Any] = {count: dist.new_group(list(range(count))) for count in counts}
    parts = {case.name: _RankStep(case, rank, groups[case.devices], device) for case in cases if rank < case.devices}
    costs = {name: part.measure_cost() for name, part in parts.items()}
    steps = {name: part.prepare_step() for name, part in parts.items()}

    def turn(name: str) -> None:
        if name in steps:
            steps[name]()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
        dist.barrier()

    times = measure_latencies({case.name: partial(turn, case.name) for case in cases}, device, repeats)
    return [replace(costs[c.name], time=times[c.name]) if c.name in costs else None for c in cases]


class _RankStep:
    """The step of one rank in a case."""

    def __init__(self, case: Case, rank: int, group: dist.ProcessGroup, device: torch.device) -> None:
        self.case, self.rank, self.group, self.device = case, rank, group, device
        self.whole = case.build()
        self.plan = case.plan(self.whole)
        self.data_parallel = case.way == "data" and case.devices > 1

    def measure_cost(self) -> StepCost:
        """Measure memory, bytes sent and differences of this rank; the time is measured later."""
        memory = measure_peak_memory(lambda: [step() for step in [self.prepare_step()] * STEPS], self.device)
        net = self._net()
        parameters = sum(p.numel() for p in net.parameters())
        sent = self._sent(net)
        grouped = {exchange.layer for exchange in self.plan.exchanges if exchange.grouped}
        into_grouped = 0.0 if self.data_parallel else sum(sent[layer] for layer in grouped)
        difference = self._difference() if self.plan.placement.ranks > 1 else {}
        return StepCost(parameters, memory, dict(sent), into_grouped, difference, None)

    def prepare_step(self) -> Callable[[], None]:
        """Prepare a step that can be repeated."""
        net, (x, y) = self._net(), self._images()
        optimizer = torch.optim.SGD(net.parameters(), lr=1e-3, momentum=0.9, nesterov=True)

        def step() -> None:
            optimizer.zero_grad(set_to_none=True)
            F.cross_entropy(net(x), y).backward()
            optimizer.step()

        return step

    def _net(self) -> nn.Module:
        """Return the part of the network that this rank holds, on its device."""
        if self.plan.placement.ranks > 1:
            return rank_network(self.whole, self.plan, self.rank, self.group).to(self.device)
        net = copy.deepcopy(self.whole).to(self.device)
        if not self.data_parallel:
            return net
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # its new name is not in all torch versions that are allowed
            return DistributedDataParallel(net, process_group=self.group, broadcast_buffers=False)

    def _images(self) -> tuple[Tensor, Tensor]:
        """Return the images of this rank, noise, and random labels."""
        case, generator = self.case, torch.Generator().manual_seed(SEED)
        x = torch.randn(case.batch_size, 3, case.input_size, case.input_size, generator=generator)
        y = torch.randint(0, case.model.get("classes", 2), (case.batch_size,), generator=generator)
        if self.data_parallel:
            x, y = (t.tensor_split(case.devices)[self.rank] for t in (x, y))
        return x.clone().to(self.device), y.clone().to(self.device)

    def _sent(self, net: nn.Module) -> Counter[str]:
        """Return the bytes that this rank sends in one step, counted in the calls of torch.distributed."""
        (x, y), reduced = self._images(), Counter[str]()
        if isinstance(net, DistributedDataParallel):

            def count(group, bucket):  # without annotations: torch refuses those that are texts
                reduced[ALL_REDUCE] += bucket.buffer().nbytes
                return allreduce_hook(group, bucket)

            net.register_comm_hook(self.group, count)
        with count_sent_bytes() as by_tag:
            F.cross_entropy(net(x), y).backward()
        moves = list(self.plan.moves.values())
        sent = Counter({layer: bytes_of_all_reduce(size, self.case.devices) for layer, size in reduced.items()})
        for tag, size in by_tag.items():
            exchange = moves[tag].exchange
            assert exchange is not None
            sent[exchange.layer] += size
        return sent

    def _difference(self) -> dict[str, tuple[float, float]]:
        """Return the distance of outputs and gradients from those of the whole network here; see ``StepCost``."""
        whole, net = copy.deepcopy(self.whole).to(self.device), self._net()
        single = (self._answers(whole, torch.float32), self._answers(whole, torch.float64))
        placed = (self._answers(net, torch.float32), self._answers(net, torch.float64))
        own = [(outputs, rank_values(self.whole, self.plan, of, self.rank)) for outputs, of in single]
        return {
            "": _distance(placed[0], own[0]),
            "float64": _distance(placed[1], own[1]),
            "rounding": _distance(own[0], own[1]),
        }

    def _answers(self, net: nn.Module, dtype: torch.dtype) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the outputs, and the gradients by the names of parameters."""
        x, y = self._images()
        net.to(dtype).zero_grad(set_to_none=True)
        torch.manual_seed(SEED)  # dropout
        outputs = net(x.to(dtype))
        F.cross_entropy(outputs, y).backward()
        gradients = {name: p.grad for name, p in net.named_parameters() if p.grad is not None}
        return outputs.detach(), gradients


def _distance(answers: Answers, expected: Answers) -> tuple[float, float]:
    """Return the largest difference of outputs, relative to the largest, and of gradients, to the largest of a layer.

    Relative to a layer, not to a parameter, since the gradient of a bias before a batch normalisation is 0.
    """
    largest: dict[str, float] = {}
    for name, gradient in expected[1].items():
        layer = name.rpartition(".")[0]
        largest[layer] = max(largest.get(layer, 0.0), gradient.abs().max().item())
    gradients = [
        (gradient - expected[1][name]).abs().max().item() / largest[name.rpartition(".")[0]]
        for name, gradient in answers[1].items()
    ]
    outputs = (answers[0] - expected[0]).abs().max() / expected[0].abs().max()
    return outputs.item(), max(gradients)
