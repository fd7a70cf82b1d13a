"""Which of several candidates is the best for a goal."""

from collections.abc import Sequence

from estimators.price import Price
from planner.goal import Goal
from planner.plan import Candidate

SAME_SPEED = 0.01
"""Recipes within 1 % of each other's speed count as equally fast: the smaller one is taken."""

WORTH_8_BIT = 0.10
"""Optimizer states in 8 bits must save at least so much time where full ones fit: they round what is learned."""

SAME_COST = 0.05
"""A GPU more must save at least so much of the cost of a token: far less is within any error bar."""


def choose(goal: Goal, candidates: Sequence[Candidate]) -> Candidate | None:
    """The best of those that fit at the upper end of their error bar; None where none does."""
    return best(goal, [one for one in candidates if one.price.fits])


def could_fit(price: Price) -> bool:
    """Whether a job fits at the lower end of its error bar: a better estimate may show that it does."""
    room = all(share.budget_bytes - share.headroom_bytes >= share.worst_phase.low for share in price.gpus)
    return room and price.host_verdict == price.disk_verdict == "fits"


def best(goal: Goal, candidates: Sequence[Candidate]) -> Candidate | None:
    """The best, whether it fits or not. Offload is taken only where nothing else is offered."""
    pool: Sequence[Candidate] = [one for one in candidates if not one.recipe.parallelism.offload] or candidates
    if not pool:
        return None
    if goal.objective == "memory":
        return min(pool, key=lambda one: (one.price.process.value * one.gpus, -one.price.tokens_per_second.value))
    if goal.objective == "cost":
        cheapest = min(one.gpus / one.price.tokens_per_second.value for one in pool)
        pool = [one for one in pool if one.gpus / one.price.tokens_per_second.value <= cheapest * (1 + SAME_COST)]
        return min(pool, key=lambda one: (one.gpus, one.gpus / one.price.tokens_per_second.value))
    if goal.objective == "quality":
        top = min(one.rung for one in pool)
        pool = _with_whole_states([one for one in pool if one.rung == top])
    return fastest(pool)


def _with_whole_states(pool: Sequence[Candidate]) -> Sequence[Candidate]:
    """Those that keep optimizer states whole, unless that costs notable speed."""
    whole = [one for one in pool if "8bit" not in one.recipe.optimizer]
    top = max(one.price.tokens_per_second.value for one in pool)
    enough = top * (1 - WORTH_8_BIT)
    return whole if any(one.price.tokens_per_second.value >= enough for one in whole) else pool


def fastest(candidates: Sequence[Candidate]) -> Candidate | None:
    """The fastest; among equally fast ones the one with the fewest GPUs, then the least memory."""
    if not candidates:
        return None
    top = max(one.price.tokens_per_second.value for one in candidates)
    equal = [one for one in candidates if one.price.tokens_per_second.value >= top * (1 - SAME_SPEED)]
    return min(equal, key=lambda one: (one.gpus, one.price.process.value))
