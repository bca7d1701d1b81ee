"""The interaction of group and colour among lesions."""

import numpy as np
import pytest

from analysis.lesion import Lesion
from experiments.measure.lesions import _interaction


def lesion(group, on_colour, on_grey):
    return Lesion(group, 4, on_colour, on_grey, np.zeros(2), np.zeros(0), np.zeros(0))


def test_the_interaction_is_that_of_the_colour_group_less_that_of_the_grey_group():
    """Group 1 has the largest colour index, group 0 the smallest: (.30 − .10) − (.12 − .15) = .23."""
    found = [lesion(0, 0.12, 0.15), lesion(1, 0.30, 0.10), lesion(2, 0.5, 0.0)]
    assert _interaction(found, {0: 0.1, 1: 0.6, 2: 0.3}) == pytest.approx(0.23)
