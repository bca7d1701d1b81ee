"""Sets of filters against Python's sets; numbered tensors against unions taken one element at a time."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from gconv.wiring.origins import FilterSet, Origins, comes_from_none, set_bits, uniform

FILTERS = st.frozensets(st.tuples(st.sampled_from(["a", "b", "stage.c"]), st.integers(0, 130)))


def of(filters) -> FilterSet:
    return FilterSet.union(FilterSet.of(*one) for one in filters)


@given(FILTERS, FILTERS)
def test_a_filter_set_is_the_set_of_its_filters(left, right):
    a, b = of(left), of(right)
    assert a == left and set(a) == left and len(a) == len(left)
    assert a | b == left | right and a & b == left & right and a - b == left - right
    assert (a == b) == (left == right)
    assert a != b or hash(a) == hash(b)
    assert FilterSet.union([a, b]) == left | right
    assert all(one in a for one in left) and ("none", 0) not in a and "a" not in a


@given(st.sets(st.integers(0, 300)))
def test_the_bits_of_a_number_are_its_powers_of_two(places):
    assert set_bits(sum(2**place for place in places)) == sorted(places)


@st.composite
def numbered(draw, shape):
    """Return a tensor of integers that has stride 0 along some dimensions."""
    held = [draw(st.sampled_from([1, size])) for size in shape]
    count = torch.Size(held).numel()
    values = draw(st.lists(st.integers(0, 4), min_size=count, max_size=count))
    return torch.tensor(values).view(held).expand(shape)


def origins_of_five() -> Origins:
    origins = Origins()
    for filters in ([("a", 0)], [("a", 1)], [("a", 0), ("b", 2)], [("b", 70)]):
        origins.number(of(filters))
    return origins


@given(st.data())
def test_a_union_of_tensors_is_taken_element_by_element(data):
    shape = (2, 3, 4)
    left, right = data.draw(numbered(shape)), data.draw(numbered((3, 1)))
    origins = origins_of_five()
    united = origins.union([left, right], shape)
    assert united.shape == shape
    for place in ((i, j, k) for i in range(2) for j in range(3) for k in range(4)):
        assert origins.sets[united[place]] == origins.sets[left[place]] | origins.sets[right[place[1], 0]]


@given(st.data(), st.sets(st.integers(-3, 2)))
def test_a_union_over_dimensions_is_that_of_all_their_elements(data, dims):
    origin, origins = data.draw(numbered((2, 3, 4))), origins_of_five()
    over = {dim % 3 for dim in dims}
    united = origins.union_over(origin, dims)
    assert united.shape == tuple(1 if dim in over else size for dim, size in enumerate(origin.shape))
    for i, j, k in ((i, j, k) for i in range(2) for j in range(3) for k in range(4)):
        place = tuple(0 if dim in over else at for dim, at in enumerate((i, j, k)))
        slices = tuple(slice(None) if dim in over else at for dim, at in enumerate((i, j, k)))
        numbers = origin[slices].flatten().tolist()
        assert origins.sets[united[place]] == of(f for number in numbers for f in origins.sets[number])


@given(st.data())
def test_a_dimension_without_variation_gets_stride_zero_and_equal_values(data):
    origin = data.draw(numbered((2, 3, 4)))
    thin = uniform(origin.contiguous())
    assert torch.equal(thin, origin)
    for dim in range(3):
        varies = not torch.equal(origin, origin.narrow(dim, 0, 1).expand(origin.shape))
        assert (thin.stride(dim) != 0) == varies
    assert comes_from_none(thin) == (not origin.any())
