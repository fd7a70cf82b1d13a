"""A measured run as a page: what was expected beside what it took, and what the next estimate makes of it."""

from collections.abc import Iterator, Sequence

from estimators.document import to_document
from estimators.outcome import to_document as result_document
from estimators.price import Interval
from estimators.strategies.attention.sdpa_no_cudnn import NAME as NO_CUDNN
from estimators.strategies.attention.sdpa_no_cudnn import prefers_cudnn
from estimators.strict import encoded
from estimators.units import format_bytes, format_seconds
from planner.measure import Finding
from planner.report.figures import clean, error_bar, rate
from planner.report.history import OFF, errors_of, method_of
from planner.report.json import SCHEMA_VERSION, Document
from planner.report.page import BLANK, Column, Line, Span, labelled, paragraph, table, title

COLUMNS = (
    Column(title="figure"),
    Column(title="expected", right=True),
    Column(title="±", style="dim", vital=False),
    Column(title="measured", right=True),
    Column(title="off", right=True),
    Column(title=""),
)


def finding_page(finding: Finding, width: int) -> list[Line]:
    """Verdict, the table, the run's own figures, and the calibration."""
    page = paragraph(_verdict(finding), width, "bold" if finding.result.end.ok else "bad")
    if rows := list(_rows(finding)):
        page += [*title("Expected and measured", _evidence(finding), width), *table(COLUMNS, rows, width)]
    if told := list(_told(finding)):
        page += [*title("The run"), *labelled(told, width)]
    if finding.fit is not None:
        page += [*title("What later estimates make of it"), *_calibration(finding, width)]
    return [*page, BLANK]


def finding_document(finding: Finding) -> Document:
    """The run whole."""
    return {
        "schema_version": SCHEMA_VERSION,
        "recipe": to_document(finding.recipe),
        "entry": encoded(finding.entry),
        "errors": errors_of(finding.entry),
        "result": result_document(finding.result),
        "flops_utilisation": finding.flops_utilisation,
        "calibration_changes": [str(change) for change in finding.fit.changes] if finding.fit else [],
    }


def _verdict(finding: Finding) -> str:
    recipe, result = finding.recipe, finding.result
    name = f"{clean(recipe.model)}, {method_of(recipe)}"
    if not result.end.ok:
        return f"{name}: {result.end.outcome.value.replace('_', ' ')}: {clean(result.end.evidence)}"
    steps = max((len(rank.step_seconds) for rank in result.ranks), default=0)
    return f"{name}: {steps} steps on {_where(finding)} in {format_seconds(result.seconds)}, start to end."


def _where(finding: Finding) -> str:
    return f"{len(finding.gpus)} × {finding.gpus[0].device.name}" if finding.gpus else "this machine's CPU"


def _evidence(finding: Finding) -> str:
    return f"expected by {finding.expected.evidence}" if finding.expected else ""


def _rows(finding: Finding) -> Iterator[Sequence[str | Span]]:
    """The figures that were both expected and measured."""
    price, measured = finding.expected, finding.entry.measured
    worst = measured.worst
    if price is None or not finding.result.end.ok:
        return
    if worst is not None:
        yield _row("allocated", price.peak_allocated, worst.peak_allocated_bytes, format_bytes)
        yield _row("reserved", price.peak_reserved, worst.peak_reserved_bytes, format_bytes)
        if worst.process_bytes is not None:
            yield _row("process", price.process, worst.process_bytes, format_bytes)
    if measured.step_seconds is not None:
        yield _row("step", price.step_seconds, measured.step_seconds, format_seconds)
    if measured.tokens_per_second is not None:
        yield _row("tokens/s", price.tokens_per_second, measured.tokens_per_second, rate)


def _row(name: str, said: Interval, truth: float, show: object) -> Sequence[str | Span]:
    assert callable(show)
    inside = said.low <= truth <= said.high
    verdict: Span = ("within the bar", "good") if inside else ("outside the bar", "warn")
    return [name, show(said.value), error_bar(said), show(truth), signed(said.value / truth - 1), verdict]


def signed(share: float) -> str:
    """ "−13.6 %", and no sign where there is nothing to sign."""
    return "0.0 %" if abs(share) < OFF else f"{100 * share:+.1f} %".replace("-", "−")


def _told(finding: Finding) -> Iterator[tuple[str, str]]:
    """What was measured and not predicted."""
    measured = finding.entry.measured
    if measured.step_spread_seconds is not None and measured.step_seconds:
        yield "steps", f"between their quartiles {format_seconds(measured.step_spread_seconds)}"
    if finding.flops_utilisation is not None:
        yield (
            "MFU",
            f"{100 * finding.flops_utilisation:.1f} % (6 × active parameters × tokens, of the data sheet's rate)",
        )
    if measured.energy_joules is not None:
        yield "energy", f"{measured.energy_joules:,.0f} J a step"
    if measured.allocator_retries:
        yield "tight", f"the allocator had to empty its cache {measured.allocator_retries} times"
    if measured.varies and not finding.recipe.expandable_segments and measured.worst is not None:
        narrow, wide = measured.widths
        yield "cache", (f"batches were from {narrow:,} to {wide:,} tokens wide, and what torch's cache keeps of all "
                        "those sizes is in the reserved figure: --expandable-segments avoids it")  # fmt: skip
    if (
        measured.varies
        and finding.recipe.attention == "sdpa"
        and any(prefers_cudnn(gpu.device) for gpu in finding.gpus)
    ):
        yield "attention", ("cuDNN's plans anew for every width of a batch, and that is in these steps: "
                            f"--attention {NO_CUDNN} does without")  # fmt: skip
    if finding.unkept is not None:
        yield "not stored", clean(finding.unkept)
    for note in finding.result.notes:
        yield "not alone", f"{clean(note)}: the sample calibrates nothing"


def _calibration(finding: Finding, width: int) -> list[Line]:
    fit = finding.fit
    assert fit is not None
    lines = [str(change) for change in fit.changes]
    if not lines:
        lines = [f"nothing changes: {fit.runs} of this machine's runs agree with what is known"]
    return [line for text in lines for line in paragraph(text, width, indent=2)]
