"""Whether a job survives a cap on what torch's allocator may reserve, set after loading."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from estimators.hardware import Device
from estimators.price import Price
from estimators.recipe import Recipe

if TYPE_CHECKING:
    from runners.dry.tracer import DryRuns


@dataclass(frozen=True, slots=True, kw_only=True)
class UnderCap:
    """What becomes of a job under torch.cuda.set_per_process_memory_fraction, which does not count the context."""

    cap_bytes: int
    survives: bool
    retries: int = 0
    """How often the allocator empties its cache to survive: above 0 it is tight."""


def under_cap(price: Price, recipe: Recipe, device: Device, cap_bytes: int, runs: "DryRuns | None") -> UnderCap:
    """Replayed where `price` comes from a dry run of the whole job, at the cap and down through the error bar; else
    whether the upper end of what is reserved is within the cap."""
    reserved = price.peak_reserved
    if runs is None or price.evidence != "dry run" or recipe.parallelism.kind != "none":
        return UnderCap(cap_bytes=cap_bytes, survives=reserved.high <= cap_bytes)
    from estimators.survival import survives

    events, loaded = runs.events(recipe, device)
    # What the job may need more than was traced is as much less of a cap.
    low = int(cap_bytes * reserved.value / reserved.high)
    found = survives(events, cap_bytes, low, recipe.expandable_segments, loaded)
    return UnderCap(cap_bytes=cap_bytes, survives=found.survives, retries=found.retries)
