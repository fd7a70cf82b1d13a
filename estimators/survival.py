"""Whether a job survives under a cap and under everything down to a lower one, replayed once for every way to go.

Survival is not monotone in the cap, so it is asked at the cap and at every 16 MiB below it. Runs under different caps
are one run until a request comes that some of them allow and others do not: only there the replay is forked.
"""

from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass

from estimators.allocator import CachingAllocator, Event, advance, begin
from estimators.units import MIB

STEP_BYTES = 16 * MIB
OTHER_WIDEST_HOLE = 64 * MIB
"""Where a freed segment's addresses go again is not known for sure: the recorded histories agree as well with large
segments that always get new ones. A job must survive both ways."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Survival:
    """What became of a job under a cap, and under the lower ones that an estimate may have to be held against."""

    cap_bytes: int
    low_bytes: int
    deadly_bytes: int | None
    """A cap of the range that the job dies under: the cap itself where that is one; None where it survives all."""
    retries: int
    """How often the cache was emptied under the cap itself: above 0 a run is tight."""

    @property
    def survives(self) -> bool:
        return self.deadly_bytes is None

    @property
    def tight(self) -> bool:
        return self.survives and self.retries > 0


@dataclass(slots=True)
class _Branch:
    """A replay that has come to `index`, the same for all of `caps` so far."""

    allocator: CachingAllocator
    index: int
    caps: list[int]
    """Rising."""


def survives(
    events: Iterable[Event], cap_bytes: int, low_bytes: int, expandable: bool = False, capped_from: int = 0
) -> Survival:
    """Replay `events` at the cap and at every 16 MiB down to `low_bytes`, which is asked too.

    With `capped_from`, the caps hold from the event of that index on, as one that is set after loading does.
    """
    events = events if isinstance(events, (list, tuple)) else tuple(events)
    low_bytes = min(low_bytes, cap_bytes)
    caps = sorted({low_bytes, *range(cap_bytes, low_bytes, -STEP_BYTES)})
    branches = [_Branch(begin(events, expandable, capped_from), capped_from, caps) for _ in range(2)]
    branches[1].allocator.addresses.widest_hole = OTHER_WIDEST_HOLE
    deadly, retries = None, 0
    while branches:
        branch = branches.pop()
        at_cap = branch.caps[-1] == cap_bytes
        if deadly is not None:  # lower caps have said enough
            if not at_cap:
                continue
            branch.caps = [cap_bytes]
        dead = _follow(branch, events, branches)
        if at_cap and branch.caps[-1] == cap_bytes:
            retries = max(retries, branch.allocator.retries)
        if dead is not None:
            deadly = max(dead, deadly or 0)
    return Survival(cap_bytes=cap_bytes, low_bytes=low_bytes, deadly_bytes=deadly, retries=retries)


def _follow(branch: _Branch, events: list[Event] | tuple[Event, ...], branches: list[_Branch]) -> int | None:
    """Take a branch of the lowest caps to its end, leaving others to `branches`; returns the cap that it died under."""
    allocator = branch.allocator
    while True:
        allocator.cap = branch.caps[0]
        branch.index = advance(allocator, events, branch.index)
        if branch.index == len(events):
            return None
        size_bytes = events[branch.index].size_bytes
        enough = bisect_left(branch.caps, allocator.needed_bytes(size_bytes))
        if higher := branch.caps[enough:]:
            branches.append(_Branch(allocator.copy(), branch.index, higher))
            branch.caps = branch.caps[:enough]
        allocator.empty_cache()
        allocator.retries += 1
        if dying := bisect_left(branch.caps, allocator.needed_bytes(size_bytes)):
            if living := branch.caps[dying:]:
                branches.append(_Branch(allocator, branch.index, living))
            branch.caps = branch.caps[:dying]
            return branch.caps[-1]
