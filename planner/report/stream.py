"""A sweep as JSON, one document a line and an event a document, for a program that follows it.

Each has `schema_version` and `event`, and what belongs to it:

planned      what will be run, in order, what is not launched, what ran before, the time it is expected to take
started      a trial begins: `number`, `place`, `expected`, `attempt`
progress     it goes on: `number`, `place`, `phase`, `step`, `steps`, `loss`, the `vram_bytes` that it holds now, its
             `tokens_per_second` so far, padding included; at most one a second and trial
retried      it was lost, and runs once more: `number`, `place`, `reason`
ended        it is over: `trial`, with the `best` so far, `waiting`, `out_of_memory`, `seconds_left`
skipped      a configuration is not launched: `configuration`, `kind`, `reason`
recommended  the recipe to use: `number`, `why`, `recipe`; missing where no trial ended well
done         the last line: the whole sweep, and `exit_code`

A sweep that cannot go on, such as one whose data no trial can use, ends without the last two: stderr has the line
that says why, and the exit code is an error's.

What is not known is null; a loss that is no number is the text "nan", "inf" or "-inf", as in a job's own files.
"""

import math
import sys
import time
from collections.abc import Callable

from estimators.document import to_document
from estimators.strict import encoded
from planner.report.json import SCHEMA_VERSION, Document, dump
from planner.report.paint import write
from planner.sweep.result import Event, Finished, Moved, PassedOver, Planned, Retried, Started, Sweep

SECONDS_BETWEEN = 1.0
NAMES: dict[type, str] = {
    Planned: "planned", Started: "started", Moved: "progress", Retried: "retried", Finished: "ended",
    PassedOver: "skipped",
}  # fmt: skip


class Stream:
    """Writes events to stdout as they come."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._said: dict[int, tuple[str, float]] = {}
        """Of each trial that runs, its phase when it was last told, and when that was."""

    def hear(self, event: Event) -> None:
        if not isinstance(event, Moved) or self._is_news(event):
            tell(event_document(event))

    def close(self, sweep: Sweep) -> None:
        if sweep.recommendation is not None:
            number = sweep.recommendation.number
            tell(_document("recommended", encoded(sweep.recommendation), recipe_of(sweep, number)))
        tell(_document("done", sweep_document(sweep)))

    def _is_news(self, event: Moved) -> bool:
        now = self._clock()
        phase, before = self._said.get(event.number, ("", -math.inf))
        if phase == event.progress.phase and now - before < SECONDS_BETWEEN and event.progress.step < event.steps:
            return False
        self._said[event.number] = (event.progress.phase, now)
        return True


def tell(document: Document) -> None:
    """One line, at the reader's at once."""
    write(dump(document, indent=None))
    sys.stdout.flush()


def event_document(event: Event) -> Document:
    """An event as one document."""
    body: Document = encoded(event)
    if isinstance(event, Moved):
        progress = body.pop("progress")
        body |= {**progress, "folder": str(progress["folder"])}
    elif isinstance(event, PassedOver):
        body = body["screened"]
    return _document(NAMES[type(event)], body)


def sweep_document(sweep: Sweep) -> Document:
    """The sweep whole, with what is derived from it."""
    body: Document = encoded(sweep)
    perplexities = {trial.number: perplexity(trial.loss) for trial in sweep.trials}
    for trial in body["trials"]:
        trial["perplexity"] = perplexities[trial["number"]]
        trial["on_front"] = trial["number"] in sweep.front
    return {**body, "out_of_memory": sweep.out_of_memory, "exit_code": sweep.exit_code}


def recipe_of(sweep: Sweep, number: int) -> Document:
    return {"recipe": to_document(sweep.trial(number).recipe)}


def perplexity(loss: float | None) -> float | None:
    """None of a loss that is none, or whose perplexity no number holds."""
    if loss is None or not loss < 700:
        return None
    return math.exp(loss)


def _document(event: str, *parts: Document) -> Document:
    body = {name: value for part in parts for name, value in part.items()}
    return {"schema_version": SCHEMA_VERSION, "event": event, **body}
