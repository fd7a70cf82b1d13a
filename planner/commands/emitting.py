"""`plan … --emit DIR`: the options, what is checked before anything is planned, and what is printed of the files."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from estimators.errors import BadInput
from planner import options
from planner.commands.parameters import Read, as_typed
from planner.report.figures import clean
from planner.report.page import Line, labelled, title

if TYPE_CHECKING:
    from estimators.hardware import Cluster
    from estimators.model import ModelSpec
    from estimators.models import Config
    from planner.emit.folder import Emitted
    from planner.emit.order import Data, Order, Schedule
    from planner.goal import Goal
    from planner.plan import Candidate, Plan
    from planner.rules import Rules


def tool_names() -> list[str]:
    from planner.emit.tools import TOOLS

    return list(TOOLS)


def schedule_names() -> Sequence[str]:
    from estimators.learning import SCHEDULES

    return SCHEDULES


OPTIONS = (
    click.Option(
        ["--emit", "emit_folder"],
        type=Read(as_typed, "DIR"),
        help="Write files that run the plan into a new folder, and print the command that starts them.",
    ),
    click.Option(
        ["--for", "emit_for"],
        type=Read(options.read_names, "TOOLS", tool_names),
        help="For these: trl, accelerate, deepspeed, axolotl, llamafactory, unsloth, slurm, skypilot, transformers; "
        "by default the estimated trainer's with accelerate.",
    ),
    click.Option(["--data"], type=Read(as_typed, "FILE"), help="JSONL examples that the written files train on."),
    click.Option(
        ["--schedule"],
        type=Read(options.choice(schedule_names), "NAME", schedule_names),
        help="Of the learning rate, in the written files: linear, cosine or constant; by default linear.",
    ),
    click.Option(
        ["--warm-up-steps"],
        type=Read(options.whole(0, 1_000_000), "N"),
        help="Of the written files; by default a tenth of all.",
    ),
    click.Option(
        ["--seed"], type=Read(options.whole(0, options.LARGEST_SEED), "N"), help="Of the written files; by default 42."
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A folder that can be written, the tools to write for, and the data to name."""

    folder: Path
    tools: tuple[str, ...]
    """None named: the default ones."""
    data: "Data | None"
    schedule: "Schedule"
    seed: int | None
    """None: the recipe's own."""


def wanted(values: Mapping[str, Any]) -> Wanted | None:
    """What --emit and its companions ask for; None where nothing is to be written.

    Raises:
        BadInput: the folder is not empty, the data are no examples, or --for stands alone.
        UnknownName: no such tool.
    """
    if values["emit_folder"] is None:
        if alone := next((option for name, option in COMPANIONS.items() if values[name] is not None), None):
            raise BadInput(f"{alone} says what to write, and --emit where: it is missing")
        return None
    from planner.emit.data import data_of
    from planner.emit.folder import check_folder
    from planner.emit.order import Schedule
    from planner.emit.tools import find_tool

    tools = values["emit_for"] or ()
    for name in tools:
        find_tool(name)
    data = data_of(values["data"]) if values["data"] is not None else None
    return Wanted(
        folder=check_folder(values["emit_folder"]),
        tools=tools,
        data=data,
        schedule=Schedule(name=values["schedule"] or Schedule().name, warm_up_steps=values["warm_up_steps"]),
        seed=values["seed"],
    )


def folder_of(values: Mapping[str, Any]) -> Path | None:
    """The folder of --emit, checked."""
    from planner.emit.folder import check_folder

    return None if values["emit_folder"] is None else check_folder(values["emit_folder"])


OF_THE_JOB = {"schedule": "--schedule", "warm_up_steps": "--warm-up-steps", "seed": "--seed"}
"""What only the written files hold: neither memory nor speed hangs on it."""
COMPANIONS = {"emit_for": "--for", "data": "--data", **OF_THE_JOB}


def with_trainer(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """Whoever wants files for TRL and for no other trainer wants a plan for TRL, unless --trainer says otherwise."""
    from planner.report.paint import say

    context = click.get_current_context(silent=True)
    said = context is not None and context.get_parameter_source("trainer") is ParameterSource.COMMANDLINE
    if said or not values["emit_for"]:
        return values
    from planner.emit.tools import find_tool

    if {name for name in values["emit_for"] if not find_tool(name).launches} != {"trl"}:
        return values
    if not values["quiet"]:
        say("--for trl: planned for its trainer (--trainer trl)")
    return {**values, "trainer": "trl"}


def check_tools(
    goal: "Goal", config: "Config", model: "ModelSpec", cluster: "Cluster", rules: "Rules", want: Wanted
) -> None:
    """By formula, before seconds go into dry runs: whether the tools can express what will probably be chosen, and
    read the data.

    Raises:
        BadInput: one of them cannot; what would is said.
    """
    from planner.choose import make_plan
    from planner.emit.advice import check_tools
    from planner.emit.chat_template import check_template
    from planner.emit.of_plan import weights_of
    from planner.emit.tools import find_tool

    tools = [find_tool(name) for name in want.tools or (goal.trainer,)]
    check_template(weights_of(goal.model, config), want.data, tools)
    chosen = make_plan(goal, model, cluster, rules).chosen if want.tools else None
    if chosen is not None:
        check_tools(_order(goal, chosen, config, cluster, want), want.tools)


def as_written(plan: "Plan", seed: int | None) -> "Plan":
    """The plan with the seed that was asked for; where nobody said a learning rate, it trains with the usual one."""
    from planner.usual import usual_learning_rate

    if plan.chosen is None:
        return plan
    recipe = plan.chosen.recipe
    if plan.goal.learning_rate is None:
        recipe = replace(recipe, learning_rate=usual_learning_rate(recipe.adapter.method))
    if seed is not None:
        recipe = replace(recipe, seed=seed)
    return replace(plan, chosen=replace(plan.chosen, recipe=recipe))


def _order(
    goal: "Goal", chosen: "Candidate", config: "Config", cluster: "Cluster", want: Wanted, digest: str = ""
) -> "Order":
    from planner.emit.of_plan import order_of, weights_of
    from planner.emit.tools import job_of

    order = order_of(
        chosen.recipe,
        chosen.price,
        cluster,
        weights=weights_of(goal.model, config),
        digest=digest,
        data=want.data,
        tokens=goal.tokens,
        samples=goal.samples,
        rate_was_said=goal.learning_rate is not None,
    )
    return replace(order, schedule=want.schedule, tool=job_of(goal.trainer, want.tools))


def emit_plan(plan: "Plan", config: "Config", want: Wanted) -> "tuple[Plan, Emitted | None]":
    """Writes the files of a plan, which is given back as written; None where nothing fits, so nothing is.

    Raises:
        BadInput: a tool cannot express what was chosen.
    """
    from planner.emit.advice import check_tools
    from planner.emit.folder import digest_of, emit
    from planner.emit.tools import default_tools, write_for
    from planner.report.json import dump, plan_document
    from planner.versions import versions

    plan = as_written(plan, want.seed)
    if plan.chosen is None:
        return plan, None
    text = dump(plan_document(plan, versions(plan.evidence))) + "\n"
    order = _order(plan.goal, plan.chosen, config, plan.cluster, want, digest_of(text))
    tools = want.tools or default_tools(order)
    check_tools(order, tools)
    return plan, emit(want.folder, order, write_for(order, tools), text)


def emitted_page(emitted: "Emitted", width: int) -> list[Line]:
    """What was written, and the commands that start it."""
    rows = [("folder", clean(emitted.folder)), ("files", clean(", ".join(emitted.files)))]
    rows += [("data", emitted.data)] if emitted.data else []
    rows += [("note", clean(note)) for note in emitted.notes]
    starts = [f"cd {shlex.quote(emitted.folder)} && {command}" for command in emitted.commands]
    return [*title("Files"), *labelled(rows, width), *title("Start"), *(((start, ""),) for start in starts)]


def emitted_document(emitted: "Emitted") -> dict[str, Any]:
    return {"folder": emitted.folder, "files": list(emitted.files), "commands": list(emitted.commands),
            "notes": list(emitted.notes), "data": emitted.data or None}  # fmt: skip
