"""torchrun, which starts one process a GPU on every node, and what it runs for each trainer."""

import shlex
from collections.abc import Mapping

from planner.emit import transformers, trl
from planner.emit.order import Order, Tool
from planner.emit.rows import row

PROGRAMS: dict[str, tuple[Tool, tuple[str, ...]]] = {
    "transformers": (transformers.TOOL, (transformers.FILE,)),
    "trl": (trl.TOOL, ("--module", trl.MODULE, "--config", trl.FILE)),
}
"""By Recipe.trainer: whose files it needs, and the words that start them."""


def trainer_files(tool: str, order: Order) -> Mapping[str, str]:
    owner, _ = row(tool, "the trainer", PROGRAMS, order.recipe.trainer)
    return owner.files(order)


def torchrun(order: Order, **from_shell: str) -> str:
    """The command. What is given `from_shell` is an option whose value the shell works out: it is put in double quotes
    as it stands, so it must be ours, never a configuration's."""
    _, program = PROGRAMS[order.recipe.trainer]
    options = " ".join(f'--{name.replace("_", "-")} "{value}"' for name, value in from_shell.items())
    return f"torchrun {options} {shlex.join(program)}"
