"""Out of memory: recognised on every device, reported with what would fit, and no reason to give up an evaluation."""

import pytest
import torch

from experiments.data.augment import Views
from experiments.training.evaluation import evaluate
from experiments.training.recipe import Recipe
from experiments.training.run_context import RunContext
from fault_children import a_run, run_small, train
from tiny_images import tiny_dataset


def real_allocator():
    torch.empty(1 << 50)


def numpy_memory():
    raise MemoryError("Unable to allocate 8.00 PiB for an array")


def cuda_memory():
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("allocate", [real_allocator, numpy_memory, cuda_memory])
def test_out_of_memory_is_one_line_with_the_batch_size_to_try(tmp_path, monkeypatch, capsys, allocate):
    with monkeypatch.context() as patch:
        patch.setattr("experiments.training.learner.F.cross_entropy", lambda *_, **__: allocate())
        assert run_small(tmp_path, "--only=dense") == 1
    (line,) = capsys.readouterr().out.splitlines()
    assert "dense, seed 0: failed: out of memory on cpu" in line
    assert "--recipe.batch_size=4" in line
    assert run_small(tmp_path, "--only=dense") == 0


def test_other_errors_of_torch_are_not_taken_for_memory(tmp_path, monkeypatch):
    def mismatch(*_, **__):
        return torch.ones(2, 3) @ torch.ones(2, 3)

    monkeypatch.setattr("experiments.training.learner.F.cross_entropy", mismatch)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        train(a_run(tmp_path))


def test_an_evaluation_that_does_not_fit_is_done_in_smaller_batches(monkeypatch):
    class Narrow(torch.nn.Module):
        def __init__(self, most):
            super().__init__()
            self.most = most

        def forward(self, x):
            if len(x) > self.most:
                torch.empty(1 << 50)
            return torch.stack([x[:, 0].mean((1, 2)), x[:, 2].mean((1, 2))], 1) * 10

    context = RunContext.of(tiny_dataset(), Views(image_size=12, crop_size=12), Recipe(device="cpu", precision="fp32"))
    assert evaluate(Narrow(5), context)["test_accuracy"] == evaluate(Narrow(99), context)["test_accuracy"] == 1.0
    with pytest.raises(RuntimeError, match="allocate"):
        evaluate(Narrow(0), context)
