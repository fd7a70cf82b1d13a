"""The store as a table: what was expected of each run, what it took, and how it ended."""

from collections.abc import Sequence
from datetime import UTC, datetime

from estimators.outcome import Outcome
from estimators.price import Interval
from estimators.recipe import Recipe
from estimators.record import Entry
from estimators.strict import encoded
from planner.report.figures import clean, duration, gib, number_of
from planner.report.json import SCHEMA_VERSION, Document
from planner.report.page import BLANK, Column, Line, Span, labelled, paragraph, table, title

GPU = "GPU"
COLUMNS = (
    Column(title="run", right=True, style="dim"),
    Column(title="when (UTC)", style="dim"),
    Column(title="model"),
    Column(title="method"),
    Column(title=GPU, vital=False),
    Column(title="GiB", right=True),
    Column(title="took", right=True),
    Column(title="off", right=True),
    Column(title="step", right=True),
    Column(title="took", right=True),
    Column(title="off", right=True),
    Column(title="end"),
)
OFF = 0.0005
"""Below this part of the truth an error is none."""
HOW_TO_FILL = "plan measure --model llama-3.2-1b --method lora --weights random"


def history_page(entries: Sequence[Entry], stored: int, path: str, width: int) -> list[Line]:
    """The runs, newest first, then what is to be said of those that ended badly or teach nothing."""
    if not entries:
        return _nothing(stored, path, width)
    alike = len({entry.gpu for entry in entries}) == 1
    columns = [column for column in COLUMNS if not (alike and column.title == GPU)]
    page = table(columns, [_row(entry, alike) for entry in entries], width)
    told = [(f"run {entry.number}", clean(_said(entry))) for entry in entries if _said(entry)]
    page += [*title("What happened"), *labelled(told, width)] if told else []
    shown = f"{len(entries):,} of {number_of(stored, 'run')}" if stored != len(entries) else number_of(stored, "run")
    where = f", on {clean(entries[0].gpu)}" if alike else ""
    note = (
        f"{shown} in {clean(path)}{where}. GiB of the process on the worst GPU, then the step: each as expected and as "
        "it was; off: the estimate against the truth."
    )
    return [*page, BLANK, *paragraph(note, width, "dim")]


def history_document(entries: Sequence[Entry], stored: int, path: str) -> Document:
    """The runs whole, as the store has them, with the errors of their estimates."""
    runs = [{**encoded(entry), "method": method_of(entry.recipe), "errors": errors_of(entry)} for entry in entries]
    return {"schema_version": SCHEMA_VERSION, "store": path, "stored": stored, "runs": runs}


def errors_of(entry: Entry) -> dict[str, float | None]:
    """Estimate over truth less one, of each figure that was both predicted and measured."""
    return {name: _error(said, truth) for name, (said, truth) in _pairs(entry).items()}


def method_of(recipe: Recipe) -> str:
    """ "qlora", "int8 lora", "full zero2 × 2": how people name it."""
    name = recipe.adapter.method
    if recipe.quantization.startswith("nf4"):
        name = f"q{name}"
    elif recipe.quantized:
        name = f"{recipe.quantization} {name}"
    place = recipe.parallelism
    name += f" {place.kind} × {place.devices}" if place.devices > 1 else ""
    return name + (" offload" if place.offload else "")


def _pairs(entry: Entry) -> dict[str, tuple[Interval | None, float | None]]:
    """Each figure as expected, and as it was; of a run that did not end well no figure is the whole run's."""
    said, measured = entry.prediction, entry.measured
    worst = measured.worst if measured.outcome is Outcome.OK else None
    sizes = ("process", "peak_allocated", "peak_reserved")
    pairs = {f"{name}_bytes": (getattr(said, name, None), getattr(worst, f"{name}_bytes", None)) for name in sizes}
    step = measured.step_seconds if measured.outcome is Outcome.OK else None
    return {**pairs, "step_seconds": (said.step_seconds if said else None, step)}


def _row(entry: Entry, alike: bool) -> list[str | Span]:
    """The cells of a run, without its GPU where all have the same."""
    pairs = _pairs(entry)
    size, took = pairs["process_bytes"]
    step, lasted = pairs["step_seconds"]
    return [
        "" if entry.number is None else str(entry.number),
        _when(entry.seconds_since_epoch),
        clean(entry.recipe.model),
        method_of(entry.recipe),
        *([] if alike else [clean(entry.gpu)]),
        gib(size.value) if size else "-",
        gib(took) if took else "-",
        _off(size, took),
        duration(step.value) if step else "-",
        duration(lasted) if lasted else "-",
        _off(step, lasted),
        _end(entry),
    ]


def _off(said: Interval | None, truth: float | None) -> Span:
    """An error, marked where the truth lies outside the interval that was given."""
    error = _error(said, truth)
    if error is None or said is None or truth is None:
        return ("-", "dim")
    shown = f"{'−' if error < 0 else '+'}{100 * abs(error):.1f} %" if abs(error) >= OFF else "0.0 %"
    return (shown, "" if said.low <= truth <= said.high else "warn")


def _end(entry: Entry) -> Span:
    measured = entry.measured
    if measured.outcome is not Outcome.OK:
        return (measured.outcome.replace("_", " "), "bad")
    return ("disturbed", "warn") if measured.marks else ("ok", "good")


def _said(entry: Entry) -> str:
    measured = entry.measured
    parts = [
        *measured.marks,
        *([measured.evidence] if measured.outcome is not Outcome.OK and measured.evidence else []),
    ]
    return "; ".join(parts)


def _when(seconds_since_epoch: float) -> str:
    try:
        return datetime.fromtimestamp(seconds_since_epoch, UTC).strftime("%Y-%m-%d %H:%M")
    except (ValueError, OverflowError, OSError):
        return "unknown"


def _error(said: Interval | None, truth: float | None) -> float | None:
    return said.value / truth - 1 if said is not None and truth else None


def _nothing(stored: int, path: str, width: int) -> list[Line]:
    if stored:
        return paragraph(f"None of the {number_of(stored, 'run')} in {clean(path)} is like that.", width)
    text = f"No run was measured yet: {clean(path)} is empty. A measured run fills it, and sharpens the next plan:"
    return [*paragraph(text, width), BLANK, (("  " + HOW_TO_FILL, "bold"),)]
