"""The dry run: two optimizer steps of a recipe on the meta device, every allocation and free in order, replayed.

A shallow model is traced, and its middle repeated to the model's depth; where that cannot be shown to be right, the
model is traced whole.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

from estimators.allocator import CachingAllocator, Event, begin, rounded
from estimators.errors import BadInput
from estimators.hardware import Device
from estimators.model import ModelSpec
from estimators.models import Config, build
from estimators.recipe import Recipe
from estimators.traced import EVALUATION, SAVE, Traced
from runners.dry.ddp import with_buckets
from runners.dry.depth import NotLinearError, repeated, slopes_between
from runners.dry.shallow import Depths, depths_of, shallow
from runners.dry.steady import with_later_steps
from runners.dry.steps import CannotTrace, quiet, record, record_load
from runners.dry.stream import OUTSIDE, Phase, Stream

__all__ = ["CannotTrace", "Trace", "dry_run"]

PHASE_WORDS: dict[Phase, str] = {
    "load": "load",
    "forward": "forward pass",
    "backward": "backward pass",
    "optimizer": "optimizer step",
    "evaluation": EVALUATION,
    "save": SAVE,
}
AFTERWARDS: tuple[Phase, ...] = ("evaluation", "save")
"""What follows the last step, and is no part of training's peaks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace(Traced):
    """What was found out about a job, and the events behind it: what it asks of the allocator, from an empty GPU on."""

    events: tuple[Event, ...]
    starts: tuple[tuple[int, Phase], ...]
    """The index of the event at which each phase begins."""

    @property
    def first_step(self) -> int:
        """The index of the first event after loading."""
        return next(start for start, phase in self.starts if phase != "load")


def dry_run(recipe: Recipe, config: Config, device: Device) -> Trace:
    """Trace `recipe` as it would run on one GPU of kind `device`.

    Raises:
        BadInput: the recipe shards a model, or names what its tools do not have.
        CannotTrace: an operation cannot run on the meta device.
    """
    if recipe.parallelism.kind not in ("none", "ddp"):
        raise BadInput(f"the dry run traces one GPU, and {recipe.parallelism.kind} shards the job over several")
    started = time.perf_counter()
    model = build(config)
    with quiet():  # the collector would look through torch's modules again and again for a deep model's events
        stream, layers = stream_of(recipe, model, config, device)
        loading, _ = stream_of(recipe, model, config, device, record_load)
        if recipe.parallelism.kind == "ddp":
            stream = with_buckets(stream, recipe.buckets)
        return _summary(stream, loading, layers, recipe.expandable_segments, started)


Record = Callable[[Recipe, Config, Device, int], Stream]
"""Runs a model of so many blocks."""


def stream_of(
    recipe: Recipe, model: ModelSpec, config: Config, device: Device, run: Record = record
) -> tuple[Stream, int]:
    """Everything the job asks of the allocator, and how many blocks were run to find out."""
    depths = depths_of(model, config)
    if depths is not None:
        try:
            return _extended(recipe, config, device, depths, run), depths.depth
        except NotLinearError:
            pass
    return run(recipe, config, device, len(model.layers)), len(model.layers)


def _extended(recipe: Recipe, config: Config, device: Device, depths: Depths, run: Record) -> Stream:
    """The stream of a deep model, from two shallow ones.

    Raises:
        NotLinearError: they do not differ by one window of blocks.
    """
    deeper = run(recipe, shallow(config, depths.depth), device, depths.depth)
    shallower = run(recipe, shallow(config, depths.check), device, depths.check)
    slopes = slopes_between(deeper, shallower, depths.window)
    extended = repeated(deeper, depths.window, depths.copies, slopes)
    extended.work = deeper.work.plus(deeper.work.plus(shallower.work, -1), depths.copies)
    return extended


class _Peaks:
    """What a replay has come to, phase by phase."""

    def __init__(self) -> None:
        self.phases: dict[str, int] = {}
        self.allocated = self.at = self.reserved = self.loaded = self.worst = 0

    def follow(self, allocator: CachingAllocator, stream: Stream, start: int, end: int, phase: Phase) -> None:
        _run(allocator, stream.events, start, end)
        highest = allocator.peak_allocated
        words = PHASE_WORDS[phase]
        self.phases[words] = max(self.phases.get(words, 0), allocator.peak_reserved)
        self.worst = max(self.worst, highest)
        if phase == "load":
            self.loaded = allocator.allocated
        elif phase not in AFTERWARDS:
            self.reserved = max(self.reserved, allocator.peak_reserved)
            if highest > self.allocated:
                self.allocated, self.at = highest, allocator.peak_at


def _summary(stream: Stream, loading: Stream, layers: int, expandable: bool, started: float) -> Trace:
    """Replay a stream and its later steps: the peaks, what was alive at the highest, and the peak of each phase."""
    allocator, peaks = begin((), expandable, 0), _Peaks()
    for start, end, phase in stream.bounds():
        if phase not in AFTERWARDS:
            peaks.follow(allocator, stream, start, end, phase)
    terms = _terms(stream, peaks.at, allocator.larger)
    whole = with_later_steps(stream, allocator)
    peaks.reserved = max(peaks.reserved, allocator.peak_reserved)
    for start, end, phase in whole.bounds():
        if phase in AFTERWARDS:
            peaks.follow(allocator, whole, start, end, phase)
    checkpoint = _Peaks()
    checkpoint.follow(begin((), expandable, 0), loading, 0, len(loading.events), "load")
    either = max(peaks.reserved, *peaks.phases.values(), *checkpoint.phases.values())
    return Trace(
        events=tuple(whole.events),
        starts=tuple(whole.phases),
        loaded_bytes=peaks.loaded,
        peak_allocated_bytes=peaks.allocated,
        peak_reserved_bytes=peaks.reserved,
        peak_moment=_moment(stream, peaks.at),
        terms=terms,
        worst_allocated_bytes=max(peaks.worst, checkpoint.worst),
        worst_reserved_bytes=either,
        phases=peaks.phases | checkpoint.phases,
        work=stream.work,
        layers_traced=layers,
        seconds=time.perf_counter() - started,
    )


def _run(allocator: CachingAllocator, events: Sequence[Event], start: int, end: int) -> None:
    """Go through a phase, whose peaks are to be found alone."""
    allocator.peak_allocated, allocator.peak_at, allocator.peak_reserved = 0, start, allocator.reserved
    while (start := allocator.follow(events, start, end)) < end:
        if events[start].kind == "empty_cache":
            allocator.empty_cache()
        else:
            allocator.addresses.begin_steps()
        start += 1


def _moment(stream: Stream, index: int) -> str:
    """What was going on at an event: "backward pass, block 3, aten.mm.default"."""
    phase = next(phase for start, end, phase in stream.bounds() if start <= index < end)
    owner = stream.owners[index]
    place = f", block {owner}" if owner != OUTSIDE else ""
    return f"{PHASE_WORDS[phase]}{place}, {stream.makers[stream.events[index].key]}"


def _terms(stream: Stream, index: int, larger: Mapping[int, int]) -> dict[str, int]:
    """Bytes of every block in use after an event, by what its tensor is for."""
    alive: dict[int, int] = {}
    for place, (kind, key, _) in enumerate(islice(stream.events, index + 1)):
        if kind == "allocate":
            alive[key] = place
        elif kind == "free":
            del alive[key]
    terms: dict[str, int] = {}
    for key, place in alive.items():
        term, size_bytes = stream.terms[key], stream.events[place].size_bytes
        terms[term] = terms.get(term, 0) + (larger.get(place) or rounded(size_bytes))
    return terms
