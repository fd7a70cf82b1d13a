"""The replay against what a real H200 did: histories that torch.cuda.memory._record_memory_history recorded.

benchmarks/measure_extras.py made the fixtures (torch 2.11, three optimizer steps of small recipes, loading included):
["a", id, bytes] and ["f", id] are tensors, ["s", bytes] and ["u", bytes] the segments that the real allocator made and
gave back, ["m", bytes] and ["n", bytes] the pages that it mapped and unmapped where segments expand.
"""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from estimators.addresses import AddressSpace
from estimators.allocation import ROUND
from estimators.allocator import CachingAllocator
from estimators.expandable import ExpandableAllocator

HISTORIES = sorted((Path(__file__).parent.parent / "fixtures" / "allocator").glob("*.json.gz"))
MOVED = "hist-llama1b-liger-lora-ck"
"""Where the driver takes memory in the backward pass, so that small segments lie, and are filled, in another order."""

Changes = list[tuple[int, int]]
"""How many tensors had come or gone, and the bytes by which the reserved memory changed then."""


class Logged(CachingAllocator):
    """The allocator, and what it makes and gives back."""

    def __init__(self) -> None:
        self.seen = 0
        self.changes: Changes = []
        super().__init__()

    def _reserve(self, size: int) -> None:
        self.changes.append((self.seen, size))
        super()._reserve(size)

    def _give_back(self, size: int) -> None:
        self.changes.append((self.seen, -size))
        super()._give_back(size)


class LoggedExpandable(Logged, ExpandableAllocator):
    """The same with pages."""


class Recorded(AddressSpace):
    """The addresses that the driver gave out."""

    def __init__(self, places: list[int]) -> None:
        super().__init__()
        self.places = iter(places)

    def take(self, size: int) -> int:
        return next(self.places) * ROUND

    def give_back(self, start: int, size: int) -> None:
        pass


def segment_places(document: dict[str, Any]) -> list[int]:
    written = [event for event in document["events"] if event[0] != "f"]
    return [place for event, place in zip(written, document["addresses"], strict=True) if event[0] == "s"]


def read(path: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(gzip.decompress(path.read_bytes()))
    return document


def replayed(document: dict[str, Any], recorded: bool) -> tuple[Logged, Changes]:
    """Our allocator at the end of a history, with the recorded addresses or with ours, and what the real one did."""
    allocator = LoggedExpandable() if document["recipe"]["expandable_segments"] else Logged()
    # The recording starts after the first tensor of the process came and went, whose segment is there already.
    allocator.allocate(-1, 1)
    allocator.free(-1)
    allocator.changes.clear()
    if recorded:
        allocator.addresses = Recorded(segment_places(document))
    real: Changes = []
    last = ""
    for index, (kind, number, *sizes) in enumerate(document["events"]):
        if index == document["loaded_at"]:
            allocator.reset_peak()
        if kind in "smun":
            real.append((allocator.seen, number if kind in "sm" else -number))
        if kind in "un" and last not in "un":
            allocator.empty_cache()
        elif kind == "a":
            allocator.allocate(number, sizes[0])
        elif kind == "f":
            allocator.free(number)
        allocator.seen += kind in "af"
        last = kind
    return allocator, real


def highest(changes: Changes) -> int:
    now = peak = 0
    for _, size in changes:
        now += size
        peak = max(peak, now)
    return peak


each_history = pytest.mark.parametrize("path", HISTORIES, ids=lambda path: path.name.removesuffix(".json.gz"))


@each_history
def test_segments_come_and_go_as_the_real_ones(path: Path) -> None:
    ours, real = replayed(read(path), recorded=True)
    assert highest(real) > 1 << 30
    assert ours.changes == real


@each_history
def test_they_do_so_with_addresses_that_are_guessed(path: Path) -> None:
    document = read(path)
    ours, real = replayed(document, recorded=False)
    assert highest(ours.changes) == highest(real)
    assert ours.changes == real or document["name"] == MOVED


def test_the_histories_are_there() -> None:
    assert len(HISTORIES) >= 6
