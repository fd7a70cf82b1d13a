"""DistributedDataParallel's buckets in the stream of one rank."""

from estimators.allocator import replay
from estimators.recipe import Buckets
from estimators.units import MIB
from runners.dry.ddp import bucket_sizes, with_buckets
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


def test_buckets_are_a_copy_of_the_gradients_and_are_made_anew_before_the_second_step() -> None:
    stream = two_steps([8 * MIB, 24 * MIB, 24 * MIB])
    reduced = with_buckets(stream, Buckets())
    assert [phase for _, phase in reduced.phases] == [phase for _, phase in stream.phases]
    more = replay(reduced.events).peak_allocated_bytes - replay(stream.events).peak_allocated_bytes
    assert more == 56 * MIB
    first, second = (start for start, _, phase in reduced.bounds() if phase == "forward")
    assert [event.kind for event in reduced.events[first : first + 3]] == ["allocate", "allocate", "allocate"]
    assert [event.kind for event in reduced.events[second : second + 4]] == ["allocate", "allocate", "free", "free"]
    assert set(reduced.terms) >= {event.key for event in reduced.events if event.kind == "allocate"}
