"""Functions that each rank runs in the tests of networks spread over several processes."""

import os
import signal
import time

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from experiments.group_parallel.rank_network import count_sent_bytes, rank_network, rank_values
from experiments.models import build_model
from gconv import GroupedConv2d
from gconv.placement import plan

BATCH = 6


class Branches(nn.Module):
    """A sum, a concatenation, a mean, plain grouped and dense convolutions, and a layer called with functions alone."""

    def __init__(self, groups):
        super().__init__()
        self.stem = nn.Conv2d(3, 24, 3, padding=1)
        self.left = GroupedConv2d(24, 24, 3, padding=1, groups=groups)
        self.right = nn.Conv2d(24, 16, 1)
        self.norm = nn.BatchNorm2d(40)
        self.last = GroupedConv2d(40, 24, 3, padding="same", padding_mode="reflect", groups=1)
        self.plain = nn.Conv2d(24, 48, 3, groups=4)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(48, 7)

    def forward(self, x):
        x = F.relu(self.stem(x))
        y = self.left(x)
        y += x
        z = self.norm(torch.cat([y, self.right(x)], dim=1))
        z = torch.relu_(self.plain(self.last(F.max_pool2d(z, 2))))
        return self.head(self.drop(z.mean((2, 3))))


def net(name, arguments):
    """The network of a case, the same on every rank."""
    torch.manual_seed(3)
    if name == "branches":
        return Branches(**arguments), 12
    size = arguments.pop("size")
    return build_model(name, input_size=size, **arguments), size


def step(model, x, y):
    """Outputs, and gradients by name."""
    torch.manual_seed(11)  # dropout
    outputs = model(x)
    F.cross_entropy(outputs, y).backward()
    return outputs.detach(), {name: p.grad for name, p in model.named_parameters()}


def difference(ours, theirs, scale=None):
    """The largest, relative to the largest number there is."""
    scale = theirs.abs().max() if scale is None else scale
    return ((ours - theirs).abs().max() / scale).item()


def largest_of_layers(gradients):
    """The gradient of a bias before a batch normalisation is 0: what it is relative to is that of its layer."""
    largest = {}
    for name, gradient in gradients.items():
        layer = name.rpartition(".")[0]
        largest[layer] = max(largest.get(layer, 0.0), gradient.abs().max().item())
    return {name: largest[name.rpartition(".")[0]] for name in gradients}


def compare(rank, cases):
    """Each network whole and in parts, on as many ranks as its case says: differences, bytes against the formula."""
    groups = {ranks: dist.new_group(list(range(ranks))) for ranks in sorted({case[2] for case in cases})}
    return [_compare(rank, *case, groups[case[2]]) if rank < case[2] else None for case in cases]


def _compare(rank, name, arguments, ranks, dtype, group):
    model, size = net(name, dict(arguments))
    how = plan(model, (3, size, size), ranks)
    model.to(dtype)
    part = rank_network(model, how, rank, group)
    torch.manual_seed(7)
    x, y = torch.randn(BATCH, 3, size, size, dtype=dtype), torch.randint(0, 4, (BATCH,))
    outputs, gradients = step(model, x, y)
    scale = largest_of_layers(gradients)
    with count_sent_bytes() as sent:
        own_outputs, own_gradients = step(part, x, y)
    expected = rank_values(model, how, gradients, rank)
    buffers = rank_values(model, how, dict(model.named_buffers()), rank)
    with torch.no_grad(), count_sent_bytes() as sent_forwards:
        evaluated = difference(part.eval()(x), model.eval()(x))
    return {
        "outputs": difference(own_outputs, outputs),
        "gradients": max(difference(g, expected[name], scale[name]) for name, g in own_gradients.items()),
        "buffers": max([difference(b.float(), buffers[name].float()) for name, b in part.named_buffers()], default=0),
        "evaluated": evaluated,
        "names": own_gradients.keys() == gradients.keys(),
        "parameters": (sum(p.numel() for p in part.parameters()), sum(p.numel() for p in model.parameters())),
        "sent": sum(sent.values()),
        "sent_forwards": sum(sent_forwards.values()),
        "formula": sum(e.sent(ranks)[rank] for e in how.exchanges) * x.element_size() * BATCH,
        "formula_forwards": sum(e.sent(ranks, training=False)[rank] for e in how.exchanges) * x.element_size() * BATCH,
        "in_all": how.sent(BATCH),
    }


def lose_a_rank(rank, how):
    """One rank is lost in one of several ways while the others wait for it."""
    if rank == 1:
        if how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "error":
            raise ValueError("its own fault")
        if how == "silent":
            time.sleep(60)
    x = torch.ones(3)
    dist.all_reduce(x)
    return rank
