"""GroupedConv2d: a drop-in for ``torch.nn.Conv2d`` whose filter groups may have any sizes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from operator import index
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import Proxy
from torch.nn.common_types import _size_2_t

from gconv.kernels.geometry import Geometry
from gconv.operator.dispatch import is_left_to_aten
from gconv.operator.fx import leaf
from gconv.operator.group_weight import PerGroup, check_reparametrisations, fill, refuse_fan_in
from gconv.operator.library import InputError
from gconv.operator.ops import as_aten_convolutions, grouped_conv2d
from gconv.partition import Partition, Spec

PADDING_MODES = ("zeros", "reflect", "replicate", "circular")


class GroupedConv2d(nn.Conv2d):
    """2-D convolution in filter groups: input group g feeds output group g only.

    It is a subclass of ``nn.Conv2d`` and takes the same inputs. With equal groups the ``state_dict`` is that of
    ``nn.Conv2d``, and so are the initial values under the same seed.

    With unequal groups ``weight`` has shape (L, Kh, Kw): the weights of all L connected channel pairs, group after
    group. ``group_weights()`` returns views (O_g, C_g, Kh, Kw) of it. There is no tensor (O, C, Kh, Kw), so
    ``nn.init.kaiming_normal_(layer.weight)``, ``weight_norm(layer)`` and structured pruning raise an error. Use
    ``layer.initialise(nn.init.kaiming_normal_)`` and ``layer.parametrise(weight_norm)``, which work for equal and for
    unequal groups. ``nn.init.kaiming_normal_(layer.weight.data)`` cannot be refused, and gives values that are too
    large.

    ``.to(memory_format=torch.channels_last)`` stores a weight of unequal groups tap by tap, as (Kh, Kw, L), which is
    faster; its shape and its numbers stay. ``nn.utils.convert_conv2d_weight_memory_format`` raises an error.

    The metadata of a ``state_dict`` has the sizes of unequal groups. ``load_state_dict`` raises an error for a layer
    of other groups. Formats without metadata, such as safetensors, are not checked.

    On a CPU an infinity or NaN stays in its group. On other devices kernels that multiply zeros between groups
    (``packed``, ``nested``, ``masked``, ``band``) turn it into NaN in other groups. ``forced_kernel("loop")`` avoids
    this.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, bias, padding_mode, device, dtype:
            as in ``nn.Conv2d``.
        groups: partition of the outputs, and of the inputs if ``in_groups`` is not given. It is anything that
            ``Partition.of`` reads: ``4``, ``"log:4"``, ``"32,16,8,8"``, ``"4:2:1:1"``, a Partition.
        in_groups: partition of the inputs, if it differs from that of the outputs.

    Attributes:
        groups: number of groups, an int as in ``nn.Conv2d``.
        geometry: both partitions, kernel size, stride, dilation, and the part of the padding that the kernel itself
            does.

    Raises:
        TypeError: a size that is not a whole number.
        ValueError: the channels cannot be cut in this way; a size below its least value; an unknown padding;
            ``padding="same"`` with a stride.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: _size_2_t,
        stride: _size_2_t = 1,
        padding: _size_2_t | Literal["same", "valid"] = 0,
        dilation: _size_2_t = 1,
        groups: Spec = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        in_groups: Spec | None = None,
    ) -> None:
        nn.Module.__init__(self)  # that of nn.Conv2d allows equal groups only
        if padding_mode not in PADDING_MODES:
            raise ValueError(f"padding_mode {padding_mode!r}: must be one of {', '.join(PADDING_MODES)}")
        self.in_channels = _whole(in_channels, "in_channels")
        self.out_channels = _whole(out_channels, "out_channels")
        self.kernel_size = _pair(kernel_size, "kernel_size")
        self.stride = _pair(stride, "stride")
        self.dilation = _pair(dilation, "dilation")
        self.padding = padding if isinstance(padding, str) else _pair(padding, "padding", least=0)
        self.padding_mode = padding_mode
        self.transposed = False
        self.output_padding = (0, 0)
        sides = self._padding_sides()
        self._reversed_padding_repeated_twice = list(sides)
        symmetric = sides[0] == sides[1] and sides[2] == sides[3]
        inside = padding_mode == "zeros" and symmetric
        # Padding in F.pad's order (left, right, top, bottom) where the kernel cannot do it itself.
        self._pad_first = None if inside else sides
        self.geometry = Geometry(
            _cut(groups if in_groups is None else in_groups, self.in_channels, "in_channels"),
            _cut(groups, self.out_channels, "out_channels"),
            self.kernel_size,
            self.stride,
            (sides[2], sides[0]) if inside else (0, 0),
            self.dilation,
        )
        self.groups = self.geometry.groups
        self.weight = nn.Parameter(torch.empty(self.geometry.weight_shape, device=device, dtype=dtype))
        bias_O = nn.Parameter(torch.empty(self.out_channels, device=device, dtype=dtype)) if bias else None
        self.register_parameter("bias", bias_O)
        self.reset_parameters()

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """Register a parameter, and have initialisers that need a fan-in raise on a weight of unequal groups."""
        super().register_parameter(name, param)
        if name == "weight":
            refuse_fan_in(self)

    def __setstate__(self, state: dict[str, Any]) -> None:  # of a copy, whose parameters are new
        super().__setstate__(state)
        refuse_fan_in(self)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Apply ``fn`` to all tensors, as ``to`` and ``to_empty`` do, which may make new parameters.

        The weight of unequal groups is given as (1, L, Kh, Kw), to which a memory format can be applied.
        """

        def apply(t: Tensor) -> Tensor:
            if t.dim() != 3 or type(t) not in (Tensor, nn.Parameter):
                return fn(t)
            # The stride of the batch tells torch the memory format, of a slice of a larger weight too.
            span = max(size * stride for size, stride in zip(t.shape, t.stride(), strict=True))
            return fn(t.as_strided((1, *t.shape), (span, *t.stride()))).squeeze(0)

        super()._apply(apply, recurse)
        refuse_fan_in(self)
        return self

    def _padding_sides(self) -> tuple[int, int, int, int]:
        if self.padding == "valid":
            return (0, 0, 0, 0)
        if self.padding == "same":
            if self.stride != (1, 1):
                raise ValueError(f"padding='same' needs stride 1, not {self.stride}")
            (top, bottom), (left, right) = (
                (d * (k - 1) // 2, d * (k - 1) - d * (k - 1) // 2)
                for d, k in zip(self.dilation, self.kernel_size, strict=True)
            )
            return (left, right, top, bottom)
        if isinstance(self.padding, str):
            raise ValueError(f"padding {self.padding!r}: must be 'same', 'valid' or numbers")
        height, width = self.padding
        return (width, width, height, height)

    def reset_parameters(self) -> None:
        """Initialise as ``nn.Conv2d`` does, each group by its own fan-in: uniform in ±1/√(C_g·Kh·Kw)."""
        if self.geometry.is_uniform:  # one draw, as nn.Conv2d makes it
            nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        else:
            self.initialise(nn.init.kaiming_uniform_, a=math.sqrt(5))
        if self.bias is None:
            return
        cuts = self.geometry.in_groups.sizes, self.geometry.out_groups.sizes
        bounds = [1 / math.sqrt(size * self.kernel_size[0] * self.kernel_size[1]) for size in cuts[0]]
        if self.geometry.is_uniform:
            nn.init.uniform_(self.bias, -bounds[0], bounds[0])
            return

        def draw(bias_O: Tensor) -> None:
            for part, bound in zip(bias_O.split(list(cuts[1])), bounds, strict=True):
                nn.init.uniform_(part, -bound, bound)

        fill(self.bias, draw)

    def initialise(self, initialiser: Callable[..., Any], *arguments: Any, **named: Any) -> None:
        """Initialise the weight of each group with a function of ``torch.nn.init``, by the fan-in of the group.

        Args:
            initialiser: fills a tensor of shape (O_g, C_g, Kh, Kw) in place, as ``nn.init.kaiming_normal_`` does.
            arguments, named: further arguments of the initialiser, after the tensor.
        """

        def draw(weight: Tensor) -> None:
            for part in self.geometry.group_weights(weight):
                initialiser(part, *arguments, **named)

        fill(self.weight, draw)

    def parametrise(self, parametrisation: Callable[[nn.Conv2d], object]) -> None:
        """Reparametrise the weight of each group separately.

        Args:
            parametrisation: registers a parametrisation on the weight of a layer, as
                ``torch.nn.utils.parametrizations.weight_norm`` does.

        Raises:
            ValueError: it registers none.
        """
        from torch.nn.utils.parametrize import register_parametrization

        per_group = PerGroup(self.geometry, self.weight, parametrisation)
        register_parametrization(self, "weight", per_group, unsafe=True)

    def group_weights(self) -> list[Tensor]:
        """Return views of the weight, one of shape (O_g, C_g, Kh, Kw) per group."""
        return self.geometry.group_weights(self.weight)

    def _partitions(self) -> dict[str, str]:
        """Return the sizes of unequal groups, for the metadata of a state dict; equal groups have none."""
        if self.geometry.is_uniform:
            return {}
        cuts = {"in_groups": self.geometry.in_groups, "out_groups": self.geometry.out_groups}
        return {name: ",".join(map(str, cut.sizes)) for name, cut in cuts.items()}

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        """Save the parameters as ``nn.Conv2d`` does, and the groups in the metadata of the state dict."""
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if metadata := getattr(destination, "_metadata", None):
            metadata[prefix[:-1]] |= self._partitions()

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: Mapping[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """Load parameters, unless the metadata names other groups: their weight may have this shape."""
        for name, sizes in self._partitions().items():
            saved = local_metadata.get(name, sizes)
            if saved != sizes:
                error_msgs.append(f"{name} of {prefix[:-1] or 'the layer'}: {saved} in the state dict, {sizes} here")
                return
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )

    def forward(self, input: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, O, H', W'), or (C, H, W) to (O, H', W')."""
        if self._pad_first is None and is_left_to_aten(input, self.geometry):
            weight, bias = self.weight, self.bias
            if input.dtype == weight.dtype and (bias is None or bias.dtype == weight.dtype):
                try:
                    return F.conv2d(input, weight, bias, self.stride, self.geometry.padding, self.dilation, self.groups)
                except RuntimeError:  # arguments that do not fit are named below
                    pass
        if isinstance(input, Proxy):
            named = leaf(self, input)
            return self._conv_forward(input, self.weight, self.bias) if named is None else named
        return self._conv_forward(input, self.weight, self.bias)

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        x, traced = input, isinstance(input, Proxy)
        if not traced:
            if not isinstance(x, Tensor):
                raise TypeError(f"{type(x).__name__}: GroupedConv2d takes a tensor (N, C, H, W) or (C, H, W)")
            if x.dim() != 4:
                if x.dim() != 3:
                    raise InputError(f"input of shape {tuple(x.shape)}: GroupedConv2d takes (N, C, H, W) or (C, H, W)")
                return self._conv_forward(x.unsqueeze(0), weight, bias).squeeze(0)
            if "weight" not in self._parameters:  # computed by another layer or a parametrisation
                check_reparametrisations(self)
        if self._pad_first is not None:
            x = F.pad(x, self._pad_first, mode="constant" if self.padding_mode == "zeros" else self.padding_mode)
        return (as_aten_convolutions if traced else grouped_conv2d)(x, weight, bias, self.geometry)

    def __prepare_scriptable__(self) -> nn.Module:
        """Give ``torch.jit.script`` an ``nn.Conv2d``, which it can read."""
        if not self.geometry.is_uniform:
            raise TypeError(
                f"torch.jit.script takes no GroupedConv2d of unequal groups ({self.geometry.out_groups}); "
                "use torch.export.export, whose program needs no gconv"
            )
        with torch.device("meta"):
            window = self.kernel_size, self.stride, self.padding, self.dilation
            has_bias = self.bias is not None
            plain = nn.Conv2d(
                *(self.in_channels, self.out_channels, *window, self.groups, has_bias),  # type: ignore[arg-type]
                padding_mode=self.padding_mode,
            )
        plain.weight, plain.bias = self.weight, self.bias
        return plain.train(self.training)

    def extra_repr(self) -> str:
        """Return the text in the parentheses of ``print(layer)``."""
        cut = str(self.geometry.out_groups)
        if str(self.geometry.in_groups) != cut:
            cut = f"{self.geometry.in_groups} -> {cut}"
        text = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"
        text += f", padding={self.padding!r}, groups={cut}"
        text += "" if self.dilation == (1, 1) else f", dilation={self.dilation}"
        text += "" if self.bias is not None else ", bias=False"
        return text + ("" if self.padding_mode == "zeros" else f", padding_mode={self.padding_mode!r}")


CONVOLUTIONS = (nn.Conv2d, GroupedConv2d)


def cuts(conv: nn.Conv2d | GroupedConv2d) -> tuple[Partition, Partition]:
    """Return the partitions of the inputs and of the outputs of a convolution."""
    if isinstance(conv, GroupedConv2d):
        return conv.geometry.in_groups, conv.geometry.out_groups
    return Partition.uniform(conv.in_channels, conv.groups), Partition.uniform(conv.out_channels, conv.groups)


def _whole(value: Any, name: str, least: int = 1) -> int:
    try:
        whole = index(value)
    except TypeError:
        raise TypeError(f"{name} must be a whole number of at least {least}, not {value!r}") from None
    if isinstance(value, bool) or whole < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, not {value!r}")
    return whole


def _pair(value: _size_2_t, name: str, least: int = 1) -> tuple[int, int]:
    wrong = f"{name} must be one or two whole numbers of at least {least}, not {value!r}"
    values = value if isinstance(value, list | tuple) else (value, value)
    try:
        pair = tuple(map(index, values))
    except TypeError:
        raise TypeError(wrong) from None
    if len(pair) != 2 or any(isinstance(v, bool) for v in values) or min(pair) < least:
        raise ValueError(wrong)
    return pair


def _cut(spec: Spec, channels: int, name: str) -> Partition:
    try:
        return Partition.of(spec, channels)
    except ValueError as error:
        raise ValueError(f"{name}={channels}, groups={spec}: {error}") from None
