import pytest
import torch
from torch import nn

from experiments.training.process_group import SINGLE_PROCESS
from experiments.training.sync_batch_norm import SyncBatchNorm2d
from small_training import assert_close, on_ranks

pytestmark = pytest.mark.usefixtures("one_thread")


def normalised(process_group, path):
    """A batch normalisation on this rank's share of seven images, in double precision."""
    torch.manual_seed(5)
    x, weights = torch.randn(2, 7, 3, 4, 5, dtype=torch.float64) + 1000
    norm = nn.BatchNorm2d(3, dtype=torch.float64)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    if process_group is not SINGLE_PROCESS:
        norm = SyncBatchNorm2d(norm, process_group)
    share = process_group.share(7)
    own = x[share].clone().requires_grad_()
    for _ in range(2):
        y = norm(own)
    (y.square() * (weights[share] - 1000)).sum().backward()
    gradients = [process_group.all_reduce(p.grad) for p in norm.parameters()]
    torch.save(
        (y.detach(), own.grad, gradients, norm.state_dict()),
        path / f"norm-{process_group.rank}-of-{process_group.size}",
    )


def test_batch_normalisation_over_uneven_shares_is_torchs_on_the_whole_batch(tmp_path):
    normalised(SINGLE_PROCESS, tmp_path)
    on_ranks(tmp_path, 3, normalised, tmp_path)
    alone = torch.load(tmp_path / "norm-0-of-1")
    ranks = [torch.load(tmp_path / f"norm-{rank}-of-3") for rank in range(3)]
    for place in (0, 1):  # outputs and gradients of images
        assert torch.allclose(torch.cat([r[place] for r in ranks]), alone[place], rtol=1e-9, atol=1e-9)
    for of_rank in ranks:
        for actual, expected in zip(of_rank[2], alone[2], strict=True):
            assert torch.allclose(actual, expected, rtol=1e-9, atol=1e-9)
        assert list(of_rank[3]) == list(alone[3])
        assert_close(of_rank[3], alone[3], 1e-9)
