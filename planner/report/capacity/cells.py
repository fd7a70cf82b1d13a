"""The figures of a capacity report in cells: once for every format that shows them to people."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from estimators.price import Interval
from estimators.units import GIB
from planner.capacity.cost import Kind
from planner.capacity.decision import in_time
from planner.capacity.question import Question
from planner.capacity.setups import KINDS, Setup
from planner.capacity.words import money
from planner.report.figures import clean, duration, error_bar, gib, in_short, rate

NO_PRICE = "no price"
VERDICTS = {"fits": "fits", "tight": "tight", "does not fit": "too small"}


class Cell(NamedTuple):
    """What is shown, and the number to sort by."""

    text: str
    value: float | None = None
    kind: str = "number"
    """ "number", "text", or the verdict that it is."""


class Heading(NamedTuple):
    title: str
    right: bool = True


def kinds_of(question: Question) -> list[Kind]:
    """The ways of paying that a question has prices for; one column says "no price" where there are none."""
    found = [kind for kind in KINDS if _is_priced(question, kind)]
    return found or ["on demand"]


def _is_priced(question: Question, kind: Kind) -> bool:
    if kind == "owned":
        return question.ownership is not None
    return any((offer.spot_per_hour if kind == "spot" else offer.per_hour) for offer in question.offers)


def headings(question: Question, *, several_models: bool) -> list[Heading]:
    """Of the table of set-ups."""
    names = [Heading("model", right=False)] if several_models else []
    names += [Heading("method", right=False), Heading("GPUs", right=False), Heading("tokens a sequence")]
    names += [Heading("verdict", right=False), Heading("GiB a GPU"), Heading("spare GiB"), Heading("tokens/s")]
    names += [Heading("time"), Heading("GPU-hours")] if has_length(question) else []
    unit = "a run" if has_length(question) else "a million tokens"
    names += [Heading(f"{kind}, {unit}") for kind in kinds_of(question)]
    names += [Heading("a million tokens")] if has_length(question) else []
    return [*names, Heading("host GiB"), Heading("by", right=False), Heading("recipe", right=False)]


def row(question: Question, setup: Setup, *, several_models: bool) -> list[Cell]:
    """The cells of a set-up under those headings."""
    price = setup.price
    spare = price.tightest.spare_bytes
    cells = [Cell(clean(setup.model.name), kind="text")] if several_models else []
    cells += [Cell(setup.method, kind="text"), Cell(setup.name, setup.gpus, "text")]
    cells += [
        Cell(f"{setup.sequence_length:,}", setup.sequence_length),
        Cell(VERDICTS[price.verdict], None, price.verdict),
    ]
    cells += [Cell(gib(price.process.value), price.process.value / GIB), Cell(_signed(spare), spare / GIB)]
    cells += [Cell(rate(price.tokens_per_second.value), price.tokens_per_second.value)]
    if has_length(question):
        cells += [_time(question, setup), _hours(setup.gpu_hours)]
    cells += [cost_cell(question, setup, kind) for kind in kinds_of(question)]
    cells += [_per_million(question, setup)] if has_length(question) else []
    cells += [Cell(gib(price.host.value), price.host.value / GIB)]
    return [*cells, Cell(price.evidence, kind="text"), Cell(recipe_words(setup), kind="text")]


def has_length(question: Question) -> bool:
    """Whether the job has a length, so that there is a time and a price of the run."""
    return question.tokens is not None or any(work.lengths for work in question.works)


def recipe_words(setup: Setup) -> str:
    """ "zero3; batch 1 × 2, checkpointing"."""
    spread = setup.candidate.method.partition(" + ")[2]
    return "; ".join(part for part in (spread, in_short(setup.candidate.recipe)) if part)


def cost_cell(question: Question, setup: Setup, kind: Kind) -> Cell:
    paid = setup.bill(kind)
    if paid is None:
        return Cell(NO_PRICE)
    amount = (paid.per_run if has_length(question) and paid.per_run else paid.per_million_tokens).value
    return Cell(money(amount, question.currency), amount)


def band(interval: Interval | None, words: Callable[[float], str]) -> str:
    """ "1.5 h to 3.1 h"."""
    if interval is None:
        return ""
    return f"{words(interval.low)} to {words(interval.high)}"


def spread(interval: Interval | None) -> str:
    return error_bar(interval) if interval else ""


def _per_million(question: Question, setup: Setup) -> Cell:
    paid = setup.bill(question.basis)
    if paid is None:
        return Cell(NO_PRICE)
    return Cell(money(paid.per_million_tokens.value, question.currency), paid.per_million_tokens.value)


def _time(question: Question, setup: Setup) -> Cell:
    if setup.seconds is None:
        return Cell("-")
    late = "" if in_time(question, setup) in ("in time", "no deadline") else " *"
    return Cell(duration(setup.seconds.value) + late, setup.seconds.value)


def _hours(hours: Interval | None) -> Cell:
    return (
        Cell(f"{hours.value:,.3g}" if hours.value < 1000 else f"{hours.value:,.0f}", hours.value)
        if hours
        else Cell("-")
    )


def _signed(size_bytes: float) -> str:
    return gib(size_bytes).replace("-", "−")


def best_first(setups: Sequence[Setup], question: Question) -> list[Setup]:
    """What fits before what does not, then by model, length and cost."""

    def rank(one: Setup) -> tuple[object, ...]:
        paid = one.bill(question.basis)
        per_token = one.price.step_seconds.value / one.candidate.recipe.tokens_per_step * one.gpus
        dear = paid.per_million_tokens.value if paid else float("inf")
        return (not one.fits, dear, per_token) if one.fits else (True, -one.price.tightest.spare_bytes, per_token)

    return sorted(setups, key=rank)
