"""A shallow model's stream made that of a deep one: what one period of blocks does is repeated, with fresh keys.

The stretch of the stream that belongs to a window of blocks in the middle is copied wherever it occurs: in loading,
forward, backward, recomputation and optimizer step. That this is right is checked on each model anew: the window taken
out must give the stream of a model that really is one period shallower, event for event.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby

from estimators.allocator import Event
from runners.dry.stream import OUTSIDE, Stream


class NotLinearError(Exception):
    """The blocks do not repeat: the model has to be traced as deep as it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """Blocks start … start + period - 1, which repeat."""

    start: int
    period: int

    @property
    def end(self) -> int:
        return self.start + self.period

    def __contains__(self, block: int) -> bool:
        return self.start <= block < self.end


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a key was allocated: the block, its how-manieth visit in which phase, the how-manieth of that visit."""

    block: int
    visit: tuple[int, int]
    ordinal: int


Stretches = list[tuple[int, list[int]]]
"""Owners and the indices of their consecutive events."""


def repeated(stream: Stream, window: Window, copies: int, slopes: Mapping[int, int] | None = None) -> Stream:
    """The stream with `copies` more windows (-1 takes the window out); `slopes` are bytes that a key grows by a copy.

    Raises:
        NotLinearError: the window's events do not lie together, or hang on others in a way that does not repeat.
    """
    return _Copier(stream, window, copies, slopes or {}).result()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pattern:
    """What one copy of a passage through the window does, from which the others are made.

    What is born and dies within the passage is dead when the next copy begins, which can use the same keys for it.
    """

    copy: int
    events: list[Event]
    owners: list[int]
    passed_on: list[int]
    """The places of events whose tensors outlive the passage, or are older."""
    left: list[tuple[int, int, str, str]]
    """Key, owner, term and maker of what it leaves alive."""


class _Copier:
    """One repetition at work."""

    def __init__(self, stream: Stream, window: Window, copies: int, slopes: Mapping[int, int]) -> None:
        self.stream, self.window, self.copies, self.slopes = stream, window, copies, slopes
        self.stride = max(stream.owner_of, default=0) + 1
        self.places: dict[int, _Place] = {}
        self.keys: dict[tuple[int, tuple[int, int]], list[int]] = {}
        self.phases = [_stretches(stream, start, end) for start, end, _ in stream.bounds()]
        for number, stretches in enumerate(self.phases):
            self._index(number, stretches)
        self.target = Stream(terms=dict(stream.terms), makers=dict(stream.makers))

    def _index(self, phase: int, stretches: Stretches) -> None:
        visits: dict[int, int] = {}
        for block, indices in stretches:
            visit = (phase, visits.get(block, 0))
            visits[block] = visit[1] + 1
            keys = self.keys.setdefault((block, visit), [])
            for index in indices:
                event = self.stream.events[index]
                if event.kind == "allocate":
                    self.places[event.key] = _Place(block, visit, len(keys))
                    keys.append(event.key)

    def result(self) -> Stream:
        for (_, phase), stretches in zip(self.stream.phases, self.phases, strict=True):
            self.target.phases.append((len(self.target.events), phase))
            for inside, group in groupby(self._joined(stretches), key=lambda item: item[0] in self.window):
                if inside:
                    self._copy(list(group))
                else:
                    for block, indices in group:
                        self._emit(block, indices, self.copies if block >= self.window.end else 0, 0)
        return self.target

    def _joined(self, stretches: Stretches) -> Stretches:
        """Checks that the window is always passed as a whole, one way or the other."""
        owners = [block for block, _ in stretches]
        window = list(range(self.window.start, self.window.end))
        for inside, group in groupby(owners, key=lambda owner: owner in self.window):
            if inside and (passed := list(group)) not in (window, window[::-1]):
                raise NotLinearError(f"blocks {passed} follow each other")
        return stretches

    def _copy(self, stretches: Stretches) -> None:
        """All copies of one passage through the window, upwards or downwards."""
        order, pattern, near = range(self.copies + 1), None, self._is_near(stretches)
        for copy in order if self._ascending(stretches) else reversed(order):
            start = len(self.target.events)
            if pattern is not None and copy in order[1:-1]:
                self._again(pattern, copy)
                continue
            for block, indices in stretches:
                self._emit(block, indices, copy, copy)
            if near and copy in order[1:-1]:
                pattern = self._pattern(start, copy)

    def _is_near(self, stretches: Stretches) -> bool:
        """Whether a passage frees nothing beyond the neighbouring windows: then all but the outermost copies of it do
        the same, each to its own neighbours."""
        events, window = self.stream.events, self.window
        reach = range(window.start - window.period, window.end + window.period)
        freed = (events[index].key for _, indices in stretches for index in indices if events[index].kind == "free")
        return all(self.places[key].block in reach for key in freed)

    def _pattern(self, start: int, copy: int) -> "_Pattern":
        """The events from `start` on, which one copy has just been given."""
        target = self.target
        events = target.events[start:]
        born = {key for kind, key, _ in events if kind == "allocate"}
        within = born & {key for kind, key, _ in events if kind == "free"}
        return _Pattern(
            copy=copy,
            events=events,
            owners=target.owners[start:],
            passed_on=[place for place, (_, key, _) in enumerate(events) if key not in within],
            left=[(key, target.owner_of[key], target.terms[key], target.makers[key]) for key in sorted(born - within)],
        )

    def _again(self, pattern: "_Pattern", copy: int) -> None:
        """The events of one copy once more, which are those of another."""
        target, offset = self.target, (copy - pattern.copy) * self.stride
        more = (copy - pattern.copy) * self.window.period
        events = pattern.events.copy()
        for place in pattern.passed_on:
            kind, key, size_bytes = events[place]
            events[place] = Event(kind, key + offset, size_bytes)
        target.events += events
        target.owners += [owner + more for owner in pattern.owners]
        for key, owner, term, maker in pattern.left:
            target.owner_of[key + offset] = owner + more
            target.terms[key + offset], target.makers[key + offset] = term, maker

    def _ascending(self, stretches: Stretches) -> bool:
        """Whether higher blocks come later; for a window of one block its neighbours tell."""
        if len(stretches) > 1:
            return stretches[0][0] < stretches[-1][0]
        first, last = stretches[0][1][0], stretches[0][1][-1]
        owners = self.stream.owners
        before = next((owner for owner in reversed(owners[:first]) if owner != OUTSIDE), OUTSIDE)
        after = next((owner for owner in owners[last + 1 :] if owner != OUTSIDE), OUTSIDE)
        if OUTSIDE not in (before, after) and (before < self.window.start) != (after < self.window.start):
            return before < after
        raise NotLinearError(f"blocks {before}, {self.window.start}, {after} follow each other")

    def _emit(self, block: int, indices: list[int], shift: int, copy: int) -> None:
        """Events of one block, which in the deep model is `shift` windows further, in its `copy`."""
        target, offset, more = self.target, copy * self.stride, shift * self.window.period
        owner = block + more if block != OUTSIDE else OUTSIDE
        for index in indices:
            event = self.stream.events[index]
            if event.kind == "allocate":
                key, size = event.key + offset, event.size_bytes + self.copies * self.slopes.get(event.key, 0)
                event = Event("allocate", key, size)
                target.owner_of[key] = owner
                if copy:
                    target.terms[key] = self.stream.terms[key - offset]
                    target.makers[key] = self.stream.makers[key - offset]
            elif event.kind == "free":
                event = Event("free", self._resolve(event.key, block, more))
            target.events.append(event)
            target.owners.append(owner)

    def _resolve(self, key: int, block: int, more: int) -> int:
        """Which tensor of the deep model is freed where the shallow one frees `key` while `block` runs."""
        place = self.places[key]
        if place.block == OUTSIDE or block == OUTSIDE:
            if more and block in self.window:
                raise NotLinearError("something outside of the blocks is freed by one of them")
            return key
        window, wanted = self.window, place.block + more
        copy = 0
        if wanted < window.start:
            source = wanted
        elif wanted < window.end + window.period * self.copies:
            copy, rest = divmod(wanted - window.start, window.period)
            source = window.start + rest
        else:
            source = wanted - window.period * self.copies
        return self._twin(key, place, source) + copy * self.stride

    def _twin(self, key: int, place: _Place, block: int) -> int:
        """The key that plays the same part in `block` as `key` in its own."""
        if block == place.block:
            return key
        keys = self.keys.get((block, place.visit), [])
        if place.ordinal >= len(keys):
            raise NotLinearError(f"block {block} has nothing like what block {place.block} frees")
        return keys[place.ordinal]


def _stretches(stream: Stream, start: int, end: int) -> Stretches:
    return [
        (owner, list(indices)) for owner, indices in groupby(range(start, end), key=lambda index: stream.owners[index])
    ]


def slopes_between(deeper: Stream, shallower: Stream, window: Window) -> dict[int, int]:
    """By how many bytes each of the deeper stream's keys grows with a window more; checks all else to be the same.

    Raises:
        NotLinearError: the streams differ by more than one window of blocks and sizes outside of it.
    """
    shrunk = repeated(deeper, window, -1)
    if [phase for _, phase in shrunk.phases] != [phase for _, phase in shallower.phases]:
        raise NotLinearError("the phases differ")
    if [start for start, _ in shrunk.phases] != [start for start, _ in shallower.phases]:
        raise NotLinearError("the phases are of other lengths")
    names: dict[int, int] = {}
    slopes: dict[int, int] = {}
    for ours, theirs in zip(shrunk.events, shallower.events, strict=True):
        if ours.kind != theirs.kind or (ours.kind == "free" and names.get(ours.key) != theirs.key):
            raise NotLinearError(f"{ours.kind} where the shallower model does {theirs.kind}")
        if ours.kind == "allocate":
            names[ours.key] = theirs.key
            if ours.size_bytes != theirs.size_bytes:
                slopes[ours.key] = ours.size_bytes - theirs.size_bytes
    return slopes


def same(one: Stream, other: Stream) -> bool:
    """Whether two streams do the same, whatever they call it."""
    names: dict[int, int] = {}
    for ours, theirs in _pairs(one, other):
        if ours.kind != theirs.kind or ours.size_bytes != theirs.size_bytes:
            return False
        if ours.kind == "allocate":
            names[ours.key] = theirs.key
        elif ours.kind == "free" and names.get(ours.key) != theirs.key:
            return False
    return len(one.events) == len(other.events)


def _pairs(one: Stream, other: Stream) -> Iterator[tuple[Event, Event]]:
    return zip(one.events, other.events, strict=False)
