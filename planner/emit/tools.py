"""Every tool that files are written for, by name: a new one is a module and a line here."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from estimators.errors import BadInput, UnknownName
from planner.emit import accelerate, axolotl, deepspeed, llamafactory, skypilot, slurm, transformers, trl, unsloth
from planner.emit.checked import CHECKED
from planner.emit.order import Order, Tool

TOOLS: dict[str, Tool] = {
    module.TOOL.name: module.TOOL
    for module in (transformers, trl, accelerate, deepspeed, axolotl, llamafactory, unsloth, slurm, skypilot)
}
COMMENTS = (".yaml", ".py", ".sbatch")
"""Of these, a line that begins with # says nothing to the tool."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """What is to be put into the folder."""

    files: Mapping[str, str]
    tools: tuple[Tool, ...]
    """That were asked for."""


def default_tools(order: Order) -> tuple[str, ...]:
    """The estimated trainer's, and what launches it."""
    return (order.recipe.trainer, "accelerate", *(("deepspeed",) if order.zero else ()))


def job_of(trainer: str, names: Sequence[str]) -> str:
    """Whose files a job script among these tools starts: the estimated trainer's, unless only others are named.

    Raises:
        UnknownName: there is no such tool.
    """
    named = [name for name in names if not find_tool(name).launches]
    return trainer if trainer in named or not named else named[0]


def write_for(order: Order, names: Sequence[str]) -> Written:
    """The files of these tools, each with its header.

    Raises:
        UnknownName: there is no such tool.
        BadInput: one of them cannot express the recipe.
    """
    tools = tuple(find_tool(name) for name in dict.fromkeys(names))
    made: dict[str, str] = {}
    for tool in tools:
        for name, text in tool.files(order).items():
            if made.setdefault(name, _headed(name, text, order, _owner(name, tool))) == "":
                raise BadInput(f"{tool.name} wrote nothing into {name}")
    return Written(files=made, tools=tools)


def find_tool(name: str) -> Tool:
    if name not in TOOLS:
        raise UnknownName("tool", name, TOOLS, hint=f"(known: {', '.join(TOOLS)})")
    return TOOLS[name]


def _owner(name: str, tool: Tool) -> Tool:
    """Whose file it is: a tool also writes what it is launched with."""
    launched = {accelerate.FILE: accelerate.TOOL, deepspeed.FILE: deepspeed.TOOL}
    return launched.get(name, tool)


def header(order: Order, tool: Tool) -> list[str]:
    """The lines that stand above a file."""
    versions = ", ".join(f"{package} {CHECKED[package]}" for package in tool.packages)
    lines = [f"Written by plan; plan.json beside it has the SHA-256 {order.digest}", f"Checked against {versions}"]
    lines.append(memory(order, tool))
    return lines + ([f"Start: {tool.command(order)}"] if tool.command else [])


def memory(order: Order, tool: Tool) -> str:
    """What the estimate is worth under this tool."""
    if doubt := tool.doubt(order):
        return f"Memory not verified under {tool.name}, which {doubt}: estimated are {order.memory}"
    if order.recipe.trainer in tool.trainers:
        return f"Memory: {order.memory}"
    return f"Memory not verified under {tool.name}: {order.memory} is that of the trainer {order.recipe.trainer}"


def verified(order: Order, tool: Tool) -> bool:
    return order.recipe.trainer in tool.trainers and not tool.doubt(order)


def _headed(name: str, text: str, order: Order, tool: Tool) -> str:
    if not name.endswith(COMMENTS):
        return text
    first, rest = ("", text) if not text.startswith("#!") else text.split("\n", 1)
    comments = "".join(f"# {one_line(line)}\n" for line in header(order, tool))
    return (f"{first}\n" if first else "") + comments + rest


def one_line(text: str) -> str:
    """In ASCII and on one line, so that nothing can leave a comment."""
    return text.encode("ascii", "backslashreplace").decode().replace("\n", "\\n").replace("\r", "\\r")
