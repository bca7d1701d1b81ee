"""Names of the nulls: the values of the column ``null`` of the long table.

A null may be narrowed by more words after a comma: ``untrained, arbitrary partition, 4 groups``.
"""

from __future__ import annotations

import re

TRAINED = ""  # no null: the value of the trained network
UNTRAINED = "untrained"  # the same network at its initialisation, batch norms calibrated
RANDOM_FILTERS = "random filters"  # a layer initialised again, on the inputs of the trained one
ROTATED_FILTERS = "rotated filters"  # trained filters that read random mixtures of their input channels
ARBITRARY_PARTITION = "arbitrary partition"  # random groups in a layer trained without groups
CONTIGUOUS_PARTITION = "contiguous partition"  # groups in channel order, likewise
SPECTRAL_PARTITION = "spectral partition"  # clusters of correlated filters, likewise
SIZED_SPECTRAL_PARTITION = "spectral partition, sizes kept"  # clusters with the sizes of the groups
RANDOM_SETS = "random sets"  # as many filters as the group has, drawn from all groups
LABELS_PERMUTED = "labels permuted"  # group labels permuted among the filters, sizes kept
CHANCE = "chance"  # the score of a guess
BLOCK_AREAS = "block areas"  # share of a matrix that the blocks of the groups cover

# In the order in which figures draw them; colour and marker of a null go by its place.
NULLS = (
    UNTRAINED,
    RANDOM_FILTERS,
    ROTATED_FILTERS,
    ARBITRARY_PARTITION,
    CONTIGUOUS_PARTITION,
    SPECTRAL_PARTITION,
    SIZED_SPECTRAL_PARTITION,
    RANDOM_SETS,
    LABELS_PERMUTED,
    CHANCE,
    BLOCK_AREAS,
)


def narrowed(*words: str) -> str:
    """Join the name of a null with the words that narrow it, empty ones left out."""
    return ", ".join(word for word in words if word)


def without_cut(null: str) -> str:
    """Return the name of a null without the number of groups: ``arbitrary partition`` for ``…, 4 groups``."""
    return re.sub(r", (\d+ groups|log:\d+)$", "", null)
