"""A recipe's price under a goal's limits."""

from estimators.hardware import Cluster
from estimators.model import ModelSpec
from estimators.price import Price
from estimators.pricing import price
from estimators.recipe import Recipe
from planner.goal import Goal


def quote(goal: Goal, model: ModelSpec, recipe: Recipe, cluster: Cluster) -> Price:
    """What `recipe` costs on `cluster` within the goal's budget and headroom.

    Raises:
        BadInput: the recipe cannot run there.
    """
    return price(
        model,
        recipe,
        cluster,
        vram_budget_bytes=goal.vram_budget_bytes,
        headroom_bytes=goal.headroom_bytes,
        assume_idle=goal.assume_idle,
    )
