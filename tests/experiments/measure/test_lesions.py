"""The interaction of group and colour among lesions."""

import numpy as np
import pytest
import torch

from analysis.lesion import Lesion
from experiments.augment import Views
from experiments.measure.images import Shown
from experiments.measure.lesions import _interaction, measure_lesions
from experiments.measure.table import Rows
from experiments.models import build_model
from experiments.training.recipe import Recipe
from experiments.training.setting import Setting
from gconv.wiring import trace_wiring
from tiny_images import tiny_dataset


def lesion(group, on_colour, on_grey):
    return Lesion(group, 4, on_colour, on_grey, np.zeros(2), np.zeros(0), np.zeros(0))


def test_the_interaction_is_that_of_the_colour_group_less_that_of_the_grey_group():
    """Group 1 has the largest colour index, group 0 the smallest: (.30 − .10) − (.12 − .15) = .23."""
    found = [lesion(0, 0.12, 0.15), lesion(1, 0.30, 0.10), lesion(2, 0.5, 0.0)]
    assert _interaction(found, {0: 0.1, 1: 0.6, 2: 0.3}) == pytest.approx(0.23)


@pytest.mark.parametrize("kept", [(0.9, 0.9, 0.9, 0.9, 0.1, 0.1, 0.1, 0.1), (0.9, 0.1, 0.9, 0.1, 0.9, 0.1, 0.9, 0.2)])
def test_groups_that_do_not_split_by_colour_have_no_interaction(kept):
    """The same network, its first filters called colour or grey by group, or in turn: only the first is a split."""
    torch.manual_seed(0)
    model = build_model("small", classes=2, groups=2, width=8).eval()
    setting = Setting.of(tiny_dataset(12), Views(image_size=12, crop_size=12), Recipe(device="cpu"))
    rows, wiring = Rows("study", "variant", 0), trace_wiring(model, (3, 12, 12))
    colours = np.array(kept), np.ones(8, dtype=bool)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("experiments.measure.lesions._interaction", lambda found, means: 0.5)
        measure_lesions(rows, model, wiring, Shown(setting, 8), colours, 2, 199)
    table = rows.table().set_index(["measure", "null"])["value"]
    assert table["lesion_interaction", ""] == (0.5 if kept[1] == 0.9 else 0.0)
    assert table["lesion_interaction", "arbitrary partition"] == 0.0
