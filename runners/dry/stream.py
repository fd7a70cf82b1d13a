"""The ordered allocations and frees of a run, each with the phase and the block of the model that it belongs to."""

from dataclasses import dataclass, field
from typing import Literal

from estimators.allocator import Event
from estimators.work import Work

Phase = Literal["load", "forward", "backward", "optimizer", "evaluation", "save"]
OUTSIDE = -1
"""The owner of what belongs to no block: embeddings, final norm, head, loss, batch."""


@dataclass(slots=True)
class Stream:
    """What happens to the allocator, in order."""

    events: list[Event] = field(default_factory=list)
    owners: list[int] = field(default_factory=list)
    """The block of each event."""
    phases: list[tuple[int, Phase]] = field(default_factory=list)
    """The index of the event at which each phase begins."""
    owner_of: dict[int, int] = field(default_factory=dict)
    """The block of each key."""
    terms: dict[int, str] = field(default_factory=dict)
    """What a key is for, where that is known."""
    makers: dict[int, str] = field(default_factory=dict)
    """The operator that made a key."""

    work: Work = field(default_factory=lambda: Work(loads={}))
    """What the last step computes."""
    born_at: dict[int, int] = field(default_factory=dict)
    """The index of a key's allocation."""
    ended: bool = False
    """Whether the job is over: what dies later is not recorded."""

    def allocate(self, key: int, size_bytes: int, block: int, maker: str) -> None:
        self.born_at[key] = len(self.events)
        self.events.append(Event("allocate", key, size_bytes))
        self.owners.append(block)
        self.owner_of[key], self.makers[key] = block, maker

    def give(self, key: int, block: int) -> None:
        """A tensor turns out to be a block's."""
        if key in self.born_at:
            self.owner_of[key] = self.owners[self.born_at[key]] = block

    def free(self, key: int, block: int) -> None:
        """A free belongs to the block that is running, or else to its tensor's: lists die when no block runs."""
        target = self.owner_of.get(key)
        if target is None:  # it never had memory
            return
        near = block != OUTSIDE and abs(block - target) <= 1
        self.events.append(Event("free", key))
        self.owners.append(block if near else target)

    def mark(self, event: Event) -> None:
        self.events.append(event)
        self.owners.append(OUTSIDE)

    def settle_load(self) -> None:
        """Now that the owner of every key is known: what was freed while loading belongs to the block that is loading,
        or else to its tensor's."""
        loading = OUTSIDE
        for index, event in enumerate(self.events):
            owner = self.owner_of.get(event.key, OUTSIDE)
            if event.kind == "allocate":
                loading = owner
            self.owners[index] = loading if loading != OUTSIDE and abs(loading - owner) <= 1 else owner

    def bounds(self) -> list[tuple[int, int, Phase]]:
        """Where each phase begins and ends."""
        ends = [start for start, _ in self.phases[1:]] + [len(self.events)]
        return [(start, end, phase) for (start, phase), end in zip(self.phases, ends, strict=True)]

    def close_gaps(self) -> None:
        """What lies between events of neighbouring blocks, or of one block in the middle, belongs to the first of them.

        The first and the last block are where the order of blocks turns round: between their events lies what really
        is outside.
        """
        ends = (0, max(self.owner_of.values(), default=0))
        for start, end, _ in self.bounds():
            last, gap = OUTSIDE, start
            for index in range(start, end):
                owner = self.owners[index]
                if owner == OUTSIDE:
                    continue
                if gap < index and last != OUTSIDE and (abs(owner - last) == 1 or owner == last not in ends):
                    self._give(range(gap, index), last)
                last, gap = owner, index + 1
        for index, event in enumerate(self.events):
            if event.kind == "free" and self.owners[index] == OUTSIDE:
                self.owners[index] = self.owner_of[event.key]

    def label(self) -> None:
        """Say what every tensor is for: where nothing better is known, by when and where it was made."""
        for start, end, phase in self.bounds():
            passed = False
            for index in range(start, end):
                event, owner = self.events[index], self.owners[index]
                passed = passed or owner != OUTSIDE
                if event.kind == "allocate" and event.key not in self.terms:
                    self.terms[event.key] = _term(phase, outside=owner == OUTSIDE, passed=passed)

    def _give(self, indices: range, block: int) -> None:
        for index in indices:
            self.owners[index] = block
            if self.events[index].kind == "allocate":
                self.owner_of[self.events[index].key] = block


def _term(phase: Phase, *, outside: bool, passed: bool) -> str:
    """`passed`: whether the first block of this pass has been reached."""
    if phase == "load":
        return "weights"
    if phase == "optimizer":
        return "workspace"
    at_the_head = outside and passed == (phase != "backward")
    return "logits" if at_the_head else "activations"
