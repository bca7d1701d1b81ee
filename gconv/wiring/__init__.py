"""A whole model traced for its channels: which filters feed which group, and what regrouping has to keep.

Exports ``trace_wiring``, which returns a ``LayerWiring`` for each convolution, and ``computing_groups``.
"""

from gconv.wiring.trace import LayerWiring, computing_groups, trace_wiring

__all__ = ["LayerWiring", "computing_groups", "trace_wiring"]
