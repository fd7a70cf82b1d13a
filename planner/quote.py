"""A recipe's price under a goal's limits."""

from estimators.hardware import Cluster
from estimators.model import ModelSpec
from estimators.price import Price
from estimators.pricing import price
from estimators.recipe import Recipe
from estimators.size import Tracer
from planner.goal import Goal


def quote(goal: Goal, model: ModelSpec, recipe: Recipe, cluster: Cluster, tracer: Tracer | None = None) -> Price:
    """What `recipe` costs on `cluster` within the goal's budget and headroom, by formula or as `tracer` finds.

    Raises:
        BadInput: the recipe cannot run there; or, of the tracer, it cannot be traced.
    """
    return price(
        model,
        recipe,
        cluster,
        vram_budget_bytes=goal.vram_budget_bytes,
        headroom_bytes=goal.headroom_bytes,
        assume_idle=goal.assume_idle,
        calibration=goal.calibration,
        tracer=tracer,
    )
