"""The cheapest change that would let a better method fit: first what changes nothing that is learned, then what
does."""

from collections.abc import Sequence
from dataclasses import replace

from estimators.catalogue import smallest_device
from estimators.hardware import Cluster, Device
from estimators.legality import objections
from estimators.model import ModelSpec
from estimators.pricing import budget_bytes, headroom_of
from estimators.recipe import Recipe
from estimators.units import format_bytes
from planner.goal import Goal
from planner.plan import Candidate
from planner.quote import quote
from planner.rules import Rules

SHORTER = (0.75, 0.5, 0.25, 0.125)
"""Shares of the sequence length to try."""


def cheapest_change(
    goal: Goal,
    model: ModelSpec,
    cluster: Cluster,
    rules: Rules,
    chosen: Candidate | None,
    best: Sequence[Candidate],
) -> str | None:
    """What would make the next better method fit; None where the best one already does, or nothing helps."""
    missed = _next_better(chosen, best)
    if missed is None:
        return None
    rung = rules.rungs(goal.methods)[missed.rung].method
    for option, recipe in _changes(missed.recipe):
        if not objections(model, recipe, cluster) and quote(goal, model, recipe, cluster).fits:
            return f"{rung} would fit with {option}"
    freed = _freed(goal, cluster, missed)
    if freed:
        return f"{rung} would fit once {freed} held by other processes are free"
    if host := _host_that_holds(missed, best):
        return f"{rung} would fit with offload, on a host with {format_bytes(host)} of free memory"
    short = -missed.price.tightest.spare_bytes
    if goal.vram_budget_bytes is not None:
        return f"{rung} needs {format_bytes(short)} more a GPU than --vram-budget allows"
    card = _card_that_holds(goal, missed)
    where = f"; the smallest card that holds it is {card.name}" if card and len(cluster.gpus) == 1 else ""
    return f"{rung} needs {format_bytes(short)} more a GPU{where}"


def _next_better(chosen: Candidate | None, best: Sequence[Candidate]) -> Candidate | None:
    """The nearest miss of the rung just above the chosen one (of any rung, where nothing fits)."""
    missed = [one for one in best if not one.price.fits and not one.recipe.parallelism.offload]
    if chosen is not None and not chosen.recipe.parallelism.offload:
        missed = [one for one in missed if one.rung < chosen.rung]
    if not missed:
        return None
    nearest_rung = max(one.rung for one in missed)
    return max((one for one in missed if one.rung == nearest_rung), key=lambda one: one.price.tightest.spare_bytes)


def _changes(recipe: Recipe) -> list[tuple[str, Recipe]]:
    changes = []
    if recipe.loss == "plain" and recipe.trainer == "transformers":
        changes.append(("--trainer trl, whose loss never holds all logits", replace(recipe, trainer="trl")))
        changes.append(("--loss liger", replace(recipe, loss="liger")))
    for share in SHORTER:
        length = int(recipe.sequence_length * share)
        if length >= 64:
            changes.append((f"--seq-len {length}", replace(recipe, sequence_length=length)))
    return changes


def _freed(goal: Goal, cluster: Cluster, missed: Candidate) -> str | None:
    """How much other processes hold, if their leaving would be enough on every GPU."""
    if goal.assume_idle or goal.vram_budget_bytes is not None:
        return None
    held = 0
    for gpu in cluster.gpus:
        idle = budget_bytes(gpu, None, True)
        held = max(held, idle - budget_bytes(gpu, None, False))
        if idle - headroom_of(idle, goal.headroom_bytes) < missed.price.process.high:
            return None
    return format_bytes(held) if held > 0 else None


def _host_that_holds(missed: Candidate, best: Sequence[Candidate]) -> float | None:
    """Host memory with which the same rung would run offloaded, where that is all it lacks."""
    lacking = [
        one.price.host.high
        for one in best
        if one.rung == missed.rung
        and one.price.host_verdict != "fits"
        and all(share.verdict == "fits" for share in one.price.gpus)
    ]
    return min(lacking, default=None)


def _card_that_holds(goal: Goal, missed: Candidate) -> Device | None:
    """The smallest card of the catalogue with room for a candidate."""

    def holds(device: Device) -> bool:
        room = device.usable_bytes - headroom_of(device.usable_bytes, goal.headroom_bytes)
        return room >= missed.price.process.high and device.supports_bfloat16 and not device.unified_memory

    return smallest_device(missed.price.process.high, holds)
