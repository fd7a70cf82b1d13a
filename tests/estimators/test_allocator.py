"""The allocator's replay: torch's own rules, a slow oracle beside it, and survival under a cap."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from estimators.allocator import CachingAllocator, Event, replay
from estimators.units import KIB, MIB

SIZES = st.one_of(
    st.integers(0, 4 * KIB), st.integers(1, MIB), st.integers(MIB, 12 * MIB), st.integers(10 * MIB, 300 * MIB)
)


def allocations(*sizes: int) -> list[Event]:
    return [Event("allocate", key, size) for key, size in enumerate(sizes)]


@pytest.mark.parametrize(
    ("size", "allocated", "reserved"),
    [
        (1, 512, 2 * MIB),
        (MIB, MIB, 2 * MIB),
        (MIB + 1, MIB + 512, 20 * MIB),
        (9 * MIB, 9 * MIB, 20 * MIB),
        (11 * MIB, 12 * MIB, 12 * MIB),
        (100 * MIB + 1, 100 * MIB + 512, 102 * MIB),
    ],
)
def test_one_tensor_takes_what_torch_takes(size: int, allocated: int, reserved: int) -> None:
    ended = replay(allocations(size))
    assert (ended.peak_allocated_bytes, ended.peak_reserved_bytes) == (allocated, reserved)


def test_a_freed_block_is_used_again_and_neighbours_join() -> None:
    events = [
        *allocations(6 * MIB, 6 * MIB, 6 * MIB),
        Event("free", 0),
        Event("free", 1),
        Event("allocate", 3, 12 * MIB),  # the two neighbours, joined
    ]
    assert replay(events).peak_reserved_bytes == 20 * MIB


def test_what_no_free_block_holds_needs_a_segment_of_its_own() -> None:
    events = [*allocations(40 * MIB, 40 * MIB), Event("free", 0), Event("free", 1), Event("allocate", 2, 60 * MIB)]
    ended = replay(events)
    assert (ended.peak_allocated_bytes, ended.peak_reserved_bytes) == (80 * MIB, 140 * MIB)


def test_under_a_cap_the_cache_is_emptied_before_giving_up() -> None:
    events = [*allocations(40 * MIB, 40 * MIB), Event("free", 0), Event("free", 1), Event("allocate", 2, 60 * MIB)]
    tight = replay(events, cap_bytes=100 * MIB)
    assert tight.survives
    assert tight.retries == 1
    dead = replay(events, cap_bytes=79 * MIB)
    assert (dead.survives, dead.failed_at) == (False, 1)


def test_a_segment_that_is_split_cannot_be_given_back() -> None:
    events = [*allocations(6 * MIB, 6 * MIB), Event("free", 0), Event("allocate", 2, 20 * MIB)]
    assert not replay(events, cap_bytes=39 * MIB).survives
    assert replay(events, cap_bytes=40 * MIB).survives


def test_peaks_start_anew_where_they_are_reset() -> None:
    events = [
        *allocations(100 * MIB),
        Event("free", 0),
        Event("empty_cache"),
        Event("reset_peak"),
        Event("allocate", 1, MIB),
    ]
    ended = replay(events)
    assert (ended.peak_allocated_bytes, ended.peak_reserved_bytes) == (MIB, 2 * MIB)


@settings(max_examples=150, deadline=None)
@given(st.lists(SIZES, min_size=1, max_size=60), st.integers(0, 1 << 30))
def test_bytes_are_conserved_whatever_happens(sizes: list[int], seed: int) -> None:
    """Blocks of a segment cover it without gaps, live bytes add up, and an emptied cache of nothing is nothing."""
    allocator, order, live = CachingAllocator(), random.Random(seed), set()
    for key, size in enumerate(sizes):
        assert allocator.allocate(key, size)
        live.add(key)
        if order.random() < 0.5:
            key = order.choice(sorted(live))
            live.remove(key)
            allocator.free(key)
        blocks = [block for block in allocator.live.values() if block]
        assert allocator.allocated == sum(block.size for block in blocks)
        free = sum(block.size for pool in (allocator.small, allocator.large) for block in pool.blocks.values())
        assert allocator.reserved == allocator.allocated + free
    for key in live:
        allocator.free(key)
    allocator.empty_cache()
    assert (allocator.allocated, allocator.reserved) == (0, 0)


@settings(max_examples=100, deadline=None)
@given(st.lists(SIZES, min_size=1, max_size=40))
def test_a_cap_of_what_it_reserves_uncapped_is_always_enough(sizes: list[int]) -> None:
    free_run = replay(allocations(*sizes))
    assert replay(allocations(*sizes), cap_bytes=free_run.peak_reserved_bytes).survives
    if free_run.peak_allocated_bytes:
        assert not replay(allocations(*sizes), cap_bytes=free_run.peak_allocated_bytes - 1).survives
