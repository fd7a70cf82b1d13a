"""Recipes that are to be priced: the question that is asked of all of them, and the answer for each."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

from estimators.document import from_document
from estimators.errors import BadInput, PlanError
from estimators.hardware import Cluster
from estimators.model import ModelSpec
from estimators.models import load_config, load_model
from estimators.placement import used_cluster
from estimators.price import Price
from estimators.pricing import price
from estimators.recipe import Recipe

if TYPE_CHECKING:
    from planner.cap import UnderCap
    from runners.dry.tracer import DryRuns


@dataclass(frozen=True, slots=True, kw_only=True)
class Priced:
    """A recipe's place in the input, and its price, or why it has none."""

    where: str
    recipe: Recipe | None = None
    price: Price | None = None
    under_cap: "UnderCap | None" = None
    note: str | None = None
    """Why the price is the formula's."""
    error: str | None = None
    bug: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is asked of every recipe alike; a model given as a path is read once, and one object is what the estimators
    remember."""

    cluster: Cluster
    limits: Mapping[str, Any]
    dry: bool
    """By dry run, where one can be made."""
    insist: bool
    """Not by formula where none can be made."""
    cap_bytes: int | None = None
    model: Callable[[str], ModelSpec] = field(default_factory=lambda: cache(load_model))
    runs: "Callable[[str], DryRuns]" = field(default_factory=lambda: cache(_runs))


def _runs(model: str) -> "DryRuns":
    from runners.dry.tracer import DryRuns

    return DryRuns(config=load_config(model))


def answer_to(where: str, document: object, question: Question) -> Priced:
    """The price of a document; an error that stands for one is passed on. Never raises."""
    try:
        if isinstance(document, BadInput):
            raise document
        recipe = from_document(document)
        return _priced(where, recipe, question.model(recipe.model), question)
    except PlanError as error:
        return Priced(where=where, error=str(error))
    except Exception as error:  # one recipe's trouble must not cost the others their answer
        return Priced(where=where, error=f"{type(error).__name__}: {error}: this is a bug in plan", bug=True)


def _priced(where: str, recipe: Recipe, model: ModelSpec, question: Question) -> Priced:
    """By dry run where it is asked for and possible, else by formula."""
    note = None
    if question.dry:
        from planner.dry import DryTracer

        runs = question.runs(recipe.model)
        try:
            cost = price(model, recipe, question.cluster, **question.limits, tracer=DryTracer(runs))
            return Priced(where=where, recipe=recipe, price=cost, under_cap=_under_cap(cost, recipe, question, runs))
        except BadInput as error:
            if question.insist:
                raise
            note = str(error)
    cost = price(model, recipe, question.cluster, **question.limits)
    return Priced(where=where, recipe=recipe, price=cost, under_cap=_under_cap(cost, recipe, question), note=note)


def _under_cap(cost: Price, recipe: Recipe, question: Question, runs: "DryRuns | None" = None) -> "UnderCap | None":
    if question.cap_bytes is None:
        return None
    from planner.cap import under_cap

    device = used_cluster(question.cluster, recipe.parallelism.devices).gpus[0].device
    return under_cap(cost, recipe, device, question.cap_bytes, runs)
