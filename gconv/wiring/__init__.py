"""A whole model traced for its channels: the filters that feed each group, and the state that regrouping must keep.

Exports ``trace_wiring``, which returns a ``LayerWiring`` for each convolution, and ``computing_groups``.
"""

from gconv.wiring.trace import LayerWiring, computing_groups, trace_wiring

__all__ = ["LayerWiring", "computing_groups", "trace_wiring"]
