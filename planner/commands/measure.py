"""`plan measure`: runs a recipe for a few steps on this machine, and shows what was expected beside what it took."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from estimators.errors import BadInput, NoUsableGpu
from planner import options
from planner.commands import machine
from planner.commands.parameters import AS_JSON, QUIET, VERBOSE, Read, as_typed
from planner.commands.plan import SECTIONS, goal_of
from planner.report.paint import page_width, say, show, write

if TYPE_CHECKING:
    from estimators.hardware import Cluster
    from estimators.model import ModelSpec
    from estimators.models import Config
    from estimators.price import Price
    from estimators.recipe import Recipe
    from planner.measure import Finding, Trial

MOST_STEPS = 100_000
OF_THE_RUN = (
    click.Option(["--steps"], type=Read(options.whole(3, MOST_STEPS), "N"), default=12, show_default=True,
                 help="Optimizer steps; the first two are not counted."),
    click.Option(["--weights"], type=Read(as_typed, "random|FOLDER"), default="random", show_default=True,
                 help="random, enough for memory and speed; or a checkpoint folder with safetensors."),
    click.Option(["--data"], type=Read(as_typed, "FILE"), help="JSONL of prompt/completion or messages; else random."),
    click.Option(["--folder"], type=Read(as_typed, "FOLDER"), help="Keep the job there: recipe, log, result."),
    click.Option(["--store", "store_path"], type=Read(as_typed, "PATH"), help="Another store than this user's."),
    click.Option(["--share"], is_flag=True, help="Measure although somebody else is on the GPU."),
)  # fmt: skip
WORK = tuple(option for name in ("Model and machine", "What is learned", "How it is run") for option in SECTIONS[name])


def _run(recipe_file: str | None, **values: Any) -> int:
    cluster = _cluster(values)
    recipe, config, model, expected = _work(recipe_file, cluster, values)
    from planner.measure import measure
    from planner.report.progress import Progress

    trial = _trial(values)
    progress = Progress(wanted=not values["quiet"] and not values["as_json"])
    try:
        finding = measure(
            recipe, config, model, cluster, expected, trial, lambda line: progress.tick(f"running: {line}")
        )
    finally:
        progress.clear()
    _tell(finding, values)
    return finding.exit_code


def _cluster(values: Mapping[str, Any]) -> "Cluster":
    """
    Raises:
        NoUsableGpu: this machine has none.
        BadInput: --gpus describes others.
    """
    if values["gpus"] is not None:
        raise BadInput("plan measure runs on the GPUs of this machine: leave --gpus at auto")
    probe = machine.look(values["quiet"])
    if probe.absent:
        raise NoUsableGpu(f"no GPU here ({probe.absent}), and measuring needs one")
    return machine.found(probe, values)


def _work(
    recipe_file: str | None, cluster: "Cluster", values: Mapping[str, Any]
) -> "tuple[Recipe, Config, ModelSpec, Price]":
    """The recipe to run, the file's or the plan's own, and what is expected of it."""
    from estimators.models import build
    from estimators.pricing import price
    from planner.commands.plan import config_named, planned, rules_at
    from planner.dry import tracer_of, what_is_missing
    from planner.learned import calibration_of

    calibration = calibration_of(cluster, Path(values["store_path"]) if values["store_path"] else None)
    if recipe_file is None:
        if values["model"] is None:
            raise BadInput("--model or a recipe file is missing: plan measure --model llama-3.2-1b --method lora")
        goal, rules = replace(goal_of({**values, "top": 0}), calibration=calibration), rules_at(values["rules_path"])
        config = config_named(goal.model, offline=values["offline"])
        model = build(config)
        chosen = planned(goal, config, model, cluster, rules, values).chosen
        if chosen is None:
            raise BadInput("nothing fits this machine, as plan says; give a recipe file to run one all the same")
        return chosen.recipe, config, model, chosen.price
    recipe = _recipe(recipe_file)
    config = config_named(recipe.model, offline=values["offline"])
    model = build(config)
    tracer = None if what_is_missing() or values["fast"] else tracer_of(config)
    return recipe, config, model, price(model, recipe, cluster, vram_budget_bytes=values["vram_budget_bytes"],
                                        calibration=calibration, tracer=tracer)  # fmt: skip


def _recipe(name: str) -> "Recipe":
    from estimators.document import from_document
    from planner.commands.estimate import read_documents

    documents = list(read_documents(name))
    if len(documents) != 1:
        raise BadInput(f"{name}: plan measure runs one recipe, and there are {len(documents)}")
    document = documents[0][1]
    if isinstance(document, BadInput):
        raise document
    return from_document(document)


def _trial(values: Mapping[str, Any]) -> "Trial":
    from planner.measure import Trial

    return Trial(
        steps=values["steps"],
        weights=values["weights"],
        data=values["data"],
        folder=Path(values["folder"]) if values["folder"] else None,
        share=values["share"],
        store=Path(values["store_path"]) if values["store_path"] else None,
        budget_bytes=values["vram_budget_bytes"],
    )


def _tell(finding: "Finding", values: Mapping[str, Any]) -> None:
    from planner.report.measure import finding_document, finding_page

    if values["as_json"]:
        from planner.report.json import dump

        write(dump(finding_document(finding)))
        return
    show(finding_page(finding, page_width()))
    if finding.folder is not None and not values["quiet"]:
        say(f"the job is in {finding.folder}")


command = click.Command(
    "measure",
    short_help="Run a recipe here for a few steps: expected against measured.",
    help="Run a recipe on this machine's GPUs for a few steps and show what was expected beside what it took. Without "
    "a recipe file the plan of the options is run. What was measured is stored, and calibrates later plans.",
    callback=_run,
    params=[
        click.Argument(["recipe_file"], required=False, type=click.Path(allow_dash=True), metavar="[RECIPE]"),
        click.Option(["--model"], type=Read(as_typed, "MODEL"), help="As plan takes it."),
        *(option for option in WORK if option.name != "model"),
        *OF_THE_RUN,
        AS_JSON,
        QUIET,
        VERBOSE,
        click.Option(["--offline"], is_flag=True, help="Never ask the Hub."),
    ],
)
