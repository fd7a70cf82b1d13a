"""Where segments lie: regions of whole 32 MiB, filled from their start, as histories of a real H200 show them."""

from estimators.addresses import HIGHEST, REGION, WORKSPACE, AddressSpace
from estimators.units import MIB

CONTEXT = HIGHEST - 1024 * MIB
"""The lowest address of the regions that are there already."""


def full_context() -> AddressSpace:
    """Nothing is left in the regions that the context made."""
    space = AddressSpace()
    for size in (8, 416, 22):
        assert space.take(size * MIB) > CONTEXT
    return space


def test_what_the_context_leaves_is_taken_first() -> None:
    """The first segments of hist-tiny-lora-qv, after the one of 2 MiB that was there before the recording."""
    space = AddressSpace()
    first = space.take(2 * MIB)
    sizes = (126, 20, 22, 22, 22, 2, 20, 2, 22, 22, 22, 20, 2, 22, 22, 22, 20, 2, 22, 22)
    real = (0, 126, 146, 168, 190, -6, 212, -4, 232, 254, 276, 298, -2, 318, 340, 362, 384, 404, 490, -544)
    assert tuple((space.take(size * MIB) - first) // MIB - 8 for size in sizes) == real


def test_regions_go_down_and_are_filled_from_their_start() -> None:
    space = full_context()
    places = [CONTEXT - space.take(size * MIB) for size in (20, 2, 20, 2, 12)]
    assert places == [32 * MIB, 12 * MIB, 64 * MIB, 44 * MIB, 96 * MIB]  # the lowest place that is wide enough


def test_a_large_segment_goes_to_a_hole_too_and_leaves_its_regions_end_to_others() -> None:
    space = full_context()
    kept = space.take(100 * MIB)
    assert CONTEXT - kept == 128 * MIB
    assert space.take(2 * MIB) == kept + 100 * MIB
    space.give_back(kept, 100 * MIB)
    assert space.take(40 * MIB) == kept


def test_the_addresses_of_a_region_that_nothing_is_left_in_are_taken_from_their_end() -> None:
    space = full_context()
    first = space.take(96 * MIB)
    below = space.take(32 * MIB)
    assert below == first - REGION
    space.give_back(first, 96 * MIB)
    assert space.take(20 * MIB) == first + 64 * MIB
    assert space.take(90 * MIB) == below - 96 * MIB  # the gap is not wide enough any more
    assert space.take(64 * MIB) == first


def test_the_driver_takes_its_own_before_the_first_workspace_of_the_steps() -> None:
    space = full_context()
    space.take(WORKSPACE)
    space.begin_steps()
    kept = space.take(16 * MIB)
    assert space.take(WORKSPACE) == kept - 64 * MIB - WORKSPACE
    assert space.copy().take(2 * MIB) == kept + 30 * MIB  # three times 2 MiB and once 8 are gone
    space.begin_steps()
    assert space.take(WORKSPACE) == kept - 64 * MIB - 2 * WORKSPACE
