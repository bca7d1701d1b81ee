"""Effect of each operation on the channels, by hand: one operation between two convolutions of known groups."""

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn

from gconv.wiring import trace_wiring

CHANNELS = 4


class Between(nn.Module):
    """A convolution, an operation, and a convolution that reads the result of the operation."""

    def __init__(self, operation, out_channels: int):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, CHANNELS, 1), nn.Conv2d(3, CHANNELS, 1)
        self.operation = operation
        self.last = nn.Conv2d(out_channels, 1, 1)
        self.scale = nn.Parameter(torch.ones(CHANNELS))
        self.register_buffer("order", torch.tensor([3, 1, 0, 2]))

    def forward(self, x):
        return self.last(self.operation(self, self.a(x), self.b(x)))


def read(operation, out_channels: int = CHANNELS) -> list[str]:
    """Return the sources of each channel, as "a0 b2"."""
    sources = trace_wiring(Between(operation, out_channels), (3, 6, 6))["last"].sources
    return [" ".join(f"{name}{channel}" for name, channel in sorted(one)) for one in sources]


OWN = ["a0", "a1", "a2", "a3"]
BOTH = ["a0 b0", "a1 b1", "a2 b2", "a3 b3"]
ALL = ["a0 a1 a2 a3"] * 4


def changed_under_another_name(_, a, b):
    a[:, :2].add_(b[:, :2])
    return a


def written_over(_, a, b):
    a.copy_(b)
    return a


def halves_changed_in_place(_, a, b):
    left, right = a.chunk(2, 1)
    right += b[:, 1:3]
    left.mul_(b[:, :2])
    return torch.cat([left, right], 1)


def changed_under_its_own_name(_, a, b):
    a.add_(b)
    return F.relu_(a)


def self_attention(_, a, b):
    """Non-local block: weights from a, values from b."""
    q = a.flatten(2)
    weights = torch.softmax(q.transpose(1, 2) @ q, -1)
    return (weights @ b.flatten(2).transpose(1, 2)).transpose(1, 2).reshape(b.shape)


def attention_of_torch(_, a, b):
    a, b = (x.flatten(2).transpose(1, 2) for x in (a, b))
    return F.scaled_dot_product_attention(a, a, b).transpose(1, 2).unflatten(2, (6, 6))


def einsum_attention(_, a, b):
    weights = torch.einsum("b c h w, b c i j -> b h w i j", a, a)
    return torch.einsum("bhwij,bcij->bchw", weights, b)


ATTENDED = ["a0 a1 a2 a3 b0", "a0 a1 a2 a3 b1", "a0 a1 a2 a3 b2", "a0 a1 a2 a3 b3"]


@pytest.mark.parametrize(
    ("operation", "expected"),
    [
        (lambda m, a, b: a * a.sigmoid(), OWN),
        (lambda m, a, b: F.hardswish(F.relu6(F.gelu(a))).clamp(min=0), OWN),
        (lambda m, a, b: F.prelu(a, m.scale), OWN),
        (lambda m, a, b: F.layer_norm(a.permute(0, 2, 3, 1), (4,), m.scale, m.scale).permute(0, 3, 1, 2), OWN),
        (lambda m, a, b: F.group_norm(a, 2, m.scale), OWN),
        (lambda m, a, b: m.scale.view(1, 4, 1, 1) * a + m.scale[:, None, None], OWN),
        (lambda m, a, b: F.interpolate(F.adaptive_max_pool2d(a, 2), scale_factor=2), OWN),
        (lambda m, a, b: F.pad(F.pad(a, (1, 1), value=3.5), (1, 1, 1, 1), mode="reflect"), OWN),
        (lambda m, a, b: torch.where(a > 0, a, b), BOTH),
        (lambda m, a, b: a * b.mean((2, 3), keepdim=True), BOTH),
        (lambda m, a, b: torch.stack([a, b]).sum(0), BOTH),
        (lambda m, a, b: torch.maximum(a, torch.max(b, 2, keepdim=True).values), BOTH),
        (changed_under_its_own_name, BOTH),
        (halves_changed_in_place, ["a0 b0", "a1 b1", "a2 b1", "a3 b2"]),
        (lambda m, a, b: a[:, m.order], ["a3", "a1", "a0", "a2"]),
        (lambda m, a, b: a.index_select(1, m.order), ["a3", "a1", "a0", "a2"]),
        (lambda m, a, b: a.roll(1, 1).flip(1), ["a2", "a1", "a0", "a3"]),
        (lambda m, a, b: F.pad(a[:, :2], (0, 0, 0, 0, 1, 1)), ["", "a0", "a1", ""]),
        (lambda m, a, b: torch.cat([torch.zeros_like(a[:, :1]), b.split([1, 3], 1)[1]], 1), ["", "b1", "b2", "b3"]),
        (lambda m, a, b: a.to(torch.float64).type_as(b).contiguous(), OWN),
        (lambda m, a, b: F.pixel_unshuffle(F.pixel_shuffle(a, 2), 2), OWN),
        (lambda m, a, b: F.channel_shuffle(a, 2), ["a0", "a2", "a1", "a3"]),
        (lambda m, a, b: F.linear(a.movedim(1, -1), torch.ones(4, 4)).movedim(-1, 1), ALL),
        (lambda m, a, b: nn.functional.conv2d(a, torch.ones(4, 2, 1, 1), groups=2), ["a0 a1"] * 2 + ["a2 a3"] * 2),
        (
            lambda m, a, b: F.conv_transpose2d(a, torch.ones(4, 2, 1, 1), None, 1, 0, 0, 2),
            ["a0 a1"] * 2 + ["a2 a3"] * 2,
        ),
        (lambda m, a, b: a * torch.softmax(a, 1), ALL),
        (lambda m, a, b: a * a.amax(1, keepdim=True), ALL),
        (self_attention, ATTENDED),
        (attention_of_torch, ATTENDED),
        (einsum_attention, ATTENDED),
        (lambda m, a, b: m.scale.sort().values.view(1, 4, 1, 1) + a, OWN),
    ],
)
def test_an_operation_moves_separates_or_mixes_channels(operation, expected):
    assert read(operation) == expected


@pytest.mark.parametrize(
    ("operation", "expected"),
    [
        (lambda m, a, b: a.mean(1, keepdim=True), ALL[:1]),
        (lambda m, a, b: torch.max(a, dim=1, keepdim=True)[0], ALL[:1]),
        (lambda m, a, b: F.pixel_unshuffle(a[:, :2], 2), ["a0"] * 4 + ["a1"] * 4),
        (lambda m, a, b: F.pixel_shuffle(a, 2), [" ".join(OWN)]),
        (lambda m, a, b: a.repeat(1, 2, 1, 1), OWN * 2),
        (lambda m, a, b: a.repeat_interleave(2, 1)[:, 1:4], ["a0", "a1", "a1"]),
    ],
)
def test_an_operation_that_changes_the_number_of_channels(operation, expected):
    assert read(operation, len(expected)) == expected


def test_concatenated_regions_are_separable_again_before_any_pooling():
    def joined(_, a, b):
        return torch.relu(torch.cat([a, b], 2))[:, :, 6:]

    assert read(joined) == ["b0", "b1", "b2", "b3"]


def test_operations_on_the_image_need_no_rule():
    class Prepared(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Conv2d(3, 2, 1), nn.Conv2d(2, 1, 1)

        def forward(self, x, scale=None, *, reverse=False):
            if scale is not None:
                x = x * scale
            red, rest = x.sort(1).values.split([1, 2], 1)
            y = self.first(torch.cat([rest, red], 1) - torch.arange(3).view(1, 3, 1, 1))
            return self.last(y.flip(1) if reverse else y)

    wiring = trace_wiring(Prepared(), (3, 6, 6))
    assert wiring["first"].sources == (set(),) * 3
    assert wiring["last"].sources == ({("first", 0)}, {("first", 1)})


def add(a, b):
    return a.flip(1) * b


fx.wrap("add")


@pytest.mark.parametrize(
    ("operation", "reason"),
    [
        (written_over, "changed in place under another name"),
        (changed_under_another_name, "changed in place under another name"),
        (lambda m, a, b: a[:, a.mean((0, 2, 3)).argsort()], "argsort.*sources of its channels are unknown"),
        (lambda m, a, b: F.layer_norm(a, (6,), b.mean((0, 1, 2))), "its parameters come from filters"),
        (lambda m, a, b: F.conv2d(a, b), "its parameters come from filters"),
        (
            lambda m, a, b: torch.einsum("bc...,bc...->bc...", a, b),
            "needs an arrow, and no dots and no repeated letters",
        ),
        (lambda m, a, b: torch.linalg.svd(a)[0], "svd.*sources of its channels are unknown"),
        (lambda m, a, b: a.mT, "getattr.*sources of its channels are unknown"),
        (lambda m, a, b: a * a.sum().item(), "item.*cannot run without numbers"),
        (lambda m, a, b: add(a, b), "add.*sources of its channels are unknown"),
    ],
)
def test_an_operation_without_a_rule_is_not_followed(operation, reason):
    with pytest.raises(ValueError, match=f"not followed through.*{reason}, and last reads what comes of it"):
        read(operation)
