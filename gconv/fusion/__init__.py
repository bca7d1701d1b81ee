"""Existing models whose convolutions are computed with the batch normalisation and ReLU that follow them.

``fuse`` changes a model; ``recording`` records the forward pass of a module, and ``forward`` fuses its runs.
"""

from gconv.fusion.models import Fused, fuse

__all__ = ["Fused", "fuse"]
