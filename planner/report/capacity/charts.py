"""What the charts of the page are drawn from: small tables of numbers, and no markup."""

from typing import Any

from estimators.units import GIB
from planner.capacity.decision import Decision
from planner.capacity.report import Report
from planner.capacity.setups import Setup
from planner.report.capacity.cells import has_length
from planner.report.capacity.sections import memory_setups
from planner.report.figures import clean
from planner.report.terminal import TERMS


def chart_data(report: Report, shown: list[Setup]) -> dict[str, Any]:
    """All charts of a page; the set-ups are those of its table, in its order."""
    question = report.question
    lengths = {one.sequence_length for one in report.decisions}
    return {
        "money": question.currency if question.basis else None,
        "paid": question.basis,
        "run": has_length(question),
        "deadline": question.deadline_seconds,
        "length": lengths.pop() if len(lengths) == 1 else None,
        "points": [_point(report, one) for one in shown],
        "chosen": [index for index, one in enumerate(shown) if any(one is each.chosen for each in report.decisions)],
        "terms": list(TERMS.values()),
        "bars": [bar for decision in report.decisions for bar in _bars(report, decision)],
        "sweep": _sweep(report),
        "runs": _runs(report),
    }


def _point(report: Report, setup: Setup) -> list[float | None]:
    """Seconds and cost of the run, or of a million tokens, each with its range; without a price the GPU-hours."""
    paid = setup.bill(report.question.basis)
    per_token = setup.price.step_seconds.scaled(1 / setup.candidate.recipe.tokens_per_step)
    seconds = setup.seconds or per_token.scaled(1e6)
    cost = (paid.per_run or paid.per_million_tokens) if paid else None
    if report.question.basis is None:
        cost = seconds.scaled(setup.gpus / 3600)
    ends = [seconds.value, seconds.low, seconds.high]
    return [_short(one) for one in (*ends, *((cost.value, cost.low, cost.high) if cost else (None, None, None)))]


def _bars(report: Report, decision: Decision) -> list[list[Any]]:
    """Memory by term of every method on every card, at the sequence length that is decided for: the model, the method,
    where, the terms, the total, its upper end, what the card gives, and the verdict."""
    return [
        [
            decision.work.model.name,
            one.method,
            one.name,
            [_gib(one.price.terms.get(name, 0)) for name in TERMS],
            _gib(one.price.process.value),
            _gib(one.price.tightest.worst_phase.high),
            _gib(one.price.tightest.budget_bytes),
            one.price.verdict,
        ]
        for method in dict.fromkeys(option.method for option in decision.options)
        for one in memory_setups(decision, report.setups, method)
    ]


def _gib(size_bytes: float) -> float:
    """Whole numbers stay short: a page has thousands of them."""
    return round(size_bytes / GIB, 1) or 0


def _sweep(report: Report) -> list[dict[str, Any]]:
    if report.swept is None:
        return []
    swept = report.swept
    return [
        {"name": f"trial {one.number}: {clean(one.configuration.name)}", "loss": one.loss,
         "gib": one.vram_bytes / GIB if one.vram_bytes else None, "speed": one.tokens_per_second,
         "standing": swept.standing(one), "recommended": one.number == swept.recommended}
        for one in swept.trials
        if one.ok and one.loss is not None
    ]  # fmt: skip


def _runs(report: Report) -> list[dict[str, Any]]:
    if report.history is None:
        return []
    return [
        {"name": f"{clean(run.entry.recipe.model)} on {clean(run.entry.gpu)}",
         "memory": run.memory.error if run.memory else None, "step": run.step.error if run.step else None}
        for run in report.history.runs
    ]  # fmt: skip


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")
