"""How many bytes torch's caching allocator counts for a tensor.

Source: torch 2.11 c10/cuda/CUDACachingAllocator.cpp: requests are rounded to 512 bytes; from 1 MiB on they are cut from
segments of 20 MiB, from 10 MiB on from segments of their own size rounded to 2 MiB; a rest of at most 1 MiB is not
split off, so it counts as allocated.
"""

from estimators.units import MIB

ROUND, SMALL, LARGE, SEGMENT, GRAIN, UNSPLIT = 512, MIB, 10 * MIB, 20 * MIB, 2 * MIB, MIB


def held_bytes(size_bytes: int) -> int:
    """Bytes that stay allocated for a tensor of `size_bytes` among many like it."""
    rounded = -(-size_bytes // ROUND) * ROUND
    if rounded <= SMALL:
        return rounded
    if rounded >= LARGE:
        segment = -(-rounded // GRAIN) * GRAIN
        return segment if segment - rounded <= UNSPLIT else rounded
    fitting = SEGMENT // rounded
    rest = SEGMENT - fitting * rounded
    return rounded + (rest // fitting if rest <= UNSPLIT else 0)
