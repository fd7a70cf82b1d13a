"""Later steps: the last one repeated, with tensors of its own, until the allocator reserves no more."""

from estimators.allocator import begin, replay
from estimators.units import MIB
from runners.dry.steady import CALM_STEPS, with_later_steps
from runners.dry.stream import OUTSIDE, Stream


def job(batches: list[int]) -> Stream:
    """Each step takes a batch, gives back the one before, and works with a tensor that dies in it."""
    stream = Stream(phases=[(0, "load")])
    stream.allocate(1, 40 * MIB, OUTSIDE, "weights")
    held = 0
    for step, size in enumerate(batches):
        stream.phases.append((len(stream.events), "forward"))
        batch, work = 2 + 2 * step, 3 + 2 * step
        stream.allocate(batch, size, OUTSIDE, "batch")
        if held:
            stream.free(held, OUTSIDE)
        held = batch
        stream.phases.append((len(stream.events), "optimizer"))
        stream.allocate(work, 30 * MIB, OUTSIDE, "work")
        stream.free(work, OUTSIDE)
    stream.label()
    return stream


def longer(stream: Stream, end: int | None = None) -> Stream:
    events = stream.events
    return with_later_steps(stream, begin(events, expandable=False, stop=len(events) if end is None else end))


def test_a_calm_job_gets_a_few_more_steps_and_takes_no_more() -> None:
    stream = job([12 * MIB, 12 * MIB])
    more = longer(stream)
    assert len(more.events) == len(stream.events) + CALM_STEPS * 4
    assert replay(more.events).peak_reserved_bytes == replay(stream.events).peak_reserved_bytes
    assert [phase for _, phase in more.phases] == ["load", *("forward", "optimizer") * (2 + CALM_STEPS)]


def test_every_tensor_is_freed_once_and_while_it_lives() -> None:
    more = longer(job([12 * MIB, 12 * MIB]))
    alive: set[int] = set()
    for event in more.events:
        if event.kind == "allocate":
            assert event.key not in alive
            alive.add(event.key)
        else:
            alive.remove(event.key)
    assert len(alive) == 2  # the weights and the last batch
    assert set(more.terms) >= alive


def test_a_step_that_leaves_something_else_than_it_found_is_not_repeated() -> None:
    stream = job([12 * MIB, 14 * MIB])
    assert longer(stream) is stream


def test_what_follows_the_steps_frees_what_the_last_of_them_left() -> None:
    stream = job([12 * MIB, 12 * MIB])
    stream.phases.append((len(stream.events), "evaluation"))
    stream.free(4, OUTSIDE)
    more = longer(stream, len(stream.events) - 1)
    freed = more.events[-1].key
    assert freed not in {event.key for event in stream.events}
    assert [event.key for event in more.events if event.kind == "free"].count(freed) == 1
