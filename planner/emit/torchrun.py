"""torchrun, which starts one process a GPU on every node, and whose files it can start."""

import shlex
from collections.abc import Mapping

from planner.emit import axolotl, llamafactory, transformers, trl
from planner.emit.order import Order, Tool
from planner.emit.rows import row

TOOLS: dict[str, Tool] = {module.TOOL.name: module.TOOL for module in (transformers, trl, axolotl, llamafactory)}


def started(tool: str, order: Order) -> Tool:
    """Whose files a job script of `tool` starts.

    Raises:
        BadInput: nothing that torchrun starts.
    """
    return row(tool, "a job of", TOOLS, order.started)


def program(tool: str, order: Order) -> tuple[str, ...]:
    words = started(tool, order).program
    return words(order) if words else ()


def started_files(tool: str, order: Order) -> Mapping[str, str]:
    return started(tool, order).files(order)


def doubt(order: Order) -> str | None:
    """Of a job script: it starts what nobody has measured."""
    return None if order.started == order.recipe.trainer else f"starts {order.started}"


def torchrun(tool: str, order: Order, **from_shell: str) -> str:
    """The command in a job script of `tool`. What is given `from_shell` is an option whose value the shell works out:
    it is put in double quotes as it stands, so it must be ours, never a configuration's."""
    options = " ".join(f'--{name.replace("_", "-")} "{value}"' for name, value in from_shell.items())
    return f"torchrun {options} {shlex.join(program(tool, order))}"
