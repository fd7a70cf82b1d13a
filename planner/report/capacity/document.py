"""A capacity report as one JSON document: bytes, seconds and amounts of money as numbers, `schema_version` first."""

from dataclasses import asdict
from typing import Any

from estimators.document import to_document
from estimators.price import Interval
from planner.capacity.cost import Bill
from planner.capacity.decision import Decision, in_time
from planner.capacity.history import History, Run
from planner.capacity.lengths import PERCENTILES, Lengths
from planner.capacity.prices import Sheet
from planner.capacity.question import Question
from planner.capacity.report import Report
from planner.capacity.setups import Setup, job_tokens
from planner.capacity.swept import Swept
from planner.capacity.words import ranges, verdict
from planner.report.json import SCHEMA_VERSION, Document, fields, finite, model_document, price_document
from planner.sweep.result import Trial


def report_document(report: Report) -> Document:
    question = report.question
    return {
        "schema_version": SCHEMA_VERSION,
        "made": report.today.isoformat(),
        "command": report.command,
        "verdicts": [_decision(question, one) for one in report.decisions],
        "warnings": list(report.warnings),
        "question": _question(question),
        "setups": [setup_document(question, one) for one in report.setups],
        "refused": [{"model": one.model, "gpu": one.device, **fields(one.refusal)} for one in report.refused],
        "data": [_lengths(question, one.lengths) for one in question.works[:1] if one.lengths],
        "prices": [sheet_document(one, report) for one in question.sheets],
        "ownership": asdict(question.ownership) if question.ownership else None,
        "sweep": sweep_document(report.swept) if report.swept else None,
        "measured": history_document(report.history) if report.history else None,
        "assumptions": list(report.assumptions),
        "versions": report.versions,
    }


def setup_document(question: Question, setup: Setup) -> Document:
    """One set-up with its price, its time and what it costs in each way of paying."""
    hours = setup.gpu_hours
    return {
        "model": setup.model.name,
        "gpu": setup.machine.device.name,
        "gpus": setup.gpus,
        "method": setup.method,
        "spread": setup.candidate.method,
        "sequence_length": setup.sequence_length,
        "in_time": in_time(question, setup),
        "tokens_processed": setup.tokens,
        "seconds": _ends(setup.seconds),
        "gpu_hours": _ends(hours),
        "bills": [_bill(one) for one in setup.bills],
        "recipe": to_document(setup.candidate.recipe),
        "price": price_document(setup.price, {}),
        "notes": list(setup.price.notes),
    }


def sheet_document(sheet: Sheet, report: Report) -> Document:
    return {
        "file": sheet.path,
        "source": sheet.source,
        "date": sheet.date.isoformat() if sheet.date else None,
        "age_days": sheet.age_days(report.today),
        "stale": sheet.is_stale(report.today),
        "sample": sheet.sample,
        "currency": sheet.currency,
        "offers": [fields(offer) for offer in sheet.offers],
        "rows_passed_over": sheet.passed_over,
    }


def sweep_document(swept: Swept) -> Document:
    return {
        "path": swept.path,
        "gpu_seconds": swept.gpu_seconds(),
        "recommended": swept.recommended,
        "why": swept.why,
        "front": list(swept.front),
        "trials": [_trial(one) for one in swept.trials],
    }


def history_document(history: History) -> Document:
    figures = {name: history.errors(name) for name in ("memory", "step")}
    summary = {
        name: {"median_error": found[0], "largest_error": found[1], "within_bar": found[2], "of": history.count(name)}
        for name, found in figures.items()
        if found
    }
    return {"store": history.path, "stored": history.stored, "errors": summary,
            "runs": [_run(one) for one in history.runs]}  # fmt: skip


def _decision(question: Question, decision: Decision) -> Document:
    return {
        "model": model_document(decision.work.model),
        "verdict": verdict(question, decision),
        "ranges": ranges(question, decision),
        "sequence_length": decision.sequence_length,
        "chosen": setup_document(question, decision.chosen) if decision.chosen else None,
        "options": [setup_document(question, one) for one in decision.options],
        "methods_that_fit_nowhere": list(decision.unfit),
        "not_told_apart": decision.alike,
    }


def _question(question: Question) -> Document:
    return {
        "models": [work.model.name for work in question.works],
        "gpus": {one.device.name: list(one.counts) for one in question.machines},
        "sequence_lengths": list(question.sequence_lengths),
        "tokens": question.tokens,
        "epochs": question.epochs,
        "deadline_seconds": question.deadline_seconds,
        "objective": question.objective,
        "currency": question.currency,
        "paid": question.basis,
    }


def _bill(bill: Bill) -> Document:
    return {
        "kind": bill.kind,
        "per_hour": bill.per_hour,
        "machine": bill.offer.name if bill.offer else None,
        "per_run": _ends(bill.per_run),
        "per_million_tokens": _ends(bill.per_million_tokens),
    }


def _lengths(question: Question, lengths: Lengths) -> Document:
    length = question.sequence_lengths[0] if question.sequence_lengths else lengths.suggested()
    wanted, padded = job_tokens(question, lengths, length, 8, packing=False)
    return {
        "file": lengths.path,
        "examples": lengths.examples,
        "counted_by": lengths.counted_by,
        "counted": lengths.counted,
        "percentiles": {str(share): lengths.percentile(share) for share in PERCENTILES},
        "suggested_sequence_length": lengths.suggested(),
        "tokens": wanted,
        "tokens_in_padded_batches_of_8": padded,
    }


def _trial(trial: Trial) -> Document:
    recipe = trial.recipe
    return {
        "number": trial.number,
        "configuration": trial.configuration.name,
        "alpha": trial.configuration.alpha,
        "outcome": trial.outcome.value,
        "seconds": trial.seconds,
        "gpus": recipe.parallelism.devices,
        "loss": trial.loss,
        "vram_bytes": trial.vram_bytes,
        "tokens_per_second": trial.tokens_per_second,
    }


def _run(run: Run) -> Document:
    pairs: dict[str, Any] = {"memory": run.memory, "step": run.step}
    found = {
        name: {"predicted": _ends(pair.predicted), "measured": pair.measured, "error": pair.error,
               "within_bar": pair.within} if pair else None
        for name, pair in pairs.items()
    }  # fmt: skip
    return {"job": run.entry.job, "model": run.entry.recipe.model, "gpu": run.entry.gpu, **found}


def _ends(interval: Interval | None) -> Document | None:
    if interval is None:
        return None
    return {"value": finite(interval.value), "interval_95": [finite(interval.low), finite(interval.high)]}
