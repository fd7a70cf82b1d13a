"""Questions and reports for the tests of `plan report`."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

from estimators.catalogue import find_device
from estimators.models import load_model
from planner.capacity.lengths import Lengths
from planner.capacity.make import make_report
from planner.capacity.prices import Sheet, read_sheet
from planner.capacity.question import Machine, Question, Work
from planner.capacity.report import Report
from planner.goal import Goal
from planner.rules import load_rules

TODAY = date(2026, 11, 22)
COLUMNS = "InstanceType,AcceleratorName,AcceleratorCount,vCPUs,MemoryGiB,Price,SpotPrice,Region"
HEAD = "# date: 2026-11-20\n# source: a test\n# provider: cloud\n"
ROWS = (
    "one,H100,1,16,200,3.00,1.00,here",
    "eight,H100,8,128,1600,20.00,,here",
    "card,RTX4090,1,8,64,0.50,,there",
)


def sheet(folder: Path, rows: Sequence[str] = ROWS, head: str = HEAD, columns: str = COLUMNS) -> Sheet:
    path = folder / "prices.csv"
    path.write_text("\n".join([head.rstrip("\n"), columns, *rows]).lstrip("\n") + "\n")
    return read_sheet(str(path), TODAY)


def question(
    models: Sequence[str] = ("llama-3.2-1b",),
    gpus: Sequence[str] = ("h100", "rtx-4090"),
    *,
    counts: tuple[int, ...] = (1,),
    lengths: Lengths | None = None,
    methods: tuple[str, ...] | None = None,
    **changes: Any,
) -> Question:
    works = tuple(
        Work(model=load_model(name), goal=Goal(model=name, methods=methods), lengths=lengths) for name in models
    )
    machines = tuple(Machine(device=find_device(name), counts=counts) for name in gpus)
    plain = Question(works=works, machines=machines, sequence_lengths=(2048,), tokens=None if lengths else 10_000_000)
    return replace(plain, **changes)


def report(asked: Question, **changes: Any) -> Report:
    return make_report(asked, load_rules(), today=TODAY, command="plan report --model x", **changes)
