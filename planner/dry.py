"""Dry runs as the planner asks for them: of the finalists of a plan, and of recipes that are to be priced."""

import json
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from estimators.calibration import DEFAULT
from estimators.document import to_document
from estimators.errors import BadInput
from estimators.hardware import Cluster, Device
from estimators.model import ModelSpec
from estimators.models import Config
from estimators.recipe import Recipe
from estimators.traced import Traced
from estimators.units import format_bytes
from planner.best import could_fit
from planner.confirm import Confirmation, confirm
from planner.goal import Goal
from planner.plan import Candidate
from planner.quote import quote
from planner.words import method_words

if TYPE_CHECKING:
    from planner.report.progress import Progress
    from runners.dry.tracer import DryRuns

INSTALL = "pip install 'finetune-plan[train]'"


class DryTracer:
    """A tracer that remembers its last dry run, and whether any had to be made anew. Every failure is BadInput: a plan
    can do without a dry run, whatever the libraries do."""

    def __init__(self, runs: "DryRuns") -> None:
        self.runs = runs
        self.last: Traced | None = None
        self.made = 0
        self.seconds = 0.0

    def __call__(self, recipe: Recipe, device: Device) -> Traced:
        started = time.perf_counter()
        try:
            traced = self.runs(recipe, device)
        except BadInput:
            raise
        except Exception as error:
            raise BadInput(_own_words(error)) from error
        taken = time.perf_counter() - started
        self.last, self.seconds = traced, self.seconds + taken
        self.made += taken >= traced.seconds  # what comes from the cache is there sooner than it was made
        return traced


def _own_words(error: Exception) -> str:
    first = (str(error).strip().splitlines() or [""])[0][:200]
    return f"the dry run failed with {type(error).__name__}{': ' if first else ''}{first}"


def confirmation_of(
    goal: Goal,
    model: ModelSpec,
    cluster: Cluster,
    tracer: DryTracer,
    candidates: Sequence[Candidate],
    chosen: Candidate | None,
    progress: "Progress",
) -> Confirmation:
    """Confirm the choice among `candidates`, of which the formula would take `chosen`, and say how it goes."""

    def reprice(candidate: Candidate) -> Candidate:
        cost = quote(goal, model, candidate.recipe, cluster, tracer)
        return replace(candidate, price=cost, traced=tracer.last)

    if not any(could_fit(one.price) for one in candidates):
        return confirm(goal, candidates, reprice)  # there is nothing to ask, and nothing to say of it
    formula = _in_short(chosen) if chosen else "nothing is sure to fit"
    progress.show(f"formula: {formula}; confirming by dry run, a few seconds …")
    confirmation = confirm(goal, candidates, reprice)
    if confirmation.disagreements:
        _log(confirmation.disagreements)
    progress.leave(f"dry run: {_in_short(confirmation.chosen)}; {_effort(tracer)}")
    return confirmation


def _in_short(candidate: Candidate | None) -> str:
    if candidate is None:
        return "nothing fits"
    share = candidate.price.tightest
    most = format_bytes(share.worst_phase.high)
    batches = f"in batches of {candidate.recipe.micro_batch}"
    return f"{method_words(candidate.method)}, at most {most} of {format_bytes(share.budget_bytes)}, {batches}"


def _effort(tracer: DryTracer) -> str:
    if not tracer.made:
        return "from earlier dry runs" if tracer.last else "nothing could be dry-run"
    return f"{tracer.made} dry run{'s' if tracer.made > 1 else ''} in {tracer.seconds:.1f} s"


def _log(disagreements: Sequence[tuple[Candidate, Candidate]]) -> None:
    """Keep a line of each, once, beside the traces; where the disk does not let us, nothing is kept."""
    from runners.dry.cache import folder
    from runners.dry.tracer import versions

    path = folder().parent / "disagreements.jsonl"
    lines = [json.dumps(_line(formula, found, versions())) for formula, found in disagreements]
    try:
        known = set(path.read_text(encoding="utf-8").splitlines()) if path.exists() else set()
        new = [line for line in lines if line not in known]
        if new:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a", encoding="utf-8") as file:
                file.write("".join(f"{line}\n" for line in new))
    except (OSError, UnicodeDecodeError):
        pass


def _line(formula: Candidate, found: Candidate, versions: dict[str, str]) -> dict[str, object]:
    return {
        "recipe": to_document(found.recipe),
        "gpus": [share.name for share in found.price.gpus],
        "formula_process_bytes": round(formula.price.process.value),
        "dry_run_process_bytes": round(found.price.process.value),
        "versions": versions,
    }


def tracer_of(config: Config) -> DryTracer:
    from runners.dry.tracer import DryRuns

    return DryTracer(DryRuns(config=config))


def what_is_missing() -> str | None:
    """What a dry run lacks here, and what it would bring; None where it lacks nothing."""
    from importlib.util import find_spec

    if find_spec("torch") is None:  # found out before the module is loaded that makes dry runs
        absent: tuple[str, ...] = ("torch",)
    else:
        from runners.dry.tracer import missing

        absent = missing()
    if not absent:
        return None
    bars = DEFAULT.error_bars
    gain = f"memory within {_most(bars.traced_reserved)} instead of {_most(bars.reserved)}"
    return f"{INSTALL} adds the dry run, which lacks {', '.join(absent)}: {gain}"


def _most(bars: tuple[float, float]) -> str:
    return f"{max(1 - bars[0], bars[1] - 1) * 100:.2g} %"
