import pytest
import torch

from experiments.training.seeds_at_once import choose_seeds_at_once, largest_worthwhile, speedup
from small_training import context, model

pytestmark = pytest.mark.usefixtures("one_thread")


def test_half_as_many_are_tried_until_they_fit_and_pay():
    tried = []

    def speedup(count):
        tried.append(count)
        if count == 8:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return {4: 1.05, 2: 1.3}[count]

    assert largest_worthwhile(speedup, 8) == (2, 1.3)
    assert tried == [8, 4, 2]
    assert largest_worthwhile(lambda _: 1.09, 8) == (1, 1.0)
    with pytest.raises(RuntimeError, match="a bug"):
        largest_worthwhile(lambda _: (_ for _ in ()).throw(RuntimeError("a bug")), 8)


def test_the_pace_is_measured_and_on_a_cpu_nothing_is_tried():
    given = context()
    assert 0.05 < speedup(model, given, 2) < 20
    assert choose_seeds_at_once(lambda: pytest.fail("built"), given, 8) == (1, 1.0)
