"""torch's caching allocator with `expandable_segments`: one growing segment a pool, whose pages come and go.

Source: torch 2.11 c10/cuda/CUDACachingAllocator.cpp, ExpandableSegment, find_expandable_block, map_block, unmap_block
and get_free_block (from memory). Addresses are reserved once, memory is put behind them in pages of 2 MiB (requests up
to 1 MiB) or 20 MiB. A request that no free block holds takes the lowest gap without memory that is wide enough, with
the free block before it, and maps only the pages that are missing. Emptying the cache unmaps every whole page inside a
free block. torch reserves addresses for 1.125 times the card's memory and begins another segment beyond; here they
never end.
"""

from bisect import bisect_left, insort

from estimators.allocation import GRAIN, ROUND, SEGMENT
from estimators.allocator import CachingAllocator, segment_bytes
from estimators.pools import ADDRESS, ADDRESS_BITS, Block, Pool, absorb_after, absorb_before

ENDLESS = 1 << ADDRESS_BITS - 2
"""Bytes of addresses in a segment: more than is ever in use; a multiple of both kinds of pages is not needed."""


class ExpandablePool(Pool):
    """A pool whose blocks all lie in one segment, some of them without memory."""

    __slots__ = ("gaps",)

    def __init__(self, page: int) -> None:
        super().__init__(page, splits_from=ROUND)
        gap = Block(self, 0, ENDLESS, None, None)
        gap.mapped = False
        self.gaps: list[int] = [0]
        """The addresses of the blocks without memory, lowest first."""
        self.at[0] = gap

    def take(self, size: int) -> Block | None:
        """The block that wastes least, where one that can still grow counts as what it can grow to."""
        places, index = self.places, bisect_left(self.places, size << ADDRESS_BITS)
        if index == len(places):
            return None
        block = self.at[places[index] & ADDRESS]
        while index + 1 < len(places):
            other = self.at[places[index + 1] & ADDRESS]
            if self.room(other) >= self.room(block):
                break
            block, index = other, index + 1
        del places[index]
        return block

    def room(self, block: Block) -> int:
        """Its size, or what it can grow to."""
        after = block.after
        return block.size if after is None or after.mapped else block.size + after.size

    def open_gap(self, block: Block) -> None:
        """A block lost its memory: it joins the gaps beside it."""
        block.free = block.mapped = False
        if block.before is not None and not block.before.mapped:
            self.gaps.remove(block.before.address)
            absorb_before(block, block.before)
        if block.after is not None and not block.after.mapped:
            self.gaps.remove(block.after.address)
            absorb_after(block, block.after)
        insort(self.gaps, block.address)
        self.at[block.address] = block

    def fill_gap(self, gap: Block, size: int) -> Block:
        """Memory for the first `size` bytes of a gap, rounded to pages; returns the free block that they end up in."""
        pages = -(-size // self.page) * self.page
        self.gaps.remove(gap.address)
        if pages < gap.size:
            rest = gap.split(pages)
            rest.mapped = False
            insort(self.gaps, rest.address)
            self.at[rest.address] = rest
        gap.mapped = True
        if gap.before is not None and gap.before.free:
            self.remove(gap.before)
            absorb_before(gap, gap.before)
        if gap.after is not None and gap.after.free:
            self.remove(gap.after)
            absorb_after(gap, gap.after)
        self.add(gap)
        return gap


class ExpandableAllocator(CachingAllocator):
    """The allocator of one GPU and one stream, with expandable segments."""

    __slots__ = ()

    def _pools(self) -> tuple[Pool, Pool]:
        return ExpandablePool(GRAIN), ExpandablePool(SEGMENT)

    def empty_cache(self) -> None:
        """torch.cuda.empty_cache(): whole pages inside free blocks lose their memory."""
        for pool in (self.large, self.small):
            assert isinstance(pool, ExpandablePool)
            for block in pool.free_blocks:
                self._unmap(pool, block)

    def _unmap(self, pool: ExpandablePool, block: Block) -> None:
        first = -(-block.address // pool.page) * pool.page
        last = (block.address + block.size) // pool.page * pool.page
        if first >= last:
            return
        pool.remove(block)
        if last < block.address + block.size:
            pool.add(block.split(last - block.address))
        if first > block.address:
            pages = block.split(first - block.address)
            pool.add(block)
            block = pages
        self._give_back(block.size)
        pool.open_gap(block)

    def _blocks(self, pool: Pool) -> list[Block]:
        assert isinstance(pool, ExpandablePool)
        return [*super()._blocks(pool), *(pool.at[address] for address in pool.gaps)]

    def copy(self) -> "ExpandableAllocator":
        """The same state, to go on from in another way."""
        twin = super().copy()
        for pool, other in ((self.small, twin.small), (self.large, twin.large)):
            assert isinstance(pool, ExpandablePool) and isinstance(other, ExpandablePool)
            other.gaps = pool.gaps.copy()
        return twin

    def _new(self, pool: Pool, size: int) -> Block | None:
        """More pages, if the cap allows a whole segment: that is what torch holds against it."""
        assert isinstance(pool, ExpandablePool)
        if self.cap is not None and self.reserved + segment_bytes(size) > self.cap:
            return None
        block = self._roomy(pool, size)
        if not block.mapped:
            block = self._map(pool, block, min(size, block.size))
        while block.size < size:
            gap = block.after
            assert gap is not None  # the last gap never ends
            block = self._map(pool, gap, min(size - block.size, gap.size))
        pool.remove(block)
        return block

    def _map(self, pool: ExpandablePool, gap: Block, size: int) -> Block:
        self._reserve(-(-size // pool.page) * pool.page)
        return pool.fill_gap(gap, size)

    def _roomy(self, pool: ExpandablePool, size: int) -> Block:
        """The lowest gap, or the free block before it, from which on `size` bytes are free or without memory."""
        for address in pool.gaps:
            start = pool.at[address]
            if start.before is not None and start.before.free:
                start = start.before
            room, block = 0, start
            while room < size and (block.free or not block.mapped):
                room += block.size
                if block.after is None:
                    break
                block = block.after
            if room >= size:
                return start
        raise AssertionError("the last gap never ends")
