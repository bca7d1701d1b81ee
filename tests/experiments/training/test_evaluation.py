import json

import pytest
import torch
from torch import nn

from experiments.training.evaluation import evaluate
from experiments.training.process_group import SINGLE_PROCESS
from small_training import context, model, on_ranks

pytestmark = pytest.mark.usefixtures("one_thread")


def evaluated(process_group, images, path):
    """Evaluate where rank 1 has memory for three images at a time."""

    class Small(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = model()

        def forward(self, x):
            assert len(x) > 0
            if process_group.rank == 1 and len(x) > 3:
                raise torch.OutOfMemoryError("out of memory")
            return self.inner(x)

    results = evaluate(Small(), context(test=images), process_group=process_group)
    (path / f"{images}-{process_group.rank}-of-{process_group.size}").write_text(json.dumps(results))


@pytest.mark.parametrize("images", [1, 11])
def test_an_evaluation_is_that_of_one_process_with_fewer_images_than_ranks_or_little_memory_on_one(tmp_path, images):
    evaluated(SINGLE_PROCESS, images, tmp_path)
    on_ranks(tmp_path, 2, evaluated, images, tmp_path)
    alone, first, second = (
        json.loads((tmp_path / f"{images}-{name}").read_text()) for name in ("0-of-1", "0-of-2", "1-of-2")
    )
    assert first == second
    assert first == pytest.approx(alone, rel=1e-5)


def test_evaluation_covers_every_image_once():
    class Knows(nn.Module):
        """Red images have more red."""

        def forward(self, x):
            return torch.stack([x[:, 0].mean((1, 2)), x[:, 2].mean((1, 2))], 1) * 10

    result = evaluate(Knows(), context())
    assert result["test_accuracy"] == 1.0
    assert result["test_loss"] < 0.01
