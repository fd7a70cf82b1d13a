"""What was found out of a configuration, as a plan: so that it is printed as every plan is."""

from estimators.hardware import Cluster
from estimators.model import ModelSpec
from estimators.price import Interval, Price
from estimators.units import format_bytes
from planner.best import could_fit
from planner.dry import INSTALL
from planner.emit.correct import Correction
from planner.emit.taken import Taken
from planner.goal import Goal
from planner.plan import Candidate, Plan
from planner.words import beside_training, describe_gpus, shortfall


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
    price, room = candidate.price, format_bytes(candidate.price.tightest.budget_bytes)
    where = f"{taken.document.where} ({taken.tool}) on {describe_gpus(cluster)}"
    if price.fits:
        speed = f"about {price.tokens_per_second.value:,.0f} tokens/s"
        return f"{where} fits: {_size(price.process)} of {room}, {speed}."
    worst, doing = price.tightest.worst_phase, _doing(taken, price)
    if price.evidence == "formula" and could_fit(price):
        said = f"{format_bytes(worst.low)} to {format_bytes(worst.high)} a GPU of {room}"
        instead = "leave --fast out" if fast else INSTALL
        said += f", {doing}" if doing else ""
        return f"{where}: by formula it may not fit ({said}); a dry run decides: {instead}."
    size = f"{doing} takes {_size(worst)} of {room}" if doing else f"{_size(worst)} of {room}"
    also = f", and training {_size(price.process)}" if doing and _trains_too_much(price) else ""
    return f"{where} does not fit: {size}{also}; it {shortfall(candidate)}."


def _size(size: Interval) -> str:
    return f"{format_bytes(size.value)} a GPU (at most {format_bytes(size.high)})"


def _doing(taken: Taken, price: Price) -> str | None:
    """What takes the most, where that is not training itself."""
    doing = beside_training(price)
    return f"evaluating {taken.recipe.evaluation_batch} rows at a time" if doing == "evaluating" else doing


def _trains_too_much(price: Price) -> bool:
    """Whether training alone does not fit either."""
    share = price.tightest
    return share.process.high > share.budget_bytes - share.headroom_bytes


def _change(correction: Correction | None) -> str:
    if correction is None:
        return "nothing that was tried makes it fit: fewer tokens at a time, QLoRA, sharding, offload"
    price = correction.price
    size = f"at most {format_bytes(price.tightest.worst_phase.high)} a GPU by {price.evidence}"
    speed = f"about {price.tokens_per_second.value:,.0f} tokens/s"
    learned = "; it changes what is learned" if correction.changes_learning else "; what is learned stays the same"
    return f"it fits with {', '.join(correction.changes)}: {size}, {speed}{learned}"
