"""A sweep while it runs: a table that stays in its place on a terminal, and a plain line an event elsewhere."""

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from estimators.outcome import Outcome
from planner.report.figures import clean, duration, gib, number_of, rate
from planner.report.page import BLANK, Column, Line, Span, labelled, paragraph, plain, table
from planner.report.paint import STYLES, encodable, page_width, say, speaks_unicode
from planner.report.progress import SECONDS_BETWEEN
from planner.report.telling import best_of, configuration_of, doing, end_of, in_words
from planner.sweep.result import Event, Finished, Moved, Planned, Retried, Started, Trial
from planner.sweep.space import Configuration

if TYPE_CHECKING:
    from rich.live import Live

LATEST = 5
"""So many of the trials that ended are shown."""
PICTURES_PER_SECOND = 4
COLUMNS = (
    Column(title="place"),
    Column(title="#", right=True, style="dim"),
    Column(title="configuration"),
    Column(title="phase"),
    Column(title="step", right=True),
    Column(title="loss", right=True),
    Column(title="GiB", right=True),
    Column(title="tokens/s", right=True, vital=False),
    Column(title="expected", right=True, style="dim", vital=False),
    Column(title="took", right=True, vital=False),
)


@dataclass(slots=True, kw_only=True)
class Running:
    """A trial that runs, as far as it was heard of."""

    started: Started
    began: float
    phase: str = "starts"
    step: int = 0
    steps: int | None = None
    loss: float | None = None
    vram_bytes: int | None = None
    """At the last look."""
    tokens_per_second: float | None = None
    """So far."""


@dataclass(slots=True, kw_only=True)
class Board:
    """What is known of a sweep at one moment."""

    planned: Planned | None = None
    running: dict[str, Running] = field(default_factory=dict)
    """By place."""
    ended: list[Trial] = field(default_factory=list)
    finished: int = 0
    """With those of earlier commands."""
    best: Trial | None = None
    out_of_memory: int = 0
    waiting: int = 0
    skipped: int = 0
    seconds_left: float | None = None
    """Of those that wait."""
    clock: Callable[[], float] = time.monotonic
    began: float = 0.0

    def hear(self, event: Event) -> None:
        now = self.clock()
        if isinstance(event, Planned):
            self.planned, self.began = event, now
            self.waiting, self.skipped, self.seconds_left = len(event.queue), 0, event.expected_seconds
            self.finished = len(event.finished)
            self.out_of_memory = sum(trial.out_of_memory for trial in event.finished)
        elif isinstance(event, Started):
            self.running[event.place] = Running(started=event, began=now)
            self.waiting = max(self.waiting - 1, 0)
        elif isinstance(event, Moved):
            self._moved(event)
        elif isinstance(event, Retried):
            self.running.pop(event.place, None)
            self.waiting += 1
        elif isinstance(event, Finished):
            self._finished(event, now)
        else:
            self.skipped += 1

    def _moved(self, event: Moved) -> None:
        one = self.running.get(event.progress.place)
        if one is None or one.started.number != event.number:
            return
        told = event.progress
        one.phase, one.step, one.steps = told.phase, told.step, event.steps
        one.loss = told.loss if told.loss is not None else one.loss
        one.vram_bytes, one.tokens_per_second = told.vram_bytes, told.tokens_per_second

    def _finished(self, event: Finished, now: float) -> None:
        self.running = {p: one for p, one in self.running.items() if one.started.number != event.trial.number}
        self.ended.append(event.trial)
        self.finished = event.finished
        self.best, self.waiting, self.out_of_memory = event.best, event.waiting, event.out_of_memory
        self.seconds_left = event.seconds_left

    def lines(self, width: int) -> list[Line]:
        """The table of what runs and what ended last, and how the whole stands."""
        alike, now = self._alike(), self.clock()
        rows = [_running_row(place, one, alike, now) for place, one in sorted(self.running.items())]
        rows += [_ended_row(trial, alike) for trial in reversed(self.ended[-LATEST:])]
        page = table(COLUMNS, rows, width) if rows else paragraph("the first trial is about to start", width, "dim")
        return [*page, BLANK, *labelled(self._state(), width)]

    def _alike(self) -> set[str]:
        """What all configurations of the sweep have in common, as far as these are known: the table is narrow."""
        if self.planned is None or not self.planned.queue:
            return set()
        known = [each.configuration for each in self.planned.queue]
        known += [trial.configuration for trial in self.planned.finished]
        parts = [set(each.name.split(", ")[1:]) for each in known]
        return set.intersection(*parts) if len(parts) > 1 else set()

    def _state(self) -> Iterator[tuple[str, str]]:
        now = self.clock()
        counts = [number_of(self.finished, "trial") + " ended", f"{self.waiting} waiting"]
        counts += [f"{self.out_of_memory} out of memory", f"{self.skipped} not launched"]
        yield "so far", ", ".join(counts)
        if self.best is not None:
            yield "best", best_of(self.best)
        budget = self.planned.budget_seconds if self.planned else None
        if budget is not None:
            yield "budget", f"{duration(max(budget - (now - self.began), 0.0))} left of {duration(budget)}"
        if (left := self._left(now)) is not None:
            end = datetime.now().astimezone() + timedelta(seconds=left)
            yield "expected", f"{duration(left)} more, until {end:%H:%M}"

    def _left(self, now: float) -> float | None:
        """Until what runs and what waits is expected to be over."""
        if self.seconds_left is None:
            return None
        ends = [one.began + (one.started.expected.seconds or 0.0) for one in self.running.values()]
        return max(max(ends, default=now) - now, 0.0) + self.seconds_left


def _short(configuration: Configuration, alike: set[str]) -> str:
    """Its name without what says nothing."""
    name = ", ".join(part for part in configuration.name.split(", ") if part not in alike)
    return configuration_of(name, configuration.alpha)


def _running_row(place: str, one: Running, alike: set[str], now: float) -> list[str | Span]:
    expected = one.started.expected
    return [
        clean(place),
        str(one.started.number),
        _short(expected.configuration, alike),
        (doing(one.phase), "bold"),
        f"{one.step}/{one.steps}" if one.steps else "-",
        "-" if one.loss is None else f"{one.loss:.4f}",
        "-" if one.vram_bytes is None else gib(one.vram_bytes),
        "-" if one.tokens_per_second is None else rate(one.tokens_per_second),
        "-" if expected.vram_bytes is None else gib(expected.vram_bytes),
        duration(now - one.began),
    ]


def _ended_row(trial: Trial, alike: set[str]) -> list[str | Span]:
    done, loss = len(trial.losses), trial.loss
    return [
        (clean(trial.place), "dim"),
        str(trial.number),
        _short(trial.configuration, alike),
        end_of(trial),
        (str(done) if done else "-", "dim"),
        "-" if loss is None else f"{loss:.4f}",
        "-" if trial.vram_bytes is None else gib(trial.vram_bytes),
        "-" if trial.tokens_per_second is None else rate(trial.tokens_per_second),
        "-" if trial.expected_vram_bytes is None else gib(trial.expected_vram_bytes),
        duration(trial.seconds),
    ]


class Show:
    """The sweep on stderr, for a person: from when it is entered until it is left, when the table goes."""

    def __init__(self) -> None:
        self._board, self._lock, self._held = Board(), threading.Lock(), ExitStack()
        self._live: Live | None = None
        self._said = 0.0
        self._last = ""
        """What was said of steps."""

    def __enter__(self) -> "Show":
        if can_redraw():
            self._live = self._held.enter_context(_table(self._picture))
        return self

    def __exit__(self, *error: object) -> None:
        self._held.close()

    def hear(self, event: Event) -> None:
        with self._lock:
            self._board.hear(event)
        if self._live is None and self._is_news(event):
            say(in_words(event))
        elif isinstance(event, (Planned, Retried)) or self._is_bad(event):
            say(in_words(event))  # stays above the table

    def _is_bad(self, event: Event) -> bool:
        return isinstance(event, Finished) and event.trial.outcome is Outcome.FAILED

    def _is_news(self, event: Event) -> bool:
        """Steps are many: one line of them in ten seconds is enough, and none that says the same again."""
        now = time.monotonic()
        if not isinstance(event, Moved):
            return True
        words = in_words(event)
        if now - self._said < SECONDS_BETWEEN or words == self._last:
            return False
        self._said, self._last = now, words
        return True

    def _picture(self) -> list[Line]:
        with self._lock:
            return self._board.lines(page_width(sys.stderr))


def can_redraw() -> bool:
    """Whether stderr is a terminal that can move its cursor."""
    plain_terminal = os.environ.get("TERM", "").lower() in ("", "dumb", "unknown")
    return sys.stderr is not None and sys.stderr.isatty() and not plain_terminal


def _table(picture: Callable[[], list[Line]]) -> "Live":
    """Drawn anew four times a second; without colours where NO_COLOR says so, in ASCII where the terminal is."""
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    colours = not os.environ.get("NO_COLOR")
    stream = sys.stderr  # while the table stands, what is printed there goes above it
    console = Console(file=stream, highlight=False, markup=False, emoji=False, no_color=not colours)

    def drawn() -> Text:
        found = Text(no_wrap=True, overflow="ellipsis")
        for line in picture():
            spans = line if speaks_unicode(stream) else [(encodable(plain(line), stream), "")]
            whole = Text.assemble(*((text, STYLES.get(style, "")) for text, style in spans))
            whole.rstrip()
            found.append_text(whole).append("\n")
        return found

    return Live(get_renderable=drawn, console=console, refresh_per_second=PICTURES_PER_SECOND, transient=True,
                redirect_stdout=False)  # fmt: skip
