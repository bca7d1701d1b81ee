"""The tables of the band kernels, against block-diagonal matrices and against the definition of a convolution."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gconv import Partition
from gconv.kernels.band.tables import axis_map, weight_index, weight_jobs, weight_places
from gconv.kernels.band.tiles import Blocking, blockings, tile_table
from gconv.kernels.geometry import Geometry


def geometry(in_sizes, out_sizes, kernel_size=(1, 1)):
    return Geometry(Partition(tuple(in_sizes)), Partition(tuple(out_sizes)), kernel_size)


@st.composite
def geometries(draw):
    sizes = st.one_of(st.integers(1, 9), st.sampled_from([8, 16, 24, 32, 40, 70]))
    pairs = draw(st.lists(st.tuples(sizes, sizes), min_size=1, max_size=6))
    return geometry(*zip(*pairs, strict=True), draw(st.sampled_from([(1, 1), (1, 3), (2, 2)])))


blocks = st.builds(
    Blocking, narrow=st.sampled_from([16, 32]), wide=st.sampled_from([32, 64, 128]), depth=st.sampled_from([32, 64])
)


@given(geometries(), blocks, st.booleans())
def test_tiles_write_every_channel_once_and_their_band_holds_all_that_feeds_it(layer, blocking, transposed):
    table = tile_table(layer, blocking, transposed)
    read, written = layer.in_groups, layer.out_groups
    if transposed:
        read, written = written, read
    assert len(table.sets) <= 2
    channels = []
    for tile_set in table.sets:
        for tile in tile_set.tiles:
            assert 1 <= tile.size <= tile_set.width
            assert 0 <= tile.band_start < tile.band_start + tile.band_size <= read.channels
            own = range(tile.start, tile.start + tile.size)
            channels += own
            groups = {written.labels[channel] for channel in own}
            fed_by = {channel for channel in range(read.channels) if read.labels[channel] in groups}
            band = set(range(tile.band_start, tile.band_start + tile.band_size))
            assert fed_by <= band
            assert len(band - fed_by) <= 14, "rounded out by less than 16 bytes on each side"
            for number in (tile.start, tile.size, written.channels):
                assert number % tile_set.written_align == 0
            for number in (tile.band_start, tile.band_size, read.channels):
                assert number % tile_set.read_align == 0
            assert tile.weight_start % 16 == 0
    assert sorted(channels) == list(range(written.channels))


@given(geometries(), blocks, st.booleans())
def test_packed_weights_unpack_to_the_block_diagonal_matrix_of_every_tap(layer, blocking, transposed):
    weight = torch.arange(1, 1 + sum(layer.links) * layer.kernel_size[0] * layer.kernel_size[1])
    table = tile_table(layer, blocking, transposed)
    index = weight_index(layer, table, transposed).long()
    packed = torch.where(index >= 0, weight[index.clamp(min=0)], 0)

    groups = layer.group_weights(weight.view(layer.weight_shape))
    for tap in range(table.taps):
        dense = torch.block_diag(*(group.flatten(2)[:, :, tap] for group in groups))
        if transposed:
            dense = dense.T
        unpacked = torch.zeros_like(dense)
        for tile_set in table.sets:
            for tile in tile_set.tiles:
                steps, size = tile_set.steps(tile), tile_set.width * tile_set.depth
                first = tile.weight_start + tap * steps * size
                # (step, row, column in step) to (row, column)
                block = packed[first : first + steps * size].view(steps, tile_set.width, tile_set.depth)
                rows = block.transpose(0, 1).flatten(1)
                assert not rows[tile.size :].any() and not rows[:, tile.band_size :].any(), "padding is zero"
                unpacked[tile.start : tile.start + tile.size, tile.band_start : tile.band_start + tile.band_size] += (
                    rows[: tile.size, : tile.band_size]
                )
        assert torch.equal(unpacked, dense)
    assert torch.equal(packed[weight_places(index.int()).long()], weight)


@given(geometries(), blocks)
def test_jobs_of_the_weight_gradient_cover_every_packed_block_once(layer, blocking):
    table = tile_table(layer, blocking, False)
    for tile_set in table.sets:
        at_once = tile_set.columns(table.taps) // tile_set.depth
        for number, tile in enumerate(tile_set.tiles):
            firsts = [first for job, first in weight_jobs(tile_set, table.taps) if job == number]
            covered = [first + i for first in firsts for i in range(at_once)]
            needed = table.taps * tile_set.steps(tile)
            assert sorted(covered)[:needed] == list(range(needed)) and len(covered) < needed + at_once


def spans(tile_set):
    return [(t.start, t.start + t.size, t.band_start, t.band_start + t.band_size) for t in tile_set.tiles]


def test_logarithmic_groups_are_three_wide_tiles_and_two_narrow_ones():
    log5 = (128, 64, 32, 16, 16)
    wide, narrow = tile_table(geometry(log5, log5), Blocking(narrow=32, wide=64), False).sets
    assert spans(wide) == [(0, 64, 0, 128), (64, 128, 0, 128), (128, 192, 128, 192)]
    assert spans(narrow) == [(192, 224, 192, 224), (224, 256, 224, 256)]
    assert (wide.read_align, wide.written_align, narrow.read_align, narrow.written_align) == (8, 8, 8, 8)


def test_wide_and_narrow_groups_share_a_launch_if_their_tiles_have_one_shape():
    log3 = (64, 32, 32)
    layer = geometry(log3, log3)
    together = blockings(layer, 2)[-1]
    assert len(tile_table(layer, blockings(layer, 2)[0], False).sets) == 2
    (tiles,) = tile_table(layer, together, False).sets
    assert spans(tiles) == [(0, 32, 0, 64), (32, 64, 0, 64), (64, 96, 64, 96), (96, 128, 96, 128)]
    assert together not in blockings(geometry((64, 64), (64, 64)), 2), "there is one launch anyway"


def test_narrow_groups_are_cut_where_no_band_is_read_twice():
    (narrow,) = tile_table(geometry([12] * 4, [12] * 4), Blocking(), False).sets
    assert spans(narrow) == [(0, 24, 0, 24), (24, 48, 24, 48)]


def test_odd_channels_are_cut_at_groups_and_not_aligned():
    (narrow,) = tile_table(geometry([7, 3, 5], [20, 9, 4]), Blocking(narrow=32), False).sets
    assert spans(narrow) == [(0, 20, 0, 7), (20, 33, 7, 15)]
    assert narrow.read_align == narrow.written_align == 1


def test_depthwise_channels_share_tiles():
    (narrow,) = tile_table(geometry([1] * 64, [1] * 64), Blocking(narrow=32), False).sets
    assert spans(narrow) == [(0, 32, 0, 32), (32, 64, 32, 64)]


@pytest.mark.parametrize(
    ("sizes", "wide"), [((128, 128), 128), ((128, 64), 64), ((96, 96), 128), ((48, 48), 64), ((8, 8), 128)], ids=str
)
def test_wide_tiles_leave_the_least_room_empty(sizes, wide):
    assert blockings(geometry(sizes, sizes), 2)[0].wide == wide


def test_blockings_are_different():
    choices = blockings(geometry((64, 32), (64, 32)), 4)
    assert len(set(choices)) == len(choices) > 1


def test_too_many_weights_are_refused_in_words():
    with pytest.raises(ValueError, match=r"packed weights.*2\^31"):
        tile_table(geometry([2**16], [2**16]), Blocking(), False)


@given(st.integers(1, 9), st.integers(1, 5), st.integers(1, 4), st.integers(0, 3), st.integers(1, 3), st.booleans())
def test_a_walk_meets_every_tap_of_the_definition_once(size, kernel, stride, padding, dilation, transposed):
    """Output o reads input i through tap k where i = o · stride − padding + k · dilation."""
    outputs = (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
    if outputs < 1:
        return
    written, read = (size, outputs) if transposed else (outputs, size)
    steps = axis_map(written, kernel, stride, padding, dilation, transposed)
    met = []
    for first, count, taps, tap, offset in steps.phases:
        for j in range(count):
            for t in range(taps):
                place = j * steps.read_step + offset + t * steps.move
                if 0 <= place < read:
                    met.append((first + j * steps.write_step, place, tap + t * steps.tap_step))
    defined = [
        (o, o * stride - padding + k * dilation, k)
        for o in range(outputs)
        for k in range(kernel)
        if 0 <= o * stride - padding + k * dilation < size
    ]
    if transposed:
        defined = [(i, o, k) for o, i, k in defined]
    assert sorted(met) == sorted(defined)
    positions = [first + j * steps.write_step for first, count, *_ in steps.phases for j in range(count)]
    assert sorted(positions) == list(range(written)), "positions without a tap are written too"
