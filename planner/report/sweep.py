"""A sweep as its user meets it: live while it runs; at its end every trial, which recipe to use and why, what next."""

import shlex
from collections.abc import Iterator, Sequence
from contextlib import ExitStack

from estimators.units import format_bytes, format_seconds
from planner.report.figures import clean, count, duration, gib, in_short, joined, number_of, rate
from planner.report.live import Show
from planner.report.measure import signed
from planner.report.page import BLANK, Column, Line, Span, labelled, paragraph, shown, table, title
from planner.report.paint import page_width, show
from planner.report.stream import Stream, perplexity
from planner.report.telling import configuration_of, end_of, recipe_command
from planner.sweep.result import Event, Screened, Sweep, Trial

METHOD, RATE, BATCH, OFF, PERPLEXITY = "method", "lr", "batch", "off", "perplexity"
COLUMNS = (
    Column(title="trial", right=True, style="dim"),
    Column(title=METHOD),
    Column(title="rank", right=True),
    Column(title="alpha", right=True),
    Column(title=RATE, right=True),
    Column(title=BATCH, right=True, vital=False),
    Column(title="loss", right=True),
    Column(title="±", right=True, style="dim"),
    Column(title=PERPLEXITY, right=True, vital=False),
    Column(title="GiB", right=True),
    Column(title=OFF, right=True, style="dim", vital=False),
    Column(title="tokens/s", right=True),
    Column(title="took", right=True),
    Column(title=OFF, right=True, style="dim", vital=False),
    Column(title=""),
)
WHY = {"estimate": "cannot fit by estimate", "dominated": "take no less than what ran out of memory",
       "budget": "time was up", "illegal": "cannot be run"}  # fmt: skip
UNKNOWN = ("", "-", ("", ""))
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
        page += _trials(sweep, width)
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


def _trials(sweep: Sweep, width: int) -> list[Line]:
    """The table, in the order of the space. What all trials share is said once."""
    trials = sorted(sweep.trials, key=_place_in_space)
    alike = {name for name, values in _shared(trials).items() if len(values) == 1}
    rows = [_row(sweep, trial) for trial in trials]
    kept = [
        number for number, column in enumerate(COLUMNS)
        if column.title not in alike and any(row[number] not in UNKNOWN for row in rows)
    ]  # fmt: skip
    columns, cells = [COLUMNS[number] for number in kept], [[row[number] for number in kept] for row in rows]
    page = title("Trials", _terms(sweep, trials, alike), width) + table(columns, cells, width)
    return [*page, *paragraph(_legend(sweep, shown(columns, cells, width)), width, "dim", indent=2)]


def _place_in_space(trial: Trial) -> tuple[object, ...]:
    one = trial.configuration
    return one.method, one.rank, one.learning_rate, str(one.targets), trial.repeat, trial.number


def _shared(trials: Sequence[Trial]) -> dict[str, set[object]]:
    return {
        METHOD: {trial.configuration.method for trial in trials},
        RATE: {trial.configuration.learning_rate for trial in trials},
        BATCH: {trial.recipe.micro_batch for trial in trials},
    }


def _row(sweep: Sweep, trial: Trial) -> list[str | Span]:
    one, ok = trial.configuration, trial.ok
    return [
        str(trial.number),
        clean(one.method),
        str(one.rank) if one.rank else "-",
        str(one.alpha) if one.rank else "-",
        f"{one.learning_rate:.3g}",
        f"{trial.recipe.micro_batch} × {trial.recipe.gradient_accumulation}",
        "-" if trial.loss is None else f"{trial.loss:.4f}",
        _noise(sweep, trial),
        "-" if (known := perplexity(trial.loss)) is None else f"{known:.4g}",
        "-" if trial.vram_bytes is None else gib(trial.vram_bytes),
        _off(trial.expected_vram_bytes, trial.vram_bytes if ok else None),
        "-" if trial.tokens_per_second is None else rate(trial.tokens_per_second),
        duration(trial.seconds),
        _off(trial.expected_seconds, trial.seconds if ok else None),
        _mark(sweep, trial),
    ]


def _noise(sweep: Sweep, trial: Trial) -> str:
    """Half of what the seeds of the leader span, beside the leader."""
    noise = sweep.noise
    known = noise is not None and noise.number == trial.number and len(noise.losses) > 1
    return f"{noise.spread / 2:.4f}" if noise is not None and known else ""


def _off(said: float | None, truth: float | None) -> str:
    return "-" if said is None or not truth else signed(said / truth - 1)


def _mark(sweep: Sweep, trial: Trial) -> Span:
    if sweep.recommendation is not None and sweep.recommendation.number == trial.number:
        return "use this" + (", front" if trial.number in sweep.front else ""), "good"
    if trial.repeat and trial.ok:
        return f"seed {trial.seed}", "dim"
    if trial.number in sweep.front:
        return "front", "good"
    return ("", "") if trial.ok and not trial.notes else end_of(trial)


def _terms(sweep: Sweep, trials: Sequence[Trial], alike: set[str]) -> str:
    terms, first = sweep.terms, trials[0]
    parts = [f"{terms.steps} steps, {count(terms.tokens)} tokens each"]
    parts += [clean(first.configuration.method)] * (METHOD in alike)
    parts += [f"learning rate {first.configuration.learning_rate:.3g}"] * (RATE in alike)
    parts += [f"batch {first.recipe.micro_batch} × {first.recipe.gradient_accumulation}"] * (BATCH in alike)
    return ", ".join(parts)


def _legend(sweep: Sweep, columns: Sequence[str]) -> str:
    """What the columns that are shown mean."""
    objectives = {"loss": "held-out loss", "vram_bytes": "memory", "tokens_per_second": "speed"}
    front = joined(tuple(objectives.get(name, name) for name in sweep.objectives))
    untrained = next((trial.untrained_loss for trial in sweep.trials if trial.untrained_loss is not None), None)
    seeds = len(sweep.noise.losses) if sweep.noise is not None else 0
    said = [
        f"±: half of what {seeds} seeds of the leader span." if "±" in columns and seeds else "",
        "" if untrained is None else f"Untrained: {untrained:.4f}.",
        "GiB: the measured peak of the worst GPU." if "GiB" in columns else "",
        "Off: the estimate against what was measured." if OFF in columns else "",
        f"Front: no other trial is as good in {front} and better in one." if sweep.front else "",
        "Perplexity compares only models of one tokenizer." if PERPLEXITY in columns else "",
    ]
    return " ".join(part for part in said if part)


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
        page += _command("write the files that run it", recipe_command(trial, *sweep.options, "--emit", "run"))
    if sweep.unfinished:
        left = number_of(sweep.unfinished, "trial")
        page += paragraph(f"{left} left: the same command goes on in {clean(sweep.folder)}.", width, indent=2)
    page += _command("look at every trial", ["optuna-dashboard", sweep.storage])
    where = f"study {clean(sweep.study)}, jobs and logs in {clean(sweep.folder)}; {_time(sweep)}"
    return [*page, *paragraph(where, width, "dim", indent=2)]


def _command(what: str, words: Sequence[str]) -> list[Line]:
    return [((f"  {what}", "dim"),), ((f"    {clean(shlex.join(words))}", "bold"),)]


def _time(sweep: Sweep) -> str:
    said = "" if sweep.expected_seconds is None else f" (expected: {format_seconds(sweep.expected_seconds)})"
    before = f", {sweep.resumed} of the trials by an earlier command" if sweep.resumed else ""
    return f"took {format_seconds(sweep.seconds)}{said}, {sweep.own_seconds:.1f} s of it between trials{before}"
