"""The cheapest change that would let a better method fit: first what changes nothing that is learned, then what
does."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What would let a better method fit, and what to ask to have it planned."""

    words: str
    goal: Goal | None = None
    """The goal that it makes of the one that was given."""
    card: str | None = None
    """Or the kind of card that it takes."""


SHORTER = (0.75, 0.5, 0.25, 0.125)
"""Shares of the sequence length to try."""
SHORTEST = 64
"""Tokens: nobody trains on less."""


def cheapest_change(
    goal: Goal,
    model: ModelSpec,
    cluster: Cluster,
    rules: Rules,
    chosen: Candidate | None,
    best: Sequence[Candidate],
) -> Change | None:
    """What would make the next better method fit; None where the best one already does, or nothing helps."""
    missed = _next_better(chosen, best)
    if missed is None:
        return None
    rung = rules.rungs(goal.methods)[missed.rung].method
    for option, fields in _changes(missed.recipe):
        recipe = replace(missed.recipe, **fields)
        if not objections(model, recipe, cluster) and quote(goal, model, recipe, cluster).fits:
            return Change(words=f"{rung} would fit with {option}", goal=replace(goal, **fields))
    freed = _freed(goal, cluster, missed)
    if freed:
        return Change(words=f"{rung} would fit once {freed} held by other processes are free")
    if host := _host_that_holds(missed, best):
        return Change(words=f"{rung} would fit with offload, on a host with {format_bytes(host)} of free memory")
    short = -missed.price.tightest.spare_bytes
    if goal.vram_budget_bytes is not None:
        return Change(words=f"{rung} needs {format_bytes(short)} more a GPU than --vram-budget allows")
    card = _card_that_holds(goal, missed) if len(cluster.gpus) == 1 else None
    where = f"; the smallest card that holds it is {card.name}" if card else ""
    return Change(words=f"{rung} needs {format_bytes(short)} more a GPU{where}", card=card.name if card else None)


def _next_better(chosen: Candidate | None, best: Sequence[Candidate]) -> Candidate | None:
    """The nearest miss of the rung just above the chosen one; where nothing fits, the nearest of all."""
    missed = [one for one in best if not one.price.fits and not one.recipe.parallelism.offload]
    if chosen is None:
        return max(missed, key=lambda one: one.price.tightest.spare_bytes, default=None)
    if not chosen.recipe.parallelism.offload:
        missed = [one for one in missed if one.rung < chosen.rung]
    if not missed:
        return None
    nearest_rung = max(one.rung for one in missed)
    return max((one for one in missed if one.rung == nearest_rung), key=lambda one: one.price.tightest.spare_bytes)


def _changes(recipe: Recipe) -> list[tuple[str, dict[str, Any]]]:
    """In words, and as fields, which a recipe and a goal call the same."""
    changes: list[tuple[str, dict[str, Any]]] = []
    if recipe.loss == "plain" and recipe.trainer == "transformers":
        changes.append(("--trainer trl, whose loss never holds all logits", {"trainer": "trl"}))
        changes.append(("--loss liger", {"loss": "liger"}))
    for share in SHORTER:
        length = int(recipe.sequence_length * share)
        if length >= SHORTEST:
            changes.append((f"--seq-len {length}", {"sequence_length": length}))
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
