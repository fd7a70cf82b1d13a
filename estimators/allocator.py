"""torch's CUDA caching allocator, replayed over a list of events: what it reserves, and whether a job survives a cap.

Source: torch 2.11 c10/cuda/CUDACachingAllocator.cpp. Requests are rounded to 512 bytes. Up to 1 MiB they are cut from
segments of 2 MiB, below 10 MiB from segments of 20 MiB, above from segments of their own size rounded to 2 MiB; the
smallest free block that is large enough is taken, the lower address first, and what is left of it is split off where it
is worth it. A request that no segment can be made for frees every cached segment that is wholly free, and is tried once
more. One stream; memory pools of graphs, `max_split_size_mb` and `garbage_collection_threshold` are not modelled.
"""

from bisect import bisect_left, insort
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, NamedTuple

from estimators.allocation import GRAIN, LARGE, ROUND, SEGMENT, SMALL, UNSPLIT

SMALL_SEGMENT = GRAIN


class Event(NamedTuple):
    """Something that happens to the allocator: a tensor is born or dies, or the cache is emptied."""

    kind: Literal["allocate", "free", "empty_cache", "reset_peak"]
    key: int = 0
    size_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """How a replay ended."""

    peak_allocated_bytes: int
    peak_reserved_bytes: int
    retries: int
    """How often a request had to empty the cache to be met: above 0 a run is tight."""
    failed_at: int | None
    """The index of the event that no memory was left for; None where the job survived."""

    @property
    def survives(self) -> bool:
        return self.failed_at is None


def replay(events: Iterable[Event], cap_bytes: int | None = None) -> Replay:
    """Run `events` through an allocator that may reserve `cap_bytes` at most (None: without end)."""
    allocator = CachingAllocator(cap_bytes)
    failed_at = None
    for index, event in enumerate(events):
        if event.kind == "allocate":
            if not allocator.allocate(event.key, event.size_bytes):
                failed_at = index
                break
        elif event.kind == "free":
            allocator.free(event.key)
        elif event.kind == "empty_cache":
            allocator.empty_cache()
        else:
            allocator.reset_peak()
    return Replay(
        peak_allocated_bytes=allocator.peak_allocated,
        peak_reserved_bytes=allocator.peak_reserved,
        retries=allocator.retries,
        failed_at=failed_at,
    )


class _Block:
    """A stretch of a segment, in use or free, between its neighbours."""

    __slots__ = ("after", "before", "free", "offset", "segment", "size", "small")

    def __init__(self, segment: int, offset: int, size: int, small: bool) -> None:
        self.segment = segment
        self.small = small
        self.offset = offset
        self.size = size
        self.free = True
        self.before: _Block | None = None
        self.after: _Block | None = None

    @property
    def place(self) -> tuple[int, int, int]:
        """What free blocks are ordered by: size, then address."""
        return self.size, self.segment, self.offset

    @property
    def whole(self) -> bool:
        return self.before is None and self.after is None


class _Pool:
    """The free blocks of one kind, in order."""

    __slots__ = ("blocks", "places")

    def __init__(self) -> None:
        self.places: list[tuple[int, int, int]] = []
        self.blocks: dict[tuple[int, int, int], _Block] = {}

    def add(self, block: _Block) -> None:
        block.free = True
        insort(self.places, block.place)
        self.blocks[block.place] = block

    def remove(self, block: _Block) -> None:
        del self.places[bisect_left(self.places, block.place)]
        del self.blocks[block.place]

    def take(self, size: int) -> _Block | None:
        """The smallest block of at least `size`, out of the pool."""
        index = bisect_left(self.places, (size, -1, -1))
        if index == len(self.places):
            return None
        return self.blocks.pop(self.places.pop(index))

    def drop_whole(self) -> int:
        """Give back every segment that is wholly free; returns their bytes."""
        whole = [block for block in self.blocks.values() if block.whole]
        for block in whole:
            self.remove(block)
        return sum(block.size for block in whole)


class CachingAllocator:
    """The allocator of one GPU and one stream."""

    __slots__ = (
        "allocated", "cap", "large", "live", "peak_allocated", "peak_reserved", "reserved", "retries", "segments",
        "small",
    )  # fmt: skip

    def __init__(self, cap_bytes: int | None = None) -> None:
        self.cap = cap_bytes
        self.small, self.large = _Pool(), _Pool()
        self.live: dict[int, _Block | None] = {}
        self.allocated = self.reserved = self.peak_allocated = self.peak_reserved = 0
        self.retries = self.segments = 0

    def allocate(self, key: int, size_bytes: int) -> bool:
        """Make room for a tensor; False where there is none."""
        if not size_bytes:
            self.live[key] = None
            return True
        size = -(-size_bytes // ROUND) * ROUND
        pool = self.small if size <= SMALL else self.large
        block = pool.take(size) or self._new_segment(size)
        if block is None:
            return False
        self._split(block, size, pool)
        block.free = False
        self.live[key] = block
        self.allocated += block.size
        self.peak_allocated = max(self.peak_allocated, self.allocated)
        return True

    def free(self, key: int) -> None:
        """A tensor dies: its block joins its free neighbours."""
        block = self.live.pop(key)
        if block is None:
            return
        self.allocated -= block.size
        pool = self._pool_of(block)
        for neighbour in (block.before, block.after):
            if neighbour is not None and neighbour.free:
                pool.remove(neighbour)
                _absorb(block, neighbour)
        pool.add(block)

    def empty_cache(self) -> None:
        """torch.cuda.empty_cache()."""
        self.reserved -= self.small.drop_whole() + self.large.drop_whole()

    def reset_peak(self) -> None:
        """torch.cuda.reset_peak_memory_stats()."""
        self.peak_allocated, self.peak_reserved = self.allocated, self.reserved

    def _pool_of(self, block: _Block) -> _Pool:
        return self.small if block.small else self.large

    def _new_segment(self, size: int) -> _Block | None:
        wanted = segment_bytes(size)
        if self.cap is not None and self.reserved + wanted > self.cap:
            self.retries += 1
            self.empty_cache()
            if self.reserved + wanted > self.cap:
                return None
        self.segments += 1
        self.reserved += wanted
        self.peak_reserved = max(self.peak_reserved, self.reserved)
        return _Block(self.segments, 0, wanted, size <= SMALL)

    def _split(self, block: _Block, size: int, pool: _Pool) -> None:
        rest = block.size - size
        if rest < ROUND if pool is self.small else rest <= UNSPLIT:
            return
        tail = _Block(block.segment, block.offset + size, rest, block.small)
        tail.before, tail.after = block, block.after
        if block.after is not None:
            block.after.before = tail
        block.after, block.size = tail, size
        pool.add(tail)


def segment_bytes(size: int) -> int:
    """The segment that is made for a rounded request."""
    if size <= SMALL:
        return SMALL_SEGMENT
    return SEGMENT if size < LARGE else -(-size // GRAIN) * GRAIN


def _absorb(block: _Block, neighbour: _Block) -> None:
    if neighbour is block.before:
        block.offset, block.before = neighbour.offset, neighbour.before
        if block.before is not None:
            block.before.after = block
    else:
        block.after = neighbour.after
        if block.after is not None:
            block.after.before = block
    block.size += neighbour.size
