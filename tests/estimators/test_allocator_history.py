"""The replay against what a real H200 did: histories that torch.cuda.memory._record_memory_history recorded.

benchmarks/measure_extras.py made the fixtures (torch 2.11, three optimizer steps of small recipes, loading included):
["a", id, bytes] and ["f", id] are tensors, ["s", bytes] and ["u", bytes] the segments that the real allocator made and
gave back.
"""

import gzip
import json
from pathlib import Path

import pytest

from estimators.allocator import CachingAllocator

HISTORIES = sorted((Path(__file__).parent.parent / "fixtures" / "allocator").glob("*.json.gz"))


def replayed(events: list[list[int]]) -> tuple[int, int]:
    """Peak bytes of segments, ours and the real ones."""
    allocator = CachingAllocator()
    # The recording starts after the first tensor of the process, whose small segment is there already.
    allocator.allocate(-1, 512)
    first, real, peak, last = allocator.reserved, 0, 0, ""
    for event in events:
        kind = str(event[0])
        if kind == "a":
            allocator.allocate(event[1], event[2])
        elif kind == "f":
            allocator.free(event[1])
        elif kind == "s":
            real += event[1]
            peak = max(peak, real)
        else:
            real -= event[1]
            if last != "u":
                allocator.empty_cache()
        last = kind
    return allocator.peak_reserved - first, peak


@pytest.mark.parametrize("path", HISTORIES, ids=lambda path: path.name.removesuffix(".json.gz"))
def test_reserved_memory_is_the_real_allocators(path: Path) -> None:
    ours, real = replayed(json.loads(gzip.decompress(path.read_bytes()))["events"])
    assert real > 8 << 30
    assert ours == pytest.approx(real, rel=0.004)


def test_the_histories_are_there() -> None:
    assert len(HISTORIES) >= 6
