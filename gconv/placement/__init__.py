"""A network spread over several devices: which rank computes which filters, and what the ranks send each other.

Exports ``place`` (returns a ``Placement``) and ``plan`` (a ``Plan`` of ``Move``), which counts what is sent.
"""

from gconv.placement.exchange import Move, Plan, plan
from gconv.placement.owners import Owners, Placement, place

__all__ = ["Move", "Owners", "Placement", "Plan", "place", "plan"]
