"""Networks written once more with ``nn.Conv2d`` alone, and how weights get from ours to them."""

import torch
from torch import nn

from gconv import GroupedConv2d


class SplitConv(nn.Module):
    """One dense ``nn.Conv2d`` per group: split, convolve, concatenate."""

    def __init__(self, in_sizes, out_sizes, kernel_size, **options):
        super().__init__()
        self.sizes = list(in_sizes)
        self.convs = nn.ModuleList(
            nn.Conv2d(i, o, kernel_size, **options) for i, o in zip(in_sizes, out_sizes, strict=True)
        )

    def forward(self, x):
        return torch.cat([conv(part) for conv, part in zip(self.convs, x.split(self.sizes, 1), strict=True)], 1)


def conv(in_channels, out_channels, kernel_size, groups=1, **options):
    """``nn.Conv2d``; for proportions such as (4, 2, 1, 1) one of them per group."""
    if isinstance(groups, int):
        return nn.Conv2d(in_channels, out_channels, kernel_size, groups=groups, **options)
    sizes = [[c * part // sum(groups) for part in groups] for c in (in_channels, out_channels)]
    return SplitConv(*sizes, kernel_size, **options)


def cbr(in_channels, out_channels, kernel_size, stride=1, groups=1):
    """Convolution, batch norm, ReLU."""
    return nn.Sequential(*cb(in_channels, out_channels, kernel_size, stride, groups), nn.ReLU())


def cb(in_channels, out_channels, kernel_size, stride=1, groups=1):
    """Convolution, batch norm."""
    options = {"stride": stride, "padding": kernel_size // 2, "bias": False}
    return nn.Sequential(conv(in_channels, out_channels, kernel_size, groups, **options), nn.BatchNorm2d(out_channels))


def assert_same_function(model, plain, x):
    """Copy the weights of every layer, in order, and compare outputs in evaluation and in training."""
    for module in model.modules():  # biases and norms that do something
        if isinstance(getattr(module, "bias", None), nn.Parameter):
            nn.init.uniform_(module.bias, -0.5, 0.5)
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    for own, other in zip(_layers(model), _layers(plain), strict=True):
        if isinstance(other, SplitConv):
            for weight, single in zip(own.group_weights(), other.convs, strict=True):
                single.weight.data.copy_(weight)
            if own.bias is not None:
                sizes = [single.out_channels for single in other.convs]
                for bias, single in zip(own.bias.split(sizes), other.convs, strict=True):
                    single.bias.data.copy_(bias)
        else:
            other.load_state_dict(own.state_dict())
    for training in (False, True):
        with torch.no_grad():
            torch.testing.assert_close(model.train(training)(x), plain.train(training)(x), rtol=1e-5, atol=1e-5)


def _layers(model):
    inside = {id(conv) for m in model.modules() if isinstance(m, SplitConv) for conv in m.convs}
    kinds = GroupedConv2d | nn.Conv2d | SplitConv | nn.BatchNorm2d | nn.Linear
    return [module for module in model.modules() if isinstance(module, kinds) and id(module) not in inside]
