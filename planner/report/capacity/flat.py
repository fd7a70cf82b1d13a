"""A capacity report as CSV: one row a set-up, plain numbers with their unit in the column's name."""

import csv
import io

from estimators.price import Interval
from planner.capacity.decision import in_time
from planner.capacity.question import Question
from planner.capacity.report import Report
from planner.capacity.setups import KINDS, Setup
from planner.report.capacity.cells import NO_PRICE, recipe_words

_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")
Value = str | float | int | None


def csv_text(report: Report) -> str:
    """The whole table. A text that a spreadsheet would take for a formula is made one that it does not."""
    file = io.StringIO()
    rows = [_row(report.question, setup) for setup in report.setups]
    names = list(rows[0]) if rows else []
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(names)
    writer.writerows([[safe(value) for value in row.values()] for row in rows])
    return file.getvalue()


def safe(value: Value) -> Value:
    """A text from outside never begins as a formula does."""
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value


def _row(question: Question, setup: Setup) -> dict[str, Value]:
    price, share = setup.price, setup.price.tightest
    row: dict[str, Value] = {
        "model": setup.model.name,
        "method": setup.method,
        "spread": setup.candidate.method,
        "gpu": setup.machine.device.name,
        "gpus": setup.gpus,
        "sequence_length": setup.sequence_length,
        "verdict": price.verdict,
        "evidence": price.evidence,
        **_ends("memory_bytes_a_gpu", price.process, whole=True),
        "budget_bytes_a_gpu": share.budget_bytes,
        "headroom_bytes_a_gpu": share.headroom_bytes,
        "spare_bytes_a_gpu": round(share.spare_bytes),
        "host_bytes": round(price.host.value),
        "disk_bytes": round(price.disk.value),
        **_ends("tokens_per_second", price.tokens_per_second),
        **_ends("seconds", setup.seconds),
        **_ends("gpu_hours", setup.gpu_hours),
        "deadline": in_time(question, setup),
        "currency": question.currency,
    }
    for kind in KINDS:
        row |= _paid(setup, kind.replace(" ", "_"))
    return {**row, "recipe": recipe_words(setup)}


def _paid(setup: Setup, name: str) -> dict[str, Value]:
    paid = next((one for one in setup.bills if one.kind.replace(" ", "_") == name), None)
    if paid is None:
        keys = ("an_hour", "a_run", "a_run_low", "a_run_high", "a_million_tokens")
        nothing: dict[str, Value] = {f"{name}_{key}": NO_PRICE for key in keys}
        return {**nothing, f"{name}_machine": ""}
    return {
        f"{name}_an_hour": paid.per_hour,
        **_ends(f"{name}_a_run", paid.per_run),
        f"{name}_a_million_tokens": paid.per_million_tokens.value,
        f"{name}_machine": paid.offer.name if paid.offer else "",
    }


def _ends(name: str, interval: Interval | None, *, whole: bool = False) -> dict[str, Value]:
    names = (name, f"{name}_low", f"{name}_high")
    if interval is None:
        return dict.fromkeys(names)
    values = (interval.value, interval.low, interval.high)
    return {key: round(value) if whole else value for key, value in zip(names, values, strict=True)}
