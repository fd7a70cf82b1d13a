"""Where cudaMalloc puts segments: the caching allocator takes equal free blocks by their address.

Found on an H200 with driver 580 (no document says so) from the addresses in 14 recorded histories without expandable
segments, 13 of which come out segment for segment; the last has the same peak. Addresses are taken in regions of as
many times 32 MiB as are needed, the highest ones that are unused and wide enough. A segment goes to the lowest place
that is wide enough in the regions at hand, whatever its size, else to a new region. A region that nothing is left in is
given up. The CUDA context leaves some room behind, and the driver takes memory of its own from the same regions: what
it takes while a model is loaded, and from the backward pass on, moves small segments only, and is left out.
"""

from bisect import insort

from estimators.units import MIB

REGION = 32 * MIB
HIGHEST = 1 << 47
CONTEXT_REGIONS = (512 * MIB, 512 * MIB)
"""The two that are there when a process has its context, the second above the first."""
CONTEXT_LEAVES = ((504 * MIB, 8 * MIB), (512 * MIB, 416 * MIB), (1002 * MIB, 22 * MIB))
"""Start and size of what is unused in them, the same in all histories."""
WORKSPACE = 32 * MIB
"""The segment of cuBLAS's workspace on Hopper and later: the sign that its handle has just been made."""
DRIVER_TAKES = tuple(size * MIB for size in (2, 64, 2, 2, 8))
"""For the first kernels of a forward pass: 2 MiB before the handle and 66 with it, 2 right after, 8 a little later.

Where the 66 MiB did not fit into a region at hand, one of 64 MiB was made, and 2 came from another.
"""


class AddressSpace:
    """The addresses of one GPU."""

    __slots__ = ("driver_takes", "gaps", "holes", "lowest", "regions", "widest_hole")

    def __init__(self) -> None:
        self.lowest = HIGHEST - sum(CONTEXT_REGIONS)
        self.regions = {self.lowest: CONTEXT_REGIONS[0], self.lowest + CONTEXT_REGIONS[0]: CONTEXT_REGIONS[1]}
        """Size of each by its start."""
        self.holes = [(self.lowest + start, size) for start, size in CONTEXT_LEAVES]
        """Start and size of what is unused in the regions, lowest first."""
        self.gaps: list[tuple[int, int]] = []
        """Start and size of what given up regions leave between others, lowest first."""
        self.driver_takes: tuple[int, ...] | None = None
        """What the driver takes with cuBLAS's handle; None while a model is loaded."""
        self.widest_hole = HIGHEST
        """Larger segments always get a region of their own."""

    def begin_steps(self) -> None:
        """Loading is over: the next segment of a workspace's size is that of cuBLAS."""
        if self.driver_takes is None:
            self.driver_takes = DRIVER_TAKES

    def take(self, size: int) -> int:
        """A place for a segment."""
        if self.driver_takes and size == WORKSPACE:
            taken, self.driver_takes = self.driver_takes, ()
            for own in taken:
                self._place(own)
        return self._place(size)

    def _place(self, size: int) -> int:
        holes = enumerate(self.holes) if size <= self.widest_hole else ()
        index = next((index for index, hole in holes if hole[1] >= size), None)
        start, room = self._region(-(-size // REGION) * REGION) if index is None else self.holes.pop(index)
        if room > size:
            insort(self.holes, (start + size, room - size))
        return start

    def _region(self, room: int) -> tuple[int, int]:
        """A new one: the end of the highest gap that is wide enough, else below all others."""
        gap = next((gap for gap in reversed(self.gaps) if gap[1] >= room), None)
        if gap is None:
            start = self.lowest = self.lowest - room
        else:
            self.gaps.remove(gap)
            start = gap[0] + gap[1] - room
            if gap[1] > room:
                insort(self.gaps, (gap[0], gap[1] - room))
        self.regions[start] = room
        return start, room

    def give_back(self, start: int, size: int) -> None:
        """A segment is freed, and with the last one its region."""
        region = max(begin for begin in self.regions if begin <= start)
        start, size = _join(self.holes, start, size, region, region + self.regions[region])
        if size < self.regions[region]:
            insort(self.holes, (start, size))
        else:
            del self.regions[region]
            insort(self.gaps, _join(self.gaps, start, size, self.lowest, HIGHEST))

    def copy(self) -> "AddressSpace":
        """The same state."""
        twin = AddressSpace()
        twin.lowest, twin.regions, twin.driver_takes = self.lowest, self.regions.copy(), self.driver_takes
        twin.holes, twin.gaps, twin.widest_hole = self.holes.copy(), self.gaps.copy(), self.widest_hole
        return twin


def _join(stretches: list[tuple[int, int]], start: int, size: int, low: int, high: int) -> tuple[int, int]:
    """What is unused at `start`, together with its neighbours between `low` and `high`, which leave the list."""
    for other in [other for other in stretches if low <= other[0] and other[0] + other[1] <= high]:
        if other[0] + other[1] == start or start + size == other[0]:
            stretches.remove(other)
            start, size = min(start, other[0]), size + other[1]
    return start, size
