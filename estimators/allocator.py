"""torch's CUDA caching allocator, replayed over a list of events: what it reserves, and whether a job survives a cap.

Source: torch 2.11 c10/cuda/CUDACachingAllocator.cpp (from memory; the fixtures under tests/fixtures/allocator hold what
it really did). Requests are rounded to 512 bytes. Up to 1 MiB they are cut from segments of 2 MiB, below 10 MiB from
segments of 20 MiB, above from segments of their own size rounded to 2 MiB; the smallest free block that is large enough
is taken, the lower address first (estimators/addresses.py), and what is left of it is split off where it is worth it. A
request that no segment can be made for frees every cached segment that is wholly free, and is tried once more. One
stream; memory pools of graphs, `max_split_size_mb` and `garbage_collection_threshold` are not modelled.
estimators/expandable.py is the same with `expandable_segments`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Self

from estimators.addresses import AddressSpace
from estimators.allocation import GRAIN, LARGE, ROUND, SEGMENT, SMALL, UNSPLIT
from estimators.pools import Block, Pool

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


def replay(
    events: Iterable[Event], cap_bytes: int | None = None, expandable: bool = False, capped_from: int = 0
) -> Replay:
    """Run `events` through an allocator that may reserve `cap_bytes` at most (None: without end).

    With `capped_from`, the cap holds from the event of that index on, as one that is set after loading does.
    """
    events = events if isinstance(events, (list, tuple)) else tuple(events)
    allocator = begin(events, expandable, capped_from)
    allocator.cap = cap_bytes
    index = capped_from
    while (index := advance(allocator, events, index)) < len(events):
        if not allocator.retry(events[index].key, events[index].size_bytes):
            break
        index += 1
    return Replay(
        peak_allocated_bytes=allocator.peak_allocated,
        peak_reserved_bytes=allocator.peak_reserved,
        retries=allocator.retries,
        failed_at=index if index < len(events) else None,
    )


def begin(events: Sequence[Event], expandable: bool, stop: int) -> "CachingAllocator":
    """An allocator without a cap that has gone through `events` up to the index `stop`."""
    from estimators.expandable import ExpandableAllocator  # which is made of what is below

    allocator = ExpandableAllocator() if expandable else CachingAllocator()
    advance(allocator, events[:stop], 0)
    return allocator


def advance(allocator: "CachingAllocator", events: Sequence[Event], start: int) -> int:
    """Go through `events` from `start` on; returns the index of the first one that is over the cap, or the end."""
    index, end = start, len(events)
    while (index := allocator.follow(events, index, end)) < end:
        kind = events[index].kind
        if kind == "allocate":
            break
        if kind == "empty_cache":
            allocator.empty_cache()
        else:
            allocator.reset_peak()
        index += 1
    return index


class CachingAllocator:
    """The allocator of one GPU and one stream."""

    __slots__ = (
        "addresses", "allocated", "cap", "large", "larger", "live", "peak_allocated", "peak_at", "peak_reserved",
        "reserved", "retries", "small",
    )  # fmt: skip

    def __init__(self, cap_bytes: int | None = None) -> None:
        self.cap = cap_bytes
        self.small, self.large = self._pools()
        self.live: dict[int, Block | None] = {}
        self.allocated = self.reserved = self.peak_allocated = self.peak_reserved = 0
        self.retries = self.peak_at = 0
        """`peak_at`: the index of the event that `peak_allocated` was reached with."""
        self.larger: dict[int, int] = {}
        """What was taken by requests whose block was not worth splitting, more than they rounded to, by their index."""
        self.addresses = AddressSpace()

    def _pools(self) -> tuple[Pool, Pool]:
        return Pool(SMALL_SEGMENT, ROUND), Pool(SEGMENT, UNSPLIT + ROUND)

    def allocate(self, key: int, size_bytes: int) -> bool:
        """Make room for a tensor, emptying the cache if need be; False where there is none."""
        return self.attempt(key, size_bytes) or self.retry(key, size_bytes)

    def retry(self, key: int, size_bytes: int) -> bool:
        """Make room for a tensor after emptying the cache; False where there is none."""
        self.retries += 1
        self.empty_cache()
        return self.attempt(key, size_bytes)

    def attempt(self, key: int, size_bytes: int) -> bool:
        """Make room for a tensor; False, and nothing is changed, where that takes a segment over the cap."""
        return self.follow((Event("allocate", key, size_bytes),), 0, 1) == 1

    def free(self, key: int) -> None:
        """A tensor dies: its block joins its free neighbours."""
        self.follow((Event("free", key),), 0, 1)

    def follow(self, events: Sequence[Event], start: int, stop: int) -> int:
        """Go through tensors' lives; returns the index of the first event that is over the cap or no tensor's, or
        `stop`. In one loop with few calls: a deep model has 200,000 of these events."""
        live, small, large, allocated, peak = self.live, self.small, self.large, self.allocated, self.peak_allocated
        index = start
        for index, (kind, key, size_bytes) in enumerate(events[start:stop], start):
            if kind == "free":
                block = live.pop(key)
                if block is not None:
                    allocated -= block.size
                    block.pool.join(block)
            elif kind != "allocate":
                break
            elif not size_bytes:
                live[key] = None
            else:
                size = (size_bytes + ROUND - 1) & -ROUND
                pool = small if size <= SMALL else large
                block = pool.take(size) or self._new(pool, size)
                if block is None:
                    break
                if block.size - size >= pool.splits_from:
                    pool.cut(block, size)
                elif block.size > size:
                    self.larger[index] = block.size
                block.free = False
                live[key] = block
                allocated += block.size
                if allocated > peak:
                    peak, self.peak_at = allocated, index
        else:
            index = stop
        self.allocated, self.peak_allocated = allocated, peak
        return index

    def empty_cache(self) -> None:
        """torch.cuda.empty_cache()."""
        for pool in (self.large, self.small):
            for block in pool.free_blocks:
                if block.before is None and block.after is None:
                    pool.remove(block)
                    self._give_back(block.size)
                    self.addresses.give_back(block.address, block.size)

    def reset_peak(self) -> None:
        """torch.cuda.reset_peak_memory_stats()."""
        self.peak_allocated, self.peak_reserved = self.allocated, self.reserved
        self.addresses.begin_steps()  # a job resets it once its model is loaded

    def needed_bytes(self, size_bytes: int) -> int:
        """What would be reserved if a tensor got a segment of its own; torch holds this against the cap."""
        return self.reserved + segment_bytes(rounded(size_bytes))

    def copy(self) -> Self:
        """The same state, to go on from in another way."""
        twin = type(self)(self.cap)
        for name in ("allocated", "reserved", "peak_allocated", "peak_reserved", "retries"):
            setattr(twin, name, getattr(self, name))
        twin.addresses = self.addresses.copy()
        twins: dict[Block | None, Block] = {}
        for pool, other in ((self.small, twin.small), (self.large, twin.large)):
            other.places = pool.places.copy()
            for block in self._blocks(pool):
                new = twins[block] = Block(other, block.address, block.size, block.before, block.after)
                new.free, new.mapped = block.free, block.mapped
                other.at[block.address] = new
        for new in twins.values():
            new.before, new.after = twins.get(new.before), twins.get(new.after)
        twin.live = {key: twins.get(block) for key, block in self.live.items()}
        return twin

    def _blocks(self, pool: Pool) -> list[Block]:
        return [*pool.free_blocks, *(block for block in self.live.values() if block is not None and block.pool is pool)]

    def _new(self, pool: Pool, size: int) -> Block | None:
        """A segment, if the cap allows it."""
        wanted = segment_bytes(size)
        if self.cap is not None and self.reserved + wanted > self.cap:
            return None
        self._reserve(wanted)
        return Block(pool, self.addresses.take(wanted), wanted, None, None)

    def _reserve(self, size: int) -> None:
        self.reserved += size
        if self.reserved > self.peak_reserved:
            self.peak_reserved = self.reserved

    def _give_back(self, size: int) -> None:
        self.reserved -= size


def rounded(size_bytes: int) -> int:
    """What is looked for when a tensor of so many bytes asks."""
    return (size_bytes + ROUND - 1) & -ROUND


def segment_bytes(size: int) -> int:
    """The segment that is made for a rounded request."""
    if size <= SMALL:
        return SMALL_SEGMENT
    return SEGMENT if size < LARGE else -(-size // GRAIN) * GRAIN
