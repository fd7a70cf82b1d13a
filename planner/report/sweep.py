"""A sweep as its user meets it: live while it runs; at its end every trial, which recipe to use and why, what next."""

import shlex
from collections.abc import Iterator, Sequence
from contextlib import ExitStack

from estimators.units import format_bytes, format_seconds
from planner.report.figures import clean, in_short, number_of, rate
from planner.report.live import Show
from planner.report.page import BLANK, Line, Span, labelled, paragraph, title
from planner.report.paint import page_width, show
from planner.report.stream import Stream
from planner.report.telling import configuration_of, recipe_command
from planner.report.trials import trials_table
from planner.sweep.result import Event, Screened, Sweep, Trial

WHY = {"estimate": "cannot fit by estimate", "dominated": "take no less than what ran out of memory",
       "budget": "time was up", "illegal": "cannot be run"}  # fmt: skip
MOST_SHOWN = 6
"""Of the configurations that one reason kept from being launched."""


class Screenplay:
    """What a person, or a program, is told of a sweep from its start to its end."""

    def __init__(self, *, as_json: bool = False, quiet: bool = False) -> None:
        self._stream = Stream() if as_json else None
        self._quiet = quiet
        self._show: Show | None = None
        self._held = ExitStack()

    def __enter__(self) -> "Screenplay":
        if self._stream is None and not self._quiet:
            self._show = self._held.enter_context(Show())
        return self

    def __exit__(self, *error: object) -> None:
        self._held.close()

    def hear(self, event: Event) -> None:
        if self._stream is not None:
            self._stream.hear(event)
        elif self._show is not None:
            self._show.hear(event)

    def close(self, sweep: Sweep) -> None:
        """The result, once the table is gone."""
        if self._stream is not None:
            self._stream.close(sweep)
        else:
            page = sweep_page(sweep, page_width())
            show(_in_short(sweep, page_width()) if self._quiet else page)


def sweep_page(sweep: Sweep, width: int) -> list[Line]:
    """The verdict, the trials, the recipe, what was not launched, and how to go on."""
    page = _verdict(sweep, width)
    if sweep.trials:
        page += trials_table(sweep, width)
    if sweep.recommendation is not None:
        trial = sweep.trial(sweep.recommendation.number)
        page += [*title("The recipe", f"of trial {trial.number}", width), *labelled(_recipe(trial), width)]
    if bad := list(_bad_ends(sweep)):
        page += [*title("What happened"), *labelled(bad, width)]
    if sweep.screened:
        page += [*title("Not launched"), *labelled(_screened(sweep.screened), width)]
    return [*page, *title("Next"), *_next(sweep, width), BLANK]


def _in_short(sweep: Sweep, width: int) -> list[Line]:
    """The verdict, what was not launched, and the next commands."""
    return [*_verdict(sweep, width), *labelled(_screened(sweep.screened), width), *_next(sweep, width)]


def _verdict(sweep: Sweep, width: int) -> list[Line]:
    text, style = _answer(sweep)
    ended = len(sweep.trials)
    known = number_of(ended + sweep.unfinished, "trial")
    so_far = f"{ended} of {known}, so far: " if sweep.unfinished and ended else ""
    page = paragraph(f"{clean(sweep.terms.model)}: {so_far}{text}", width, style)
    if sweep.interrupted:
        page += paragraph("Interrupted: what ran is kept.", width, "warn")
    return page


def _answer(sweep: Sweep) -> Span:
    if sweep.recommendation is not None:
        trial = sweep.trial(sweep.recommendation.number)
        name = configuration_of(trial.configuration.name, trial.configuration.alpha)
        return f"use {name}, {clean(sweep.recommendation.why)}.", "bold"
    if not sweep.trials and any(one.kind == "estimate" for one in sweep.screened):
        return "nothing fits by estimate, so nothing was launched.", "bad"
    if not sweep.trials:
        return "no trial has ended yet.", "warn"
    if sweep.out_of_memory == len(sweep.trials):
        return "every trial ran out of memory.", "bad"
    return "no trial ended well, so there is nothing to recommend.", "bad"


def _recipe(trial: Trial) -> Iterator[tuple[str, str]]:
    recipe, one = trial.recipe, trial.configuration
    yield "method", configuration_of(one.name, one.alpha)
    if one.rank:
        targets = recipe.adapter.targets
        yield "adapter", f"on {clean(targets if isinstance(targets, str) else ', '.join(targets))}"
    yield "mechanics", in_short(recipe)
    if trial.loss is not None and trial.untrained_loss is not None:
        yield "learned", f"held-out loss {trial.untrained_loss:.4f} untrained, {trial.loss:.4f} after {len_of(trial)}"
    if trial.score is not None:
        yield "score", f"{trial.score:.4g}"
    took = [] if trial.vram_bytes is None else [format_bytes(trial.vram_bytes)]
    took += [] if trial.tokens_per_second is None else [f"{rate(trial.tokens_per_second)} tokens/s"]
    if took:
        yield "measured", ", ".join(took)


def len_of(trial: Trial) -> str:
    return number_of(len(trial.losses), "step") if trial.losses else "training"


def _bad_ends(sweep: Sweep) -> Iterator[tuple[str, str]]:
    for trial in sweep.trials:
        said = trial.hopeless or ("" if trial.ok else trial.evidence or trial.outcome.value)
        if text := "; ".join(part for part in (said, *trial.notes) if part):
            yield f"trial {trial.number}", clean(text)
    for note in sweep.notes:
        yield "note", clean(note)


def _screened(screened: Sequence[Screened]) -> Iterator[tuple[str, str]]:
    """By reason, with the reason of the first in full."""
    for kind, words in WHY.items():
        these = [one for one in screened if one.kind == kind]
        if these:
            names = [clean(one.configuration.name) for one in these[:MOST_SHOWN]]
            more = f" and {len(these) - MOST_SHOWN} more" if len(these) > MOST_SHOWN else ""
            yield words, f"{'; '.join(names)}{more}: {clean(these[0].reason)}"


def _next(sweep: Sweep, width: int) -> list[Line]:
    """Commands stand on lines of their own, so that they can be copied."""
    page: list[Line] = []
    if sweep.recommendation is not None:
        trial = sweep.trial(sweep.recommendation.number)
        page += _command(_what_for(sweep), recipe_command(trial, *sweep.options, "--emit", "run"))
    if sweep.unfinished:
        left = number_of(sweep.unfinished, "trial")
        page += paragraph(f"{left} left: the same command goes on in {clean(sweep.folder)}.", width, indent=2)
    page += _command("look at every trial (pip install optuna-dashboard)", ["optuna-dashboard", sweep.storage])
    where = f"study {clean(sweep.study)}, jobs and logs in {clean(sweep.folder)}; {_time(sweep)}"
    return [*page, *paragraph(where, width, "dim", indent=2)]


def _what_for(sweep: Sweep) -> str:
    """A sweep on the CPU does not know which GPU its recipe is for."""
    here = " on a GPU (name yours), in float32 as here" if sweep.vram_budget_bytes is None else ""
    return f"write the files that run it{here}"


def _command(what: str, words: Sequence[str]) -> list[Line]:
    return [((f"  {what}", "dim"),), ((f"    {clean(shlex.join(words))}", "bold"),)]


def _time(sweep: Sweep) -> str:
    if sweep.trials and sweep.resumed == len(sweep.trials) and not sweep.unfinished:
        return f"nothing was left to run: an earlier command ended {number_of(sweep.resumed, 'trial')}"
    said = "" if sweep.expected_seconds is None else f" (expected: {format_seconds(sweep.expected_seconds)})"
    before = f", {sweep.resumed} of the trials by an earlier command" if sweep.resumed else ""
    return f"took {format_seconds(sweep.seconds)}{said}, {sweep.own_seconds:.1f} s of it between trials{before}"
