"""Sweeps of trials that take a moment: real jobs in real processes, whose child only says that it trained."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from estimators.models import Config, build
from planner.goal import Goal
from planner.rules import load_rules
from planner.sweep.address import address_of
from planner.sweep.appraise import Appraiser, OnCpu
from planner.sweep.ledger import Work
from planner.sweep.result import Event, Sweep
from planner.sweep.run import Order, run
from planner.sweep.space import Space, Terms
from planner.sweep.supervisor import Settings
from runners.executors import Executor
from runners.executors.local import LocalExecutor
from runners.watching import Limits
from tests.runners.tiny_job import CONFIG, STAND_IN

TINY = Config(name="tiny", source="tiny", fields=CONFIG)
TERMS = Terms(model="tiny", steps=4, global_batch=2, sequence_length=32, weights="random", data=None, held_out=None,
              seed=42)  # fmt: skip
QUICK = Limits(total_seconds=30, silent_seconds=20, step_seconds=20, settle_seconds=0.3)
TRAIN = """
work = json.loads((folder / "job.json").read_text())
size, seed, rate = work["recipe"]["adapter"]["rank"], work["seed"], work["recipe"]["learning_rate"]

def learned(loss, losses=(3.0, 2.0)):
    evaluated = [{"step": 0, "loss": 3.0}, {"step": 4, "loss": loss}]
    learning = {"losses": list(losses), "evaluated": evaluated, "tokens": 128}
    leave({**GOOD, "learning": learning})

def out_of_memory():
    fail("torch.OutOfMemoryError", "CUDA out of memory. Tried to allocate 2.00 GiB.")
"""
LEARN = "learned(2.0 - 0.1 * min(size, 16) ** 0.5 + 0.002 * (seed - 42))\n"


def child(script: str) -> Callable[[Path], list[str]]:
    """The command of a child that trains as `script` says, after TRAIN."""
    whole = STAND_IN.replace("import json, os, signal, subprocess, sys, time", "import json, os, sys, time")
    return lambda folder: [sys.executable, "-S", "-I", "-c", whole + TRAIN + script, str(folder)]


def order(folder: Path, *, space: Space | None = None, storage: str | None = None, **changes: Any) -> Order:
    """A sweep of a tiny model's rank on the CPU; `changes` are the settings'."""
    settings = Settings(**({"objectives": ("loss", "tokens_per_second")} | changes))
    return Order(
        space=space or Space(ranks=(4, 8, 16, 32)),
        settings=settings,
        work=Work(terms=TERMS, config=CONFIG),
        folder=folder,
        address=address_of(storage, folder),
    )


def on_cpu() -> OnCpu:
    return OnCpu(Goal(model="tiny"), build(TINY), load_rules(), TERMS)


def sweep(
    one: Order, script: str = LEARN, *, appraiser: Appraiser | None = None, executor: Executor | None = None,
    listen: Callable[[Event], None] = lambda event: None,
) -> Sweep:  # fmt: skip
    """Runs it with children that do what `script` says."""
    places = executor or LocalExecutor((), child=child(script), limits=QUICK)
    return run(one, appraiser or on_cpu(), places, listen)


def told(folder: Path) -> list[dict[str, Any]]:
    """The jobs of a sweep, by their folders."""
    return [json.loads(path.read_text()) for path in sorted(folder.glob("trials/*/job.json"))]
