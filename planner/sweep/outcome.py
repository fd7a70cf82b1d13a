"""From how a job ended to what a sweep keeps of it, and to the numbers that the study compares."""

import math
from collections.abc import Sequence
from dataclasses import replace

from estimators.outcome import EVALUATION, End, Outcome, Result
from planner.sweep.result import Expected, Trial

MOST_LOSSES = 500
"""Kept of one trial, evenly spaced: a curve needs no more."""
WORST = {"loss": 20.0, "vram_bytes": 0.0, "tokens_per_second": 0.0}
"""What stands in the study for a figure that a trial did not come to have; a constraint says that it is none. (A loss
of 20 is a guess among 485 million words.)"""

BAD_INPUT = ("BadInput: ", "UnknownName: ")
"""How a job's evidence begins whose input was refused (see runners/ends.py)."""


def bad_input(end: End) -> str:
    """What is wrong with the input, as a job's own process said it; empty: the job ended otherwise."""
    if end.outcome is not Outcome.FAILED:
        return ""
    return next((end.evidence.removeprefix(name) for name in BAD_INPUT if end.evidence.startswith(name)), "")


def concerns_all(end: End) -> str:
    """As `bad_input`, where every trial would end so; a metric that raises may do so of one model's answers alone."""
    return "" if end.phase == EVALUATION else bad_input(end)


def trial_of(
    number: int, expected: Expected, result: Result, *, place: str, repeat: bool, hopeless: str, folder: str, job: str,
    first: bool = False,
) -> Trial:  # fmt: skip
    """What is kept of a job that ended."""
    learning = result.learning
    losses = tuple(loss for loss in learning.losses if math.isfinite(loss)) if learning else ()
    loss = learning.loss if learning else None
    if learning and not hopeless and (learning.hopeless or (loss is not None and not math.isfinite(loss))):
        hopeless = "its loss is no number"
    return Trial(
        number=number,
        configuration=expected.configuration,
        recipe=expected.recipe,
        seed=expected.seed,
        place=place,
        outcome=Outcome.OK if hopeless else result.end.outcome,
        evidence=hopeless or result.end.evidence,
        seconds=result.seconds,
        loss=loss if loss is not None and math.isfinite(loss) else None,
        untrained_loss=_finite(learning.untrained_loss if learning else None),
        score=_finite(learning.score if learning else None),
        vram_bytes=_vram_bytes(result),
        tokens_per_second=result.tokens_per_second,
        step_seconds=result.step_seconds,
        hopeless=hopeless,
        repeat=repeat,
        expected_seconds=expected.seconds,
        expected_vram_bytes=expected.vram_bytes,
        folder=folder,
        job=job,
        losses=losses[:: max(1, -(-len(losses) // MOST_LOSSES))],
        notes=result.notes,
        first=first,
    )


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _vram_bytes(result: Result) -> int | None:
    """Of the worst rank: as the driver shows its process, or what torch reserved where the driver does not tell."""
    peaks = [rank.peak("process_bytes") or rank.peak("peak_reserved_bytes") for rank in result.ranks]
    return max((peak for peak in peaks if peak is not None), default=None)


def values_of(
    trial: Trial, objectives: Sequence[str], budget_bytes: int | None
) -> tuple[tuple[float, ...] | None, dict[str, float]]:
    """A trial's values and its constraints, which hold at zero and below; no values: it says nothing, and failed.

    Out of memory is a result: not feasible, by as much as was expected to be missing.
    """
    values = [getattr(trial, name) for name in objectives]
    if not (trial.ok or trial.out_of_memory or trial.hopeless) or (trial.ok and None in values):
        return None, {}
    worst = WORST | {"vram_bytes": float(budget_bytes or 0)}
    filled = tuple(float(worst[name] if v is None else v) for name, v in zip(objectives, values, strict=True))
    constraints = {"learns": 1.0 if trial.hopeless else -1.0}
    if trial.out_of_memory:
        missing = (trial.expected_vram_bytes or 0) / budget_bytes - 1.0 if budget_bytes else 0.0
        constraints["fits"] = max(missing, 0.01)
    elif budget_bytes and trial.vram_bytes:
        constraints["fits"] = trial.vram_bytes / budget_bytes - 1.0
    else:
        constraints["fits"] = -1.0
    return filled, constraints


def complete(trial: Trial, objectives: Sequence[str]) -> Trial:
    """The same, but that one which ended well without what is compared has failed."""
    absent = [name for name in objectives if getattr(trial, name) is None]
    if not trial.ok or not absent:
        return trial
    return replace(trial, outcome=Outcome.FAILED, evidence=f"it ended without a figure for {', '.join(absent)}")
