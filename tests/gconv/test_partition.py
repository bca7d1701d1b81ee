import pytest
from hypothesis import given
from hypothesis import strategies as st

from gconv import Partition


def test_uniform_groups_are_equal():
    assert Partition.uniform(12, 3).sizes == (4, 4, 4)


def test_logarithmic_groups_halve_and_the_last_two_are_equal():
    assert Partition.logarithmic(64, 4).sizes == (32, 16, 8, 8)
    assert Partition.logarithmic(64, 1).sizes == (64,)


def test_two_logarithmic_groups_are_two_uniform_ones():
    assert Partition.logarithmic(64, 2) == Partition.uniform(64, 2)


@pytest.mark.parametrize(
    ("spec", "sizes"),
    [
        (4, (16, 16, 16, 16)),
        ("4", (16, 16, 16, 16)),
        ("log:3", (32, 16, 16)),
        ("32,16,8,8", (32, 16, 8, 8)),
        ([32, 16, 8, 8], (32, 16, 8, 8)),
        ("[32, 32]", (32, 32)),
        ("4:2:1:1", (32, 16, 8, 8)),
        ("1:3", (16, 48)),
        (Partition((60, 4)), (60, 4)),
        ("~4", (16, 16, 16, 16)),
        ("~3", (22, 21, 21)),
        ("~5", (13, 13, 13, 13, 12)),
        ("~log:3", (32, 16, 16)),
        ("~2:1", (43, 21)),
        ("~100:1:1", (62, 1, 1)),
    ],
    ids=str,
)
def test_a_spec_is_read(spec, sizes):
    assert Partition.of(spec, 64).sizes == sizes


@pytest.mark.parametrize(
    ("spec", "channels", "words"),
    [
        (4, 10, ["10 channels", "4 equal groups", "8 or 12", "2 or 5"]),
        ("log:4", 60, ["log:4", "56 or 64", "log:3"]),
        ("log:4", 3, ["2^3 channels", "log:1"]),
        ("log:100000", 64, ["2^99999", "at most log:7"]),
        ("32,16", 64, ["add up to 48", "64", "32:16"]),
        ([32, -32], 64, ["at least 1"]),
        ("1:2", 64, ["63 or 66"]),
        (0, 64, ["at least 1"]),
        ("log:0", 64, ["at least 1"]),
        ("logg:4", 64, ["logg:4", "cannot be read"]),
        ("four", 64, ["four", "cannot be read"]),
        (2.0, 64, ["2.0", "cannot be read"]),
        (True, 64, ["cannot be read"]),
        ("", 64, ["cannot be read"]),
        ("~3", 2, ["2 channels", "more than 2 groups", "~3"]),
        ("~log:5", 4, ["4 channels", "~log:5"]),
        ("~log:100000", 64, ["64 channels"]),
        ("~1:1:1", 2, ["2 channels"]),
        ("~32,32", 64, ["cannot be read", "~ before any but sizes"]),
        ("~0", 64, ["at least 1"]),
    ],
    ids=str,
)
def test_channels_that_cannot_be_cut_raise_with_the_nearest_sizes_that_can(spec, channels, words):
    with pytest.raises(ValueError) as error:
        Partition.of(spec, channels)
    for word in words:
        assert word in str(error.value)
    assert "\n" not in str(error.value)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=12))
def test_the_text_of_a_partition_reads_back(sizes):
    partition = Partition(tuple(sizes))
    assert Partition.of(str(partition), partition.channels) == partition
    assert len(partition.labels) == partition.channels
    for start, size, group in zip(partition.starts, partition.sizes, range(partition.groups), strict=True):
        assert partition.labels[start : start + size] == (group,) * size


@given(st.integers(1, 8), st.integers(1, 16))
def test_logarithmic_groups_cost_a_third_and_a_bit_of_dense(n, multiple):
    channels = multiple * 2 ** (n - 1)
    links = sum(size**2 for size in Partition.logarithmic(channels, n).sizes)
    assert links / channels**2 == pytest.approx(1 / 3 + 2 / 3 * 4 ** -(n - 1))


@given(st.integers(1, 200), st.lists(st.integers(1, 30), min_size=1, max_size=8))
def test_rounded_proportions_are_within_a_channel_of_their_share(channels, parts):
    spec = "~" + ":".join(map(str, parts)) if len(parts) > 1 else f"~{parts[0]}"
    if len(parts) == 1:
        parts = [1] * parts[0]
    if len(parts) > channels:
        return
    sizes = Partition.of(spec, channels).sizes
    assert sum(sizes) == channels
    shares = [channels * part / sum(parts) for part in parts]
    if min(shares) >= 1:
        assert all(abs(size - share) < 1 for size, share in zip(sizes, shares, strict=True))


@given(st.integers(1, 7), st.integers(1, 8))
def test_rounding_changes_nothing_where_groups_divide(n, multiple):
    assert Partition.of(f"~log:{n}", multiple * 2 ** (n - 1)) == Partition.logarithmic(multiple * 2 ** (n - 1), n)
    assert Partition.of(f"~{n}", multiple * n) == Partition.uniform(multiple * n, n)


def test_rounded_logarithmic_groups_by_hand():
    assert Partition.of("~log:5", 70).sizes == (35, 18, 9, 4, 4)
