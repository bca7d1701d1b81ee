"""A trained run to tidy tables."""
from dataclasses import dataclass
@dataclass(frozen=True)
class Measures:
    """What is measured on each trained network.

    Args:
        images: test images whose responses are collected.
        permutations: of the label permutation tests.
    """

    images: int = 1000
    permutations: int = 2000
