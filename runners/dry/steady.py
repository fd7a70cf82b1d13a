"""Later steps: what the second one did, again and again, until the allocator reserves no more for it.

Each step finds the cache as the one before left it, so that a few of them can fragment it further than two do.
"""

from estimators.allocator import CachingAllocator, Event, advance
from runners.dry.stream import Stream

MOST_STEPS = 6
CALM_STEPS = 1
"""A step that reserves nothing new is taken for the end of it."""


def with_later_steps(stream: Stream, allocator: CachingAllocator) -> Stream:
    """The stream with its last step repeated; as it is where that step leaves others than it inherits.

    The allocator has gone through the stream up to the end of that step, and goes on through the later ones.
    """
    start, end = _last_step(stream)
    heirs = _heirs(stream, start, end)
    if heirs is None:
        return stream
    result = _part(stream, 0, end)
    stride, calm, times = max(stream.owner_of) + 1, 0, 0
    while calm < CALM_STEPS and times < MOST_STEPS:
        times += 1
        step, reserved = _again(stream, (start, end), heirs, times * stride, stride), allocator.reserved
        advance(allocator, step.events, 0)
        _append(result, step)
        calm = calm + 1 if allocator.reserved == reserved else 0
    rest = _part(stream, end, len(stream.events))
    rest.phases = [(begun - end, phase) for begun, phase in stream.phases if begun >= end]  # the last may be empty
    rest.events = [
        Event(event.kind, event.key + times * stride if event.key in heirs.values() else event.key, event.size_bytes)
        for event in rest.events
    ]
    _append(result, rest)
    return result


def _last_step(stream: Stream) -> tuple[int, int]:
    """Where the last optimizer step begins and ends."""
    bounds = stream.bounds()
    before, last = [index for index, (_, _, phase) in enumerate(bounds) if phase == "optimizer"][-2:]
    return bounds[before + 1][0], bounds[last][1]


def _heirs(stream: Stream, start: int, end: int) -> dict[int, int] | None:
    """For each tensor that the step inherits and frees, the one of its own that it leaves for the next step."""
    step = stream.events[start:end]
    born = {key for kind, key, _ in step if kind == "allocate"}
    freed = {key for kind, key, _ in step if kind == "free"}
    inherited, left = sorted(freed - born), sorted(born - freed)
    asked = {*inherited, *left}
    sizes = {key: size for kind, key, size in stream.events[:end] if key in asked and kind == "allocate"}
    if [sizes[key] for key in inherited] != [sizes[key] for key in left]:
        return None
    return dict(zip(inherited, left, strict=True))


def _again(stream: Stream, bounds: tuple[int, int], heirs: dict[int, int], shift: int, stride: int) -> Stream:
    """The step once more: what it inherits are the heirs of the step before, and its own heirs are new. All else that
    it makes is dead by its end, and has the same keys every time."""
    step = _part(stream, *bounds)
    names = {old: new + shift - stride for old, new in heirs.items()} | {new: new + shift for new in heirs.values()}
    step.terms = {new + shift: stream.terms[new] for new in heirs.values()}
    for place, (kind, key, size_bytes) in enumerate(step.events) if names else ():
        if key in names:
            step.events[place] = Event(kind, names[key], size_bytes)
    return step


def _part(stream: Stream, start: int, end: int) -> Stream:
    """Some of a stream's events; the tables are those of all of them where it starts at the beginning."""
    part = Stream(
        events=stream.events[start:end],
        owners=stream.owners[start:end],
        phases=[(begun - start, phase) for begun, phase in stream.phases if start <= begun < end],
        work=stream.work,
    )
    if start == 0:
        part.owner_of, part.terms, part.makers = dict(stream.owner_of), dict(stream.terms), dict(stream.makers)
    return part


def _append(stream: Stream, more: Stream) -> None:
    stream.phases += [(start + len(stream.events), phase) for start, phase in more.phases]
    stream.events += more.events
    stream.owners += more.owners
    stream.owner_of |= more.owner_of
    stream.terms |= more.terms
    stream.makers |= more.makers
