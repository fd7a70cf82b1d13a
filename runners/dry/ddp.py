"""DistributedDataParallel's gradient buckets, put into the stream of one rank.

Source: torch 2.11 torch/nn/parallel/distributed.py (bucket sizes, _rebuild_buckets in the second forward pass) and
torch/csrc/distributed/c10d/reducer.cpp (initialize_buckets, compute_bucket_assignment_by_size; from memory): flat
copies beside the gradients, in the order in which gradients become ready; a first, small bucket so that communication
starts early; new ones are made before the second step, once that order is known, and the old ones given back.
The flat copies in which weights are broadcast before all that are left out: they die before the first step.
"""

from collections.abc import Iterable, Iterator

from estimators.allocator import Event
from estimators.recipe import Buckets
from estimators.units import MIB
from runners.dry.stream import OUTSIDE, Stream

FIRST_BUCKET_BYTES = MIB
STEPS_BEFORE_REBUILD = 1


def with_buckets(stream: Stream, buckets: Buckets) -> Stream:
    """The stream of a rank whose gradients are reduced in buckets."""
    sizes = list(bucket_sizes(_gradient_sizes(stream), buckets.ddp_mib * MIB))
    key = max(stream.owner_of, default=0) + 1
    first = range(key, key + len(sizes))
    second = range(first.stop, first.stop + len(sizes))
    made = [Event("allocate", key, size) for key, size in zip(first, sizes, strict=True)]
    remade = [Event("allocate", key, size) for key, size in zip(second, sizes, strict=True)]
    dropped = [Event("free", key) for key in first]
    starts = _step_starts(stream)
    inserted = {starts[0]: made, starts[STEPS_BEFORE_REBUILD]: [*remade, *dropped]}
    result = Stream(
        terms=dict(stream.terms), makers=dict(stream.makers), owner_of=dict(stream.owner_of), work=stream.work
    )
    for keys in (first, second):
        result.terms |= dict.fromkeys(keys, "communication")
        result.makers |= dict.fromkeys(keys, "DistributedDataParallel's buckets")
        result.owner_of |= dict.fromkeys(keys, OUTSIDE)
    for start, end, phase in stream.bounds():
        result.phases.append((len(result.events), phase))
        more = inserted.get(start, []) if phase == "forward" else []
        result.events += [*more, *stream.events[start:end]]
        result.owners += [*[OUTSIDE] * len(more), *stream.owners[start:end]]
    return result


def bucket_sizes(gradients: Iterable[int], cap_bytes: int) -> Iterator[int]:
    """Bytes of each bucket, for gradients in the order in which they become ready: a full bucket is closed."""
    size, limit = 0, FIRST_BUCKET_BYTES
    for gradient in gradients:
        size += gradient
        if size >= limit:
            yield size
            size, limit = 0, cap_bytes
    if size:
        yield size


def _gradient_sizes(stream: Stream) -> list[int]:
    start, end = next((start, end) for start, end, phase in stream.bounds() if phase == "backward")
    events = (event for event in stream.events[start:end] if event.kind == "allocate")
    return [event.size_bytes for event in events if stream.terms[event.key] == "gradients"]


def _step_starts(stream: Stream) -> list[int]:
    """Where each optimizer step's first forward pass begins."""
    phases = [phase for _, _, phase in stream.bounds()]
    return [
        start
        for (start, _, phase), before in zip(stream.bounds()[1:], phases, strict=False)
        if phase == "forward" and before in ("load", "optimizer")
    ]
