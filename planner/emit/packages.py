"""What a job of a tool needs to have installed, in the versions that were checked."""

import shlex
from collections.abc import Iterator

from estimators.strategies.optimizer.bitsandbytes import BitsAndBytes
from estimators.techniques import OPTIMIZERS
from planner.emit import slurm
from planner.emit.checked import CHECKED
from planner.emit.order import Order, Tool
from planner.emit.torchrun import started


def install(order: Order, tool: Tool) -> str:
    """The command; a script for Slurm runs where it is installed, so it needs what it starts."""
    needed = packages(order, tool)
    needed += packages(order, started(tool.name, order)) if tool.name == slurm.NAME else []
    return shlex.join(["pip", "install", *needed])


def packages(order: Order, tool: Tool) -> list[str]:
    """As pip takes them. What the recipe needs comes by the tool's own extra where it has one."""
    further = [] if tool.launches else [name for name in _of_recipe(order) if name not in tool.packages]
    extras = [tool.brings[name] for name in further if tool.brings.get(name)]
    names = [*tool.packages, *(name for name in further if name not in tool.brings)]
    brackets = f"[{','.join(extras)}]" if extras else ""
    return [f"{name}{brackets if name == tool.name else ''}=={CHECKED[name]}" for name in names]


def _of_recipe(order: Order) -> Iterator[str]:
    recipe = order.recipe
    if recipe.quantized or isinstance(OPTIMIZERS[recipe.optimizer], BitsAndBytes):
        yield "bitsandbytes"
    if recipe.loss == "liger":
        yield "liger-kernel"
    if order.zero:
        yield "deepspeed"
