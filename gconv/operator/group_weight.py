"""Weight of unequal groups for initialisers, parametrisations and pruning, which work filter by filter.

Legend: O_g, C_g output and input channels of group g, K kernel, L links of all groups.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from itertools import islice
from weakref import ref

import torch
from torch import Tensor, nn

from gconv.kernels.geometry import Geometry

HINT = "the weight of unequal groups holds one (O_g, C_g, Kh, Kw) per group, not filters of one shape"


class SizeWithoutFanIn:
    """Method ``size`` of a weight (L, Kh, Kw) of unequal groups, which has no single fan-in.

    ``torch.nn.init`` reads it to compute the fan-in, and nothing else of it; there it raises.
    """

    def __init__(self, layer: nn.Module, shape: torch.Size) -> None:
        self._layer = ref(layer)  # not of the weight: torch swaps no tensor that has a weak reference
        self._shape = shape

    def __call__(self, dim: int | None = None) -> torch.Size | int:
        """Return what ``Tensor.size`` does.

        Raises:
            ValueError: an initialiser asks that needs filters of one shape.
        """
        if sys._getframe(1).f_globals.get("__name__") == nn.init.__name__:
            raise ValueError(
                f"{HINT}, so it has no fan-in; write layer.initialise(nn.init.kaiming_normal_, …), which fills each "
                "group by its own"
            )
        layer = self._layer()
        weight = None if layer is None else layer._parameters.get("weight")
        is_own = weight is not None and vars(weight).get("size") is self
        shape = weight.shape if weight is not None and is_own else self._shape
        return shape if dim is None else shape[dim]


class SavedAttributes:
    """Method ``__getstate__`` of the same weight: its attributes but those of ``refuse_fan_in``."""

    def __init__(self, attributes: dict[str, object]) -> None:
        self._attributes = attributes

    def __call__(self) -> dict[str, object]:
        """Return the attributes by name."""
        return {name: value for name, value in self._attributes.items() if name not in ("size", "__getstate__")}


def refuse_fan_in(layer: nn.Module) -> None:
    """Make initialisers that need a fan-in raise on the weight of a layer of unequal groups.

    This sets attributes. A subclass would not do, because optimizers test for the exact class ``nn.Parameter``. They
    are not saved, so that a saved parameter is one of torch alone.
    """
    weight = layer._parameters.get("weight")
    if weight is None or layer.geometry.is_uniform:  # type: ignore[union-attr]
        return
    weight.size = SizeWithoutFanIn(layer, weight.shape)  # type: ignore[method-assign,assignment]
    weight.__getstate__ = SavedAttributes(vars(weight))  # type: ignore[method-assign]


def fill(parameter: Tensor, draw: Callable[[Tensor], None]) -> None:
    """Fill a parameter by ``draw``, in place. A distributed parameter gets a copy of a whole tensor."""
    with torch.no_grad():
        mesh = getattr(parameter, "device_mesh", None)  # of a DTensor, whose views are copies
        if mesh is None:
            draw(parameter.detach())
            return
        from torch.distributed.tensor import DTensor, distribute_tensor

        assert isinstance(parameter, DTensor)
        if parameter.is_meta:
            return
        whole = torch.empty(parameter.shape, dtype=parameter.dtype, device=parameter.to_local().device)
        draw(whole)
        parameter.copy_(distribute_tensor(whole, mesh, parameter.placements))


class PerGroup(nn.Module):
    """Parametrisation of a weight that applies one to the weight of each group.

    Args:
        geometry: geometry of the layer.
        weight: tensor of ``geometry.weight_shape``.
        parametrise: registers a parametrisation on the weight of an ``nn.Conv2d``.

    Raises:
        ValueError: ``parametrise`` registers none.
    """

    def __init__(self, geometry: Geometry, weight: Tensor, parametrise: Callable[[nn.Conv2d], object]) -> None:
        super().__init__()
        self.geometry = geometry
        self.groups = nn.ModuleList()
        self.counts: list[int] = []  # original tensors of each group; 0 if it has one tensor, not a sequence
        for part in geometry.group_weights(weight.detach()):
            conv = nn.Conv2d(part.shape[1], part.shape[0], geometry.kernel_size, bias=False, device="meta")
            conv.weight = nn.Parameter(part.clone())
            parametrise(conv)
            if not hasattr(conv, "parametrizations"):
                raise ValueError(f"{parametrise}: registers no parametrisation, as torch.nn.utils.parametrizations do")
            (chain,) = conv.parametrizations.values()  # type: ignore[union-attr,operator]
            self.groups.append(chain[0])  # type: ignore[arg-type]

    def forward(self, *originals: Tensor) -> Tensor:
        """Return the weight, of ``geometry.weight_shape``."""
        if any(self.counts):
            rest = iter(originals)
            given = [tuple(islice(rest, count)) for count in self.counts]
        else:
            given = [(weight,) for weight in self.geometry.group_weights(originals[0])]
        parts = [group(*own) for group, own in zip(self.groups, given, strict=True)]
        return torch.cat(parts) if self.geometry.is_uniform else torch.cat([part.flatten(0, 1) for part in parts])

    def right_inverse(self, weight: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Return the original tensors of all groups in order, or one weight if each group has one."""
        inverses = [
            group.right_inverse(part)  # type: ignore[operator]
            for group, part in zip(self.groups, self.geometry.group_weights(weight.detach()), strict=True)
        ]
        if isinstance(inverses[0], Tensor):
            self.counts = [0] * len(inverses)
            parts = inverses if self.geometry.is_uniform else [part.flatten(0, 1) for part in inverses]
            return torch.cat(parts)
        self.counts = [len(part) for part in inverses]
        return tuple(original for part in inverses for original in part)


def check_reparametrisations(layer: nn.Module) -> None:
    """Raise if a reparametrisation works filter by filter on the weight of unequal groups.

    Raises:
        ValueError: weight or spectral normalisation, orthogonality or structured pruning on the weight of unequal
            groups.
    """
    if layer.geometry.is_uniform:  # type: ignore[union-attr]
        return
    from torch.nn.utils import prune
    from torch.nn.utils.parametrizations import _Orthogonal, _SpectralNorm, _WeightNorm
    from torch.nn.utils.spectral_norm import SpectralNorm
    from torch.nn.utils.weight_norm import WeightNorm

    of_filters = _Orthogonal, _SpectralNorm, _WeightNorm, SpectralNorm, WeightNorm
    chains = getattr(layer, "parametrizations", {})
    chain: Iterable[object] = chains["weight"] if "weight" in chains else ()  # noqa: SIM401 - a ModuleDict has no get
    watchers = [*chain, *layer._forward_pre_hooks.values()]
    for watcher in watchers:
        methods = watcher._pruning_methods if isinstance(watcher, prune.PruningContainer) else [watcher]
        for method in methods:
            if isinstance(method, of_filters) or getattr(method, "PRUNING_TYPE", "") == "structured":
                raise ValueError(
                    f"{type(method).__name__.lstrip('_')} works on filters, but {HINT}; write "
                    "layer.parametrise(torch.nn.utils.parametrizations.weight_norm), or prune single weights"
                )
