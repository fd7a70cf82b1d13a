"""What was found out of a configuration, as a plan: so that it is printed as every plan is."""

from estimators.hardware import Cluster
from estimators.model import ModelSpec
from estimators.price import Price
from estimators.units import format_bytes
from planner.best import could_fit
from planner.dry import INSTALL
from planner.emit.correct import Correction
from planner.emit.taken import Taken
from planner.goal import Goal
from planner.plan import Candidate, Plan
from planner.words import describe_gpus, shortfall


def plan_of_taken(
    goal: Goal,
    model: ModelSpec,
    cluster: Cluster,
    taken: Taken,
    price: Price,
    correction: Correction | None,
    doubt: str | None,
    *,
    fast: bool,
) -> Plan:
    candidate = Candidate(
        recipe=taken.recipe, price=price, method=method_of(taken), rung=0, gpus=taken.recipe.parallelism.devices
    )
    return Plan(
        goal=goal,
        model=model,
        cluster=cluster,
        chosen=candidate,
        evidence=price.evidence,
        confirmed=price.evidence != "formula",
        verdict=_verdict(taken, candidate, cluster, fast),
        rule=None,
        alternatives=(),
        refusals=(),
        cheapest_change=None if price.fits else _change(correction),
        assumptions=taken.assumed,
        next_command="",
        recipes_priced=1,
        doubt=doubt or "confirm with a short measured run before a long job",
    )


def method_of(taken: Taken) -> str:
    recipe = taken.recipe
    names = {("lora", True): "qlora", ("dora", True): "qdora"}
    method = names.get((recipe.adapter.method, recipe.quantization.startswith("nf4")), recipe.adapter.method)
    kind = recipe.parallelism.kind
    return method if kind == "none" else f"{method} + {kind}"


def _verdict(taken: Taken, candidate: Candidate, cluster: Cluster, fast: bool) -> str:
    price, share = candidate.price, candidate.price.tightest
    where = f"{taken.document.where} ({taken.tool}) on {describe_gpus(cluster)}"
    evaluates, rows = _evaluates_too_much(price), taken.recipe.evaluation_batch
    worst = share.worst_phase if evaluates else price.process
    size = f"{format_bytes(worst.value)} a GPU (at most {format_bytes(worst.high)}) of"
    if not price.fits and price.evidence == "formula" and could_fit(price):
        least, most, room = (format_bytes(size) for size in (worst.low, worst.high, share.budget_bytes))
        what = f", where it evaluates {rows} rows at a time" if evaluates else ""
        instead = "leave --fast out" if fast else INSTALL
        said = f"by formula it may not fit ({least} to {most} a GPU of {room}{what})"
        return f"{where}: {said}; a dry run decides: {instead}."
    if price.fits:
        speed = f"about {price.tokens_per_second.value:,.0f} tokens/s"
        return f"{where} fits: {size} {format_bytes(share.budget_bytes)}, {speed}."
    if evaluates:
        size = f"evaluating {rows} rows at a time takes {size}"
    return f"{where} does not fit: {size} {format_bytes(share.budget_bytes)}; it {shortfall(candidate)}."


def _evaluates_too_much(price: Price) -> bool:
    """Whether it is evaluation alone that does not fit."""
    share = price.tightest
    room = share.budget_bytes - share.headroom_bytes
    return (
        price.process.high <= room < share.worst_phase.high and price.phases.get("evaluation", 0) > price.process.value
    )


def _change(correction: Correction | None) -> str:
    if correction is None:
        return "nothing that was tried makes it fit: fewer tokens at a time, QLoRA, sharding, offload"
    price = correction.price
    size = f"at most {format_bytes(price.process.high)} a GPU by {price.evidence}"
    speed = f"about {price.tokens_per_second.value:,.0f} tokens/s"
    learned = "; it changes what is learned" if correction.changes_learning else "; what is learned stays the same"
    return f"it fits with {', '.join(correction.changes)}: {size}, {speed}{learned}"
