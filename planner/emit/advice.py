"""Whether each tool can express a recipe; where one cannot, what would make it able to, in the user's options."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

from estimators.errors import BadInput
from estimators.recipe import Parallelism
from planner.emit.order import Order
from planner.emit.tools import find_tool

PRECISIONS = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}
"""As --precision calls a compute type."""
MOST_CHANGES = 2


def check_tools(order: Order, names: Sequence[str]) -> None:
    """
    Raises:
        UnknownName: there is no such tool.
        BadInput: some of them cannot express the recipe; in one line, which, and what would.
    """
    wrong: list[str] = []
    for name in dict.fromkeys(names):
        try:
            find_tool(name).files(order)
        except BadInput as error:
            if not any(one.startswith(f"{error}: ") for one in wrong):  # a job script fails as the tool that it starts
                wrong.append(f"{error}: {advice(name, order)}")
    if wrong:
        raise BadInput("; ".join(wrong))


def advice(name: str, order: Order) -> str:
    """The fewest options with which the tool could say it, each tried; else to do without the tool."""
    alone = f"leave {name} out of --for"
    fixes = list(_fixes(order))
    for number in range(1, MOST_CHANGES + 1):
        for chosen in combinations(fixes, number):
            changes = {field: value for _, change in chosen for field, value in change.items()}
            if _can(name, replace(order, recipe=replace(order.recipe, **changes))):
                return f"{' and '.join(words for words, _ in chosen)} would do, or {alone}"
    if name == "deepspeed" and order.recipe.parallelism.kind == "none":
        return f"it needs ZeRO: {alone}, or --offload required with --host-memory"
    return alone


def _can(name: str, order: Order) -> bool:
    try:
        find_tool(name).files(order)
    except BadInput:
        return False
    return True


def _fixes(order: Order) -> Iterator[tuple[str, dict[str, Any]]]:
    """What differs from what most tools have a word for."""
    recipe = order.recipe
    if recipe.weights != recipe.compute:
        yield f"--precision {PRECISIONS[recipe.compute]}", {"weights": recipe.compute}
    if recipe.loss != "plain":
        yield "--loss plain", {"loss": "plain"}
    if recipe.attention != "sdpa":
        yield "--attention sdpa", {"attention": "sdpa"}
    if recipe.optimizer != "adamw_torch_fused":
        yield "--optimizer adamw_torch_fused", {"optimizer": "adamw_torch_fused"}
    if recipe.parallelism.kind != "none":
        card = order.devices[0] if order.devices else "CARD"
        yield f"one GPU, such as --gpus {card},", {"parallelism": Parallelism()}
