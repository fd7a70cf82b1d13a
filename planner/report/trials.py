"""The table of a sweep's trials: in the order of the space, what all of them share said once."""

from collections.abc import Sequence

from planner.report.figures import clean, count, duration, gib, joined, rate
from planner.report.measure import signed
from planner.report.page import Column, Line, Span, paragraph, shown, table, title
from planner.report.stream import perplexity
from planner.report.telling import end_of
from planner.sweep.result import Sweep, Trial
from planner.sweep.space import word_of

METHOD, RATE, BATCH, OFF, PERPLEXITY = "method", "lr", "batch", "off", "perplexity"
COLUMNS = (
    Column(title="trial", right=True, style="dim"),
    Column(title=METHOD),
    Column(title="rank", right=True),
    Column(title="alpha", right=True),
    Column(title=RATE, right=True),
    Column(title="with", vital=False),
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
APART = {"targets": "", "dropout": "dropout ", "loss": "loss "}
UNKNOWN = ("", "-", ("", ""))
MOST_LETTERS = 14
"""Of the layers of a row."""


def trials_table(sweep: Sweep, width: int) -> list[Line]:
    """The table under its title, with what its columns mean below it."""
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
        _apart(sweep, trial),
        f"{trial.recipe.micro_batch} × {trial.recipe.gradient_accumulation}",
        "-" if trial.loss is None else f"{trial.loss:.4f}",
        _noise(sweep, trial),
        "-" if (known := perplexity(trial.loss)) is None else f"{known:.4g}",
        "-" if trial.vram_bytes is None else gib(trial.vram_bytes),
        _off(trial.expected_vram_bytes, trial.vram_bytes if ok else None),
        "-" if trial.tokens_per_second is None else rate(trial.tokens_per_second),
        duration(trial.seconds),
        _off(_foretold(trial), trial.seconds if ok else None),
        _mark(sweep, trial),
    ]


def _apart(sweep: Sweep, trial: Trial) -> str:
    """What else tells it from its neighbours, where trials differ in it."""
    found = []
    for name, words in APART.items():
        if len({getattr(one.configuration, name) for one in sweep.trials}) > 1:
            value = clean(word_of(getattr(trial.configuration, name))).replace("_proj", "")
            found.append(words + (value if len(value) <= MOST_LETTERS else f"{value[:MOST_LETTERS]}…"))
    return ", ".join(found)


def _noise(sweep: Sweep, trial: Trial) -> str:
    """Half of what the seeds of the leader span, beside the leader."""
    noise = sweep.noise
    known = noise is not None and noise.number == trial.number and len(noise.losses) > 1
    return f"{noise.spread / 2:.4f}" if noise is not None and known else ""


def _foretold(trial: Trial) -> float | None:
    """Of how long it took; None where nothing was priced, and for the first of a place, which may wait for imports."""
    return None if trial.first or trial.expected_vram_bytes is None else trial.expected_seconds


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
