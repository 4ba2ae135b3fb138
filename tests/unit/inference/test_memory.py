"""Where values lie in the block of a plan."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from inc_torch.inference._memory import Lifetime, assign_offsets

LIFETIMES = st.lists(
    st.tuples(st.integers(1, 500), st.integers(0, 12), st.integers(0, 12)).map(
        lambda drawn: Lifetime(drawn[0], drawn[1], drawn[1] + drawn[2])
    ),
    max_size=12,
)


@given(LIFETIMES)
def test_values_alive_at_the_same_time_do_not_overlap(lifetimes):
    offsets, size = assign_offsets(lifetimes)
    for index, (mine, begin) in enumerate(zip(lifetimes, offsets, strict=True)):
        assert begin % 64 == 0
        assert begin + mine.size <= size
        for other, where in zip(lifetimes[:index], offsets, strict=False):
            apart = begin + mine.size <= where or where + other.size <= begin
            assert apart or mine.end < other.begin or other.end < mine.begin


@given(LIFETIMES)
def test_the_block_is_no_greater_than_all_values_and_no_smaller_than_those_of_one_moment(lifetimes):
    def padded(value):
        return -(-value.size // 64) * 64

    size = assign_offsets(lifetimes)[1]
    moments = [sum(padded(value) for value in lifetimes if value.begin <= moment <= value.end) for moment in range(25)]
    assert max(moments, default=0) <= size <= sum(map(padded, lifetimes))


def test_a_chain_uses_the_memory_of_two_values():
    assert assign_offsets([Lifetime(128, step, step + 1) for step in range(20)])[1] == 256
