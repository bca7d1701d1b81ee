import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from experiments.data.augment import Views, training_batch
from experiments.training.process_group import SINGLE_PROCESS, ProcessGroup
from tiny_images import tiny_dataset

pytestmark = pytest.mark.usefixtures("one_thread")


@given(
    images=st.integers(1, 9),
    size=st.integers(1, 5),
    flip=st.booleans(),
    cutout=st.sampled_from([0, 3]),
    padding=st.sampled_from([0, 2]),
    colour=st.sampled_from(["colour", "grey", "hue-scrambled"]),
)
def test_the_shares_of_a_batch_make_it_up_whatever_the_augmentation(images, size, flip, cutout, padding, colour):
    views = Views(12, 10, padding, flip, cutout, colour)
    pixels, index = tiny_dataset(12).train.pixels, torch.arange(images) * 2

    def share(process_group, state):
        generator = torch.Generator().manual_seed(state)
        x = training_batch(pixels, index, views, generator, process_group.share(images))
        return x, generator.get_state()

    whole, after = share(SINGLE_PROCESS, 3)
    process_groups = [ProcessGroup() for _ in range(size)]
    for rank, process_group in enumerate(process_groups):
        process_group.rank, process_group.size = rank, size
    parts = [share(process_group, 3) for process_group in process_groups]
    assert all(torch.equal(state, after) for _, state in parts), "the next batch is the same, too"
    # The product of a turn of hues is rounded as the number of images has it.
    assert torch.allclose(torch.cat([x for x, _ in parts]).float(), whole.float(), rtol=0, atol=1e-3)
