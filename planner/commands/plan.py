"""`plan` itself: from the options to a plan for the GPUs at hand, or a table over the catalogue where there is none."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from estimators.errors import BadInput, NoUsableGpu
from estimators.models import Config, build, load_config
from planner import lists, options
from planner.commands import emitting, machine, taking
from planner.commands.parameters import AS_JSON, BUDGET, GPUS, HARDWARE, QUIET, VERBOSE, Read, as_typed, model_names
from planner.goal import Goal
from planner.report.paint import page_width, say, show, write

if TYPE_CHECKING:
    from estimators.hardware import Cluster
    from estimators.model import ModelSpec
    from planner.confirm import Confirmation
    from planner.plan import Candidate, Plan
    from planner.rules import Rules

PRECISIONS = ("amp", "bf16", "fp16", "fp32")
TRAINERS = ("transformers", "trl")
OFFLOADS = ("never", "allowed", "required")
OBJECTIVES = ("quality", "throughput", "memory", "cost")


def _laws(axis: str) -> options.Names:
    """The names of an axis of estimators/techniques.py, which are loaded only when asked for."""

    def names() -> list[str]:
        from estimators import techniques

        return list(getattr(techniques, axis))

    return names


def _methods() -> list[str]:
    from planner.rules import load_rules

    rules = load_rules()
    return [rung.method for rung in (*rules.ladder, *rules.named)]


def _one_of(names: options.Names, metavar: str = "NAME") -> Read:
    return Read(options.choice(names), metavar, names)


def _whole(high: int) -> Read:
    return Read(options.whole(1, high), "N")


SECTIONS: dict[str, tuple[click.Option, ...]] = {
    "Model and machine": (
        click.Option(
            ["--model"],
            type=Read(as_typed, "MODEL", model_names),
            help="A catalogued name, a Hub id, or a path to a config.json or its folder.",
        ),
        GPUS,
        *HARDWARE,
        *BUDGET,
    ),
    "What is learned": (
        click.Option(
            ["--method", "methods"],
            type=Read(options.read_names, "NAMES", _methods),
            multiple=True,
            help="Only these: full, lora, qlora, dora, int8 … (repeat, or separate by commas).",
        ),
        click.Option(["--rank"], type=_whole(65_536), help="Of the adapter; by default 16."),
        click.Option(["--alpha"], type=_whole(1 << 20), help="Of the adapter; by default 4 × rank."),
        click.Option(
            ["--targets"],
            type=Read(options.read_targets, "LAYERS"),
            help="q_proj,v_proj or all-linear; by default queries and values.",
        ),
        click.Option(["--dropout"], type=Read(options.read_dropout, "SHARE"), help="Of the adapter; by default 0."),
        click.Option(
            ["--seq-len", "sequence_length"], type=_whole(1 << 24), help="Tokens a sequence; by default 2048."
        ),
        click.Option(["--global-batch"], type=_whole(1 << 20), help="Sequences an optimizer step; by default 16."),
        click.Option(["--optimizer"], type=_one_of(_laws("OPTIMIZERS")), help="As the Trainer calls it: adamw_8bit."),
        click.Option(
            ["--learning-rate"],
            type=Read(lists.read_rate, "RATE"),
            help="Of --emit; by default 2e-4, of full fine-tuning 2e-5. Memory and speed do not hang on it.",
        ),
        click.Option(
            ["--precision"], type=_one_of(lambda: PRECISIONS), help="Of full fine-tuning: amp, bf16, fp16, fp32."
        ),
        click.Option(
            ["--trainer"],
            type=_one_of(lambda: TRAINERS),
            default=TRAINERS[0],
            help="transformers, or trl for SFTTrainer.",
        ),
        click.Option(["--padded"], is_flag=True, help="Batches hold padding, which forbids some attention kernels."),
        click.Option(["--packing"], is_flag=True, help="Rows joined end to end and cut: no padding, all of one width."),
        click.Option(["--tokens"], type=Read(options.read_count, "N"), help="Length of the job in tokens: 10M, 1e9."),
        click.Option(["--samples"], type=Read(options.read_count, "N"), help="Length of the job in sequences: 50000."),
    ),
    "How it is run": (
        click.Option(
            ["--micro-batch"], type=_whole(65_536), help="Sequences of one pass on one GPU; by default searched."
        ),
        click.Option(
            ["--checkpointing/--no-checkpointing", "gradient_checkpointing"], default=None, help="By default searched."
        ),
        click.Option(
            ["--expandable-segments/--no-expandable-segments"],
            default=None,
            help="Of torch's allocator: for rows of many lengths. By default used with --data, but for packed rows.",
        ),
        click.Option(["--attention"], type=_one_of(_laws("ATTENTIONS")), help="sdpa, sdpa_no_cudnn or eager …"),
        click.Option(["--loss"], type=_one_of(_laws("LOSSES")), help="plain or liger; by default plain."),
        click.Option(
            ["--offload"],
            type=_one_of(lambda: OFFLOADS),
            default="allowed",
            help="never, allowed (where nothing else fits) or required.",
        ),
        click.Option(
            ["--objective"],
            type=_one_of(lambda: OBJECTIVES),
            default="quality",
            help="quality (by the ladder, then speed), throughput, memory or cost.",
        ),
        click.Option(
            ["--rules", "rules_path"], type=Read(as_typed, "FILE"), help="In place of plan's own ladder and defaults."
        ),
        click.Option(["--fast"], is_flag=True, help="By formula only, at once: unconfirmed, without a dry run."),
    ),
    "Files": (*taking.OPTIONS, *emitting.OPTIONS),
    "Output": (
        click.Option(
            ["--top"],
            type=Read(options.whole(0, 100), "N"),
            default=8,
            help="How many alternatives to show; by default 8.",
        ),
        AS_JSON,
        QUIET,
        VERBOSE,
        click.Option(["--offline"], is_flag=True, help="Never ask the Hub."),
    ),
}
"""The options of `plan`, as its help groups them; those of Goal's fields are called as the fields are."""
WORK = tuple(option for options_there in SECTIONS.values() for option in options_there)


def run(values: Mapping[str, Any]) -> int:
    """Plans, prints, and returns the exit code."""
    if values["from_file"] is not None:
        return taking.run(values)
    taking.check(values)
    want = emitting.wanted(values)
    goal = goal_of(emitting.with_trainer(values))
    rules = rules_at(values["rules_path"])
    config = config_named(goal.model, offline=values["offline"])
    model = build(config)
    if values["gpus"] is not None:
        return _plan(goal, config, model, machine.described(values), rules, values, want)
    probe = machine.look(values["quiet"])
    if probe.absent and want:
        raise NoUsableGpu(f"no GPU here ({probe.absent}), so no plan to write: describe one, such as --gpus rtx-4090")
    if probe.absent:
        return _tabulate(goal, model, rules, values, probe.absent)
    cluster = machine.found(probe, values)
    from planner.learned import calibration_of

    return _plan(replace(goal, calibration=calibration_of(cluster)), config, model, cluster, rules, values, want)


def goal_of(values: Mapping[str, Any]) -> Goal:
    """The goal; options that contradict each other are refused."""
    given = {name: values[name] for name in Goal.__slots__ if name in values}
    methods = tuple(dict.fromkeys(name for names in values["methods"] for name in names))
    goal = Goal(**{**given, "methods": methods or None, "varying": values.get("data") is not None})
    if goal.padded and goal.packing:
        raise BadInput("give --padded or --packing, not both: packed rows hold no padding")
    if goal.tokens and goal.samples:
        raise BadInput("give --tokens or --samples, not both")
    if goal.micro_batch and goal.global_batch and goal.global_batch % goal.micro_batch:
        raise BadInput(f"--global-batch {goal.global_batch} is not divisible by --micro-batch {goal.micro_batch}")
    if goal.headroom_bytes and goal.vram_budget_bytes and goal.headroom_bytes >= goal.vram_budget_bytes:
        raise BadInput("--headroom must be smaller than --vram-budget")
    return goal


def rules_at(path: str | None) -> "Rules":
    from planner.rules import load_rules

    return load_rules(path)


def config_named(name: str, *, offline: bool) -> Config:
    def fetch(hub_id: str) -> Mapping[str, object]:
        from runners.hub import fetch_config

        if not offline:
            say(f"asking the Hub for the config of {hub_id} …")
        return fetch_config(hub_id, offline)

    return load_config(name, fetch)


def _plan(
    goal: Goal,
    config: Config,
    model: "ModelSpec",
    cluster: "Cluster",
    rules: "Rules",
    values: Mapping[str, Any],
    want: emitting.Wanted | None,
) -> int:
    if want:
        emitting.check_tools(goal, config, model, cluster, rules, want)
    plan = planned(goal, config, model, cluster, rules, values)
    plan, emitted = emitting.emit_plan(plan, config, want) if want else (plan, None)
    if values["as_json"]:
        from planner.report.json import dump, plan_document
        from planner.versions import versions

        more = {"emitted": emitting.emitted_document(emitted)} if emitted else {}
        write(dump(plan_document(plan, versions(plan.evidence)) | more))
        return plan.exit_code
    from planner.report.terminal import plan_page, quiet_page

    width = page_width()
    show(quiet_page(plan, width) if values["quiet"] else plan_page(plan, width, verbose=values["verbose"]))
    if emitted:
        show(emitting.emitted_page(emitted, width))
    return plan.exit_code


def planned(
    goal: Goal, config: Config, model: "ModelSpec", cluster: "Cluster", rules: "Rules", values: Mapping[str, Any]
) -> "Plan":
    """The plan, confirmed by dry runs where they are wanted and can be made."""
    from planner.choose import make_plan

    started = time.perf_counter()
    if values["fast"]:
        plan = replace(make_plan(goal, model, cluster, rules), doubt="without --fast a dry run confirms it in seconds")
        dry_seconds = 0.0
    else:
        plan, dry_seconds = _confirmed(goal, config, model, cluster, rules, values)
    if values["verbose"]:
        say(f"priced {plan.recipes_priced:,} recipes in {time.perf_counter() - started - dry_seconds:.2f} s")
    return plan


def _confirmed(
    goal: Goal, config: Config, model: "ModelSpec", cluster: "Cluster", rules: "Rules", values: Mapping[str, Any]
) -> tuple["Plan", float]:
    """The plan, and the seconds that its dry runs took."""
    from planner.choose import make_plan
    from planner.dry import confirmation_of, tracer_of, what_is_missing
    from planner.report.progress import Progress

    if absent := what_is_missing():
        return replace(make_plan(goal, model, cluster, rules), doubt=absent), 0.0
    tracer = tracer_of(config)
    progress = Progress(wanted=not values["quiet"] and not values["as_json"])

    def confirming(candidates: "Sequence[Candidate]", chosen: "Candidate | None") -> "Confirmation":
        return confirmation_of(goal, model, cluster, tracer, candidates, chosen, progress)

    try:
        return make_plan(goal, model, cluster, rules, confirming), tracer.seconds
    finally:
        progress.clear()


def _tabulate(goal: Goal, model: "ModelSpec", rules: "Rules", values: Mapping[str, Any], absent: str) -> int:
    """The table over the catalogue."""
    from estimators.catalogue import all_devices
    from planner.choose import make_matrix

    say(f"no GPU here ({absent}): showing what fits on the catalogue's cards instead")
    unused = [option for name, option in machine.OF_A_MACHINE.items() if values[name] not in (None, 1)]
    if unused and not values["quiet"]:
        say(f"note: {', '.join(unused)} not used: the table is for one card each; describe the machine with --gpus")
    matrix = make_matrix(goal, model, all_devices(), rules)
    if values["as_json"]:
        from planner.report.json import dump, matrix_document
        from planner.versions import versions

        write(dump(matrix_document(matrix, versions(), absent)))
        return 0
    from planner.report.matrix import matrix_page, quiet_matrix

    width = page_width()
    show(quiet_matrix(matrix, width) if values["quiet"] else matrix_page(matrix, width))
    return 0
