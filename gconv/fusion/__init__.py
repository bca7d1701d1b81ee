"""Existing models whose convolutions are computed with the batch normalisation and ReLU that follow them.

``fuse`` changes a model; ``forward`` records the forward pass of one module and replaces its runs.
"""

from gconv.fusion.models import Fused, fuse

__all__ = ["Fused", "fuse"]
