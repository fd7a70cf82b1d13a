"""DistributedDataParallel's buckets in the stream of one rank."""

from estimators.allocator import Event, replay
from estimators.recipe import Buckets
from estimators.units import MIB
from runners.dry.ddp import Weight, broadcasts, bucket_sizes, with_buckets
from runners.dry.stream import OUTSIDE, Stream


def two_steps(gradients: list[int]) -> Stream:
    stream, key = Stream(phases=[(0, "load")]), 0
    stream.allocate(1, 40 * MIB, OUTSIDE, "made")
    for _ in range(2):
        stream.phases.append((len(stream.events), "forward"))
        stream.phases.append((len(stream.events), "backward"))
        made = []
        for size in gradients:
            key = 2 + len(stream.owner_of)
            stream.allocate(key, size, OUTSIDE, "made")
            stream.terms[key] = "gradients"
            made.append(key)
        stream.phases.append((len(stream.events), "optimizer"))
        for key in made:
            stream.free(key, OUTSIDE)
    stream.label()
    return stream


def test_a_bucket_is_closed_once_it_is_full_and_the_first_one_is_small() -> None:
    assert list(bucket_sizes([MIB // 2, MIB, 20 * MIB, 4 * MIB, 5 * MIB, 3 * MIB], 25 * MIB)) == [
        3 * MIB // 2,
        29 * MIB,
        3 * MIB,
    ]


def test_gradients_have_one_copy_in_the_first_step_and_buckets_afterwards() -> None:
    stream = two_steps([8 * MIB, 24 * MIB, 24 * MIB])
    reduced = with_buckets(stream, Buckets())
    assert [phase for _, phase in reduced.phases] == [phase for _, phase in stream.phases]
    more = replay(reduced.events).peak_allocated_bytes - replay(stream.events).peak_allocated_bytes
    assert more == 56 * MIB
    first, second = (start for start, _, phase in reduced.bounds() if phase == "forward")
    assert [(event.kind, event.size_bytes) for event in reduced.events[first : first + 1]] == [("allocate", 56 * MIB)]
    assert [event.kind for event in reduced.events[second : second + 3]] == ["free", "allocate", "allocate"]
    assert [event.size_bytes for event in reduced.events[second + 1 : second + 3]] == [8 * MIB, 48 * MIB]
    assert set(reduced.terms) >= {event.key for event in reduced.events if event.kind == "allocate"}


def built(*sizes: int) -> list[Weight]:
    return [Weight(size, "built") for size in sizes]


def test_weights_are_broadcast_in_flat_copies_of_which_two_are_alive() -> None:
    events = list(broadcasts(built(*[100 * MIB] * 9), key=7))
    assert [(event.kind, event.key) for event in events] == [
        ("allocate", 7),
        ("allocate", 8),
        ("free", 7),
        ("allocate", 9),
        ("free", 8),
        ("free", 9),
    ]
    assert {event.size_bytes for event in events if event.kind == "allocate"} == {300 * MIB}


def test_a_weight_that_fills_a_bucket_is_not_copied_and_types_are_not_mixed() -> None:
    assert list(broadcasts(built(500 * MIB), key=1)) == []
    mixed = [Weight(8 * MIB, "built"), Weight(MIB, "copied"), Weight(8 * MIB, "built"), Weight(MIB, "copied")]
    assert [event.size_bytes for event in broadcasts(mixed, key=1) if event.kind == "allocate"] == [16 * MIB, 2 * MIB]


def test_all_weights_are_gone_again_before_the_first_step() -> None:
    stream = two_steps([MIB])
    for key in range(100, 110):
        stream.owners.insert(1, 0)
        stream.events.insert(1, Event("allocate", key, 100 * MIB))
        stream.owner_of[key], stream.terms[key], stream.makers[key] = 0, "weights", "aten.empty"
    stream.phases = [(start + 10 if start else 0, phase) for start, phase in stream.phases]
    reduced = with_buckets(stream, Buckets())
    assert replay(reduced.events).peak_allocated_bytes == (40 + 10 * 100 + 340 + 300) * MIB
    freed = {event.key for event in reduced.events if event.kind == "free"}
    kept = [event for event in reduced.events if event.kind == "allocate" and event.key not in freed]
    assert sum(event.size_bytes for event in kept) == (40 + 10 * 100 + 1) * MIB  # and the bucket
