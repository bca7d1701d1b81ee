"""A network spread over several devices: the rank of each filter, and the messages between the ranks.

Exports ``place`` (returns a ``Placement``) and ``plan`` (a ``Plan`` of ``Move``), which counts the elements sent.
"""

from gconv.placement.exchange import Move, Plan, plan
from gconv.placement.owners import Owners, Placement, place

__all__ = ["Move", "Owners", "Placement", "Plan", "place", "plan"]
