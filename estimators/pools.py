"""The blocks that torch's caching allocator cuts its segments into, and its pools of free ones."""

from bisect import bisect_left, insort

ADDRESS_BITS = 48
ADDRESS = (1 << ADDRESS_BITS) - 1


class Block:
    """A stretch of a segment, in use or free, between its neighbours."""

    __slots__ = ("address", "after", "before", "free", "mapped", "pool", "size")

    def __init__(self, pool: "Pool", address: int, size: int, before: "Block | None", after: "Block | None") -> None:
        self.pool = pool
        self.address = address
        self.size = size
        self.before = before
        self.after = after
        self.free = False
        """Whether it can be taken, and joined by a neighbour."""
        self.mapped = True
        """Only pages of expandable segments may have no memory behind them."""

    def split(self, size: int) -> "Block":
        """Cut it after `size` bytes; returns what follows."""
        after = self.after
        tail = Block(self.pool, self.address + size, self.size - size, self, after)
        if after is not None:
            after.before = tail
        self.after, self.size = tail, size
        return tail


class Pool:
    """The free blocks of one kind, ordered by size, then address."""

    __slots__ = ("at", "page", "places", "spare", "splits_from")

    def __init__(self, page: int, splits_from: int) -> None:
        self.page = page
        self.splits_from = splits_from
        """The smallest rest that is split off a block."""
        self.places: list[int] = []
        """Size and address in one number, which is compared faster than two."""
        self.at: dict[int, Block] = {}
        """By address; what is no longer free may linger here, and is in no place."""
        self.spare: list[Block] = []
        """Blocks that others have taken over, to be used again: to make new ones takes longer."""

    def add(self, block: Block) -> None:
        block.free = True
        address = block.address
        self.at[address] = block
        insort(self.places, block.size << ADDRESS_BITS | address)

    def join(self, block: Block) -> None:
        """A block is free again, and one with its free neighbours."""
        places, before, after = self.places, block.before, block.after
        if before is not None and before.free:
            del places[bisect_left(places, before.size << ADDRESS_BITS | before.address)]
            before.size += block.size
            before.after = after
            self.spare.append(block)
            block = before
            if after is not None:
                after.before = block
        if after is not None and after.free:
            del places[bisect_left(places, after.size << ADDRESS_BITS | after.address)]
            block.size += after.size
            self.spare.append(after)
            block.after = after = after.after
            if after is not None:
                after.before = block
        block.free = True
        address = block.address
        self.at[address] = block
        insort(places, block.size << ADDRESS_BITS | address)

    def cut(self, block: Block, size: int) -> None:
        """What is left of a block behind `size` bytes is free."""
        after, address, rest = block.after, block.address + size, block.size - size
        if self.spare:
            tail = self.spare.pop()
            tail.address, tail.size, tail.before, tail.after = address, rest, block, after
        else:
            tail = Block(self, address, rest, block, after)
        if after is not None:
            after.before = tail
        block.after, block.size, tail.free = tail, size, True
        self.at[address] = tail
        insort(self.places, rest << ADDRESS_BITS | address)

    def remove(self, block: Block) -> None:
        places = self.places
        del places[bisect_left(places, block.size << ADDRESS_BITS | block.address)]

    def take(self, size: int) -> Block | None:
        """The smallest free block of at least `size`, out of the pool."""
        places = self.places
        index = bisect_left(places, size << ADDRESS_BITS)
        return self.at[places.pop(index) & ADDRESS] if index < len(places) else None

    @property
    def free_blocks(self) -> list[Block]:
        return [self.at[place & ADDRESS] for place in self.places]


def absorb_before(block: Block, neighbour: Block) -> None:
    """`block` takes over its neighbour's bytes."""
    block.address, block.before = neighbour.address, neighbour.before
    if block.before is not None:
        block.before.after = block
    block.size += neighbour.size
    neighbour.before = neighbour.after = None


def absorb_after(block: Block, neighbour: Block) -> None:
    """`block` takes over its neighbour's bytes."""
    block.after = neighbour.after
    if block.after is not None:
        block.after.before = block
    block.size += neighbour.size
    neighbour.before = neighbour.after = None
