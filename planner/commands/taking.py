"""`plan --from FILE`: a configuration that somebody has: whether it fits, how fast it is, what would make it fit."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from estimators.errors import BadInput, UnknownName
from planner.commands import emitting, machine
from planner.commands.parameters import Read, as_typed, option_name
from planner.goal import Goal
from planner.report.figures import clean
from planner.report.page import BLANK, Line, labelled, title
from planner.report.paint import page_width, show, write

if TYPE_CHECKING:
    from estimators.hardware import Cluster
    from estimators.model import ModelSpec
    from estimators.models import Config
    from estimators.price import Price
    from estimators.recipe import Recipe
    from planner.emit.correct import Correction
    from planner.emit.folder import Emitted
    from planner.emit.taken import Taken
    from planner.plan import Plan

OPTIONS = (
    click.Option(
        ["--from", "from_file"],
        type=Read(as_typed, "FILE"),
        help="In place of a goal: an axolotl, LLaMA-Factory or TRL YAML, priced as it is.",
    ),
    click.Option(["--accelerate-config"], type=Read(as_typed, "FILE"), help="What --from is launched with."),
    click.Option(["--deepspeed-config"], type=Read(as_typed, "FILE"), help="The ZeRO settings of --from."),
)
BESIDE = {"accelerate_config": "--accelerate-config", "deepspeed_config": "--deepspeed-config"}
OF_A_GOAL = (
    "methods", "rank", "alpha", "targets", "dropout", "sequence_length", "global_batch", "optimizer", "precision",
    "learning_rate", "padded", "packing", "micro_batch", "gradient_checkpointing", "expandable_segments", "attention",
    "loss", "rules_path", "data", *emitting.OF_THE_JOB,
)  # fmt: skip
"""What the file says itself."""
SWITCHES = ("padded", "packing")
"""Of those, which are off where nothing is said."""
LIMITS = ("vram_budget_bytes", "headroom_bytes", "assume_idle", "tokens", "samples")


def check(values: Mapping[str, Any]) -> None:
    """
    Raises:
        BadInput: options beside --from that it does not read, or its own without it.
    """
    if values["from_file"] is None:
        if alone := next((option for name, option in BESIDE.items() if values[name] is not None), None):
            raise BadInput(f"{alone} belongs to --from, which is missing")
        return
    for name in OF_A_GOAL:
        if not (values[name] in (None, ()) or (values[name] is False and name in SWITCHES)):  # 0 is something
            option = _spelled(name, values[name])
            raise BadInput(f"--from says what is trained and how: {option} cannot be given beside it")
    if values["emit_for"] is not None:
        raise BadInput("--from writes back the file of the tool that it came from, so --for cannot be given beside it")


def _spelled(name: str, value: object) -> str:
    """The option as it was typed."""
    context = click.get_current_context(silent=True)
    found = {param.name: param for param in context.command.params} if context else {}
    if name not in found:
        return f"--{name.replace('_', '-')}"
    off = found[name].secondary_opts
    return off[0] if value is False and off else option_name(found[name])


def run(values: Mapping[str, Any]) -> int:
    """Reads, prices, prints, and returns the exit code: 0 fits, 3 does not."""
    from estimators.models import build
    from planner.commands.plan import config_named
    from planner.emit.taken import model_of, take, tool_of
    from planner.emit.yaml_read import parse, read_file
    from planner.learned import calibration_of

    check(values)
    folder = emitting.folder_of(values)
    path = values["from_file"]
    document = parse(read_file(path, "--from"), path)
    tool = tool_of(document)
    name = values["model"] or model_of(document, tool)
    try:
        config = config_named(name, offline=values["offline"])
    except UnknownName as error:
        if values["model"] is not None:
            raise
        raise BadInput(f"{error}; --model beside --from says which model is of the same shape") from None
    model = build(config)
    cluster = machine.any_cluster(values)
    taken = take(document, tool, model, cluster, values["accelerate_config"], values["deepspeed_config"])
    taken = replace(taken, recipe=replace(taken.recipe, model=name))
    goal = _goal(values, taken, calibration_of(cluster) if not cluster.hypothetical else None)
    answer = _Answer(goal=goal, taken=taken, config=config, model=model, cluster=cluster, values=values)
    return answer.give(folder)


def _goal(values: Mapping[str, Any], taken: "Taken", calibration: Any) -> Goal:
    """What the file fixes, and the limits that the command line sets."""
    recipe = taken.recipe
    limits = {name: values[name] for name in LIMITS}
    more = {"calibration": calibration} if calibration else {}
    return Goal(
        model=recipe.model, sequence_length=recipe.sequence_length, global_batch=recipe.global_batch,
        micro_batch=recipe.micro_batch, optimizer=recipe.optimizer, trainer=recipe.trainer, **limits, **more,
    )  # fmt: skip


class _Answer:
    """What is found out of one configuration."""

    def __init__(
        self, *, goal: Goal, taken: "Taken", config: "Config", model: "ModelSpec", cluster: "Cluster",
        values: Mapping[str, Any],
    ) -> None:  # fmt: skip
        self.goal, self.taken, self.config, self.model, self.cluster = goal, taken, config, model, cluster
        self.values = values
        self.doubt: str | None = "without --fast a dry run confirms it in seconds"
        self.tracer: Any = None
        if not values["fast"]:
            from planner.dry import tracer_of, what_is_missing

            self.doubt = what_is_missing()
            self.tracer = None if self.doubt else tracer_of(config)

    def give(self, folder: Path | None) -> int:
        from estimators.legality import objections

        recipe = self.taken.recipe
        if reasons := objections(self.model, recipe, self.cluster):
            raise BadInput(f"{self.taken.document.where}: cannot run here: {reasons[0]}")
        price = self.price(recipe)
        correction = None if price.fits else self.correction()
        plan = self.plan(price, correction)
        runs = price.fits or correction is not None
        emitted = self.emit(folder, plan, price, correction) if folder is not None and runs else None
        self.print(plan, correction, emitted)
        if folder is not None and not runs and not self.values["as_json"]:
            show([BLANK, (("nothing was written: no configuration that fits was found", ""),)])
        return 0 if price.fits else 3

    def price(self, recipe: "Recipe") -> "Price":
        """By dry run where one can be made."""
        from planner.quote import quote

        if self.tracer is not None:
            try:
                return quote(self.goal, self.model, recipe, self.cluster, self.tracer)
            except BadInput as error:
                self.doubt = str(error)
        return self.formula(recipe)

    def formula(self, recipe: "Recipe") -> "Price":
        from planner.quote import quote

        return quote(self.goal, self.model, recipe, self.cluster)

    def correction(self) -> "Correction | None":
        from planner.emit.correct import correct

        recipe = self.taken.recipe
        return correct(recipe, self.model, self.cluster, self.formula, self.price, lambda one: bool(self.settings(one)))

    def order(self, recipe: "Recipe", digest: str = "", price: "Price | None" = None) -> Any:
        from planner.emit.of_plan import order_of
        from planner.emit.taken import model_of

        weights = model_of(self.taken.document, self.taken.tool)
        return order_of(recipe, price or self.formula(recipe), self.cluster, weights=weights, digest=digest, data=None)

    def settings(self, recipe: "Recipe") -> Any:
        """The tool's own words for a recipe; None where it has none."""
        from planner.emit.rewrite import SETTINGS

        try:
            return SETTINGS[self.taken.tool](self.order(recipe))
        except BadInput:
            return None

    def plan(self, price: "Price", correction: "Correction | None") -> "Plan":
        from planner.emit.taken_plan import plan_of_taken

        fast: bool = self.values["fast"]
        return plan_of_taken(self.goal, self.model, self.cluster, self.taken, price, correction, self.doubt, fast=fast)

    def emit(self, folder: Path, plan: "Plan", price: "Price", correction: "Correction | None") -> "Emitted":
        from planner.emit.about import of_file
        from planner.emit.folder import digest_of, emit
        from planner.emit.moved import move
        from planner.emit.rewrite import difference, edits, rewrite, written_beside
        from planner.report.json import dump, plan_document
        from planner.versions import versions

        text = dump(plan_document(plan, versions(plan.evidence))) + "\n"
        recipe = correction.recipe if correction else self.taken.recipe
        order = self.order(recipe, digest_of(text), correction.price if correction else price)
        name = Path(self.taken.document.where).name
        altered, dropped, notes = edits(self.taken, order)
        document, before, more = move(self.taken.document, self.taken.tool, {*altered, *dropped})
        notes = (*notes, *more)
        after = rewrite(document, altered, dropped)
        change = difference(before, after, name)
        own = {name: after, **({f"{name}.diff": change} if change else {})}
        changes = correction.changes if correction else ()
        about = of_file(name, after, changes, changed=bool(change))
        written = written_beside(self.taken.tool, order, name)
        return emit(folder, order, written, text, own, (*about, *notes), notes)

    def print(self, plan: "Plan", correction: "Correction | None", emitted: "Emitted | None") -> None:
        from planner.report.json import dump, plan_document
        from planner.report.terminal import plan_page, quiet_page
        from planner.versions import versions

        if self.values["as_json"]:
            more = {"from": self.document(correction)}
            more |= {"emitted": emitting.emitted_document(emitted)} if emitted else {}
            write(dump(plan_document(plan, versions(plan.evidence)) | more))
            return
        width = page_width()
        quiet = self.values["quiet"]
        show(quiet_page(plan, width) if quiet else plan_page(plan, width, verbose=self.values["verbose"]))
        show([*self._not_understood(width), *(emitting.emitted_page(emitted, width) if emitted else [])])

    def _not_understood(self, width: int) -> list[Line]:
        meant = self.taken.meant
        names = [
            clean(name) + (f" (did you mean {meant[name]}?)" if name in meant else "")
            for name in self.taken.not_understood
        ]
        return [*title("Not understood"), *labelled([("keys", ", ".join(names))], width)] if names else []

    def document(self, correction: "Correction | None") -> dict[str, Any]:
        from estimators.document import to_document

        changed = correction and {
            "recipe": to_document(correction.recipe), "changes": list(correction.changes),
            "changes_learning": correction.changes_learning, "evidence": correction.price.evidence,
        }  # fmt: skip
        return {
            "tool": self.taken.tool, "file": self.taken.document.where,
            "not_understood": list(self.taken.not_understood), "meant": dict(self.taken.meant),
            "correction": changed,
        }  # fmt: skip
