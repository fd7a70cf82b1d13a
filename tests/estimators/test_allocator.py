"""The allocator's replay: torch's own rules, with and without expandable segments, and its laws."""

import random
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from estimators.allocator import CachingAllocator, Event, replay
from estimators.expandable import ExpandableAllocator
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


def test_a_cap_set_after_loading_lets_loading_pass() -> None:
    events = [*allocations(100 * MIB), Event("free", 0), Event("empty_cache"), Event("allocate", 1, 50 * MIB)]
    assert replay(events, cap_bytes=60 * MIB, capped_from=3).survives
    assert replay(events, cap_bytes=60 * MIB).failed_at == 0


@pytest.mark.parametrize(
    ("sizes", "reserved"),
    [((1,), 2 * MIB), ((2 * MIB,), 20 * MIB), ((25 * MIB,), 40 * MIB), ((25 * MIB, 16 * MIB), 60 * MIB)],
)
def test_expandable_segments_grow_by_whole_pages(sizes: tuple[int, ...], reserved: int) -> None:
    assert replay(allocations(*sizes), expandable=True).peak_reserved_bytes == reserved


def test_an_expandable_segment_grows_from_its_free_end() -> None:
    events = [*allocations(40 * MIB, 30 * MIB), Event("free", 1), Event("allocate", 2, 60 * MIB)]
    assert replay(events, expandable=True).peak_reserved_bytes == 100 * MIB  # 40, 40 less 30 used again, 20 more
    assert replay(events).peak_reserved_bytes == 130 * MIB


def test_an_expandable_segment_gives_back_whole_pages_inside_a_free_block_and_fills_them_again() -> None:
    allocator = ExpandableAllocator()
    for key, size in enumerate((10 * MIB, 60 * MIB, 10 * MIB)):
        allocator.allocate(key, size)
    allocator.free(1)
    allocator.empty_cache()
    assert allocator.reserved == 40 * MIB  # of the pages 0 to 3 the second and third are wholly free
    allocator.allocate(3, 35 * MIB)
    assert allocator.reserved == 80 * MIB  # the lowest gap, with the free bytes before it
    allocator.allocate(4, 20 * MIB)
    assert allocator.reserved == 80 * MIB


def test_a_block_that_can_still_grow_is_taken_last() -> None:
    """The free end of the segment is smaller than a hole further down, but counts as all that it could become."""
    events = [
        *allocations(15 * MIB, 10 * MIB, 45 * MIB),  # 70 of 80 MiB: 10 are free at the end
        Event("free", 0),
        Event("allocate", 3, 9 * MIB),
        Event("allocate", 4, 30 * MIB),  # 10 at the end and 20 more
    ]
    assert replay(events, expandable=True).peak_reserved_bytes == 100 * MIB


def test_under_a_cap_expandable_segments_unmap_before_giving_up() -> None:
    events = [*allocations(40 * MIB, 40 * MIB), Event("free", 0), Event("allocate", 2, 60 * MIB)]
    tight = replay(events, cap_bytes=100 * MIB, expandable=True)
    assert (tight.survives, tight.retries) == (True, 1)
    assert not replay(events, cap_bytes=99 * MIB, expandable=True).survives


KINDS = pytest.mark.parametrize("kind", [CachingAllocator, ExpandableAllocator])


@KINDS
@settings(max_examples=100, deadline=None)
@given(st.lists(SIZES, min_size=1, max_size=60), st.integers(0, 1 << 30))
def test_bytes_are_conserved_whatever_happens(kind: type[CachingAllocator], sizes: list[int], seed: int) -> None:
    """Blocks cover what is reserved, no two of them overlap, no two free ones touch, and nothing leaves nothing."""
    allocator, order, live = kind(), random.Random(seed), set()
    for key, size in enumerate(sizes):
        assert allocator.allocate(key, size)
        live.add(key)
        if order.random() < 0.5:
            key = order.choice(sorted(live))
            live.remove(key)
            allocator.free(key)
        if order.random() < 0.1:
            allocator.empty_cache()
        blocks = [block for block in allocator.live.values() if block]
        assert allocator.allocated == sum(block.size for block in blocks)
        free = [*allocator.small.free_blocks, *allocator.large.free_blocks]
        assert allocator.reserved == allocator.allocated + sum(block.size for block in free)
        assert not any(block.after is not None and block.after.free for block in free)
        places = sorted((block.address, block.size) for block in blocks + free if block.pool is allocator.large)
        assert all(start + size <= after for (start, size), (after, _) in pairwise(places))
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


@KINDS
@settings(max_examples=60, deadline=None)
@given(st.lists(SIZES, min_size=2, max_size=40), st.integers(0, 1 << 30))
def test_a_copy_goes_on_as_the_original_and_leaves_it_alone(
    kind: type[CachingAllocator], sizes: list[int], seed: int
) -> None:
    order = random.Random(seed)
    allocator = kind()
    half = len(sizes) // 2
    for key, size in enumerate(sizes[:half]):
        allocator.allocate(key, size)
    for key in order.sample(range(half), half // 2):
        allocator.free(key)
    ends = []
    for one in (allocator.copy(), allocator):
        one.empty_cache()
        for key, size in enumerate(sizes[half:], half):
            one.allocate(key, size)
        ends.append((one.reserved, one.peak_reserved, one.allocated, one.peak_allocated))
        for key in list(one.live):
            one.free(key)
        one.empty_cache()
        assert one.reserved == 0
    assert ends[0] == ends[1]
