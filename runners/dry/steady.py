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
    own = {event.key: event.size_bytes for event in stream.events[start:end] if event.kind == "allocate"}
    freed = {event.key for event in stream.events[start:end] if event.kind == "free"}
    inherited, left = sorted(freed - own.keys()), sorted(own.keys() - freed)
    sizes = {event.key: event.size_bytes for event in stream.events[:start] if event.kind == "allocate"}
    if [sizes[key] for key in inherited] != [own[key] for key in left]:
        return None
    return dict(zip(inherited, left, strict=True))


def _again(stream: Stream, bounds: tuple[int, int], heirs: dict[int, int], shift: int, stride: int) -> Stream:
    """The step once more: its own keys shifted, and what it inherits are the heirs of the step before."""
    step = _part(stream, *bounds)
    names = {old: new + shift - stride for old, new in heirs.items()}
    make = Event._make  # half the time of a call by fields
    step.events = [make((kind, names.get(key, key + shift), size_bytes)) for kind, key, size_bytes in step.events]
    for event, (kind, key, _) in zip(step.events, stream.events[bounds[0] : bounds[1]], strict=True):
        if kind == "allocate":
            step.owner_of[event.key] = stream.owner_of[key]
            step.terms[event.key] = stream.terms[key]
            step.makers[event.key] = stream.makers[key]
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
