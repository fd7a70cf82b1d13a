"""A device profile as a page: what was measured, what the data sheet says, and what plans use from now on."""

from collections.abc import Iterator, Sequence

from estimators.device_profile import QUANTITIES, profile_document
from estimators.units import format_seconds
from planner.calibrate import Finding, Measured, measured
from planner.report.figures import clean, number_of
from planner.report.json import SCHEMA_VERSION, Document
from planner.report.page import BLANK, Column, Line, Span, labelled, paragraph, table, title

MEASURED = (
    Column(title="measured"),
    Column(title="", right=True),
    Column(title="data sheet", right=True, style="dim", vital=False),
    Column(title="share", right=True),
)
USED = (Column(title="rate"), Column(title="before", right=True, style="dim"), Column(title="now", right=True))
PLACES = {
    "kernels": "dry run, share of the data sheet",
    "traced": "dry run, time",
    "efficiency": "formula, share of the data sheet",
    "rates": "formula",
}
SCALES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
LEAST_SHOWN = 1e-6


def calibration_page(finding: Finding, width: int) -> list[Line]:
    """What was found, what was not, and what changes."""
    profile = finding.profile
    page = paragraph(_verdict(finding), width, "bold" if finding.unkept is None else "bad")
    found = [one for one in measured(finding) if one.figure is not None]
    page += [*title("Measured"), *table(MEASURED, [_measured(one) for one in found], width)]
    if missing := list(_missing(finding)):
        page += [*title("Not measured", "these keep the rates that they had", width), *labelled(missing, width)]
    page += title("What plans use", "steps reach a part of what a microbenchmark does", width)
    for place, words in PLACES.items():
        if rows := [
            _used(one.follows.rate, one.before, one.now) for one in finding.rates if one.follows.place == place
        ]:
            page += [*paragraph(words, width, indent=2), *table(USED, rows, width)]
    versions = ", ".join(f"{name} {version}" for name, version in sorted(profile.versions.items()))
    page += [*title("With"), *paragraph(clean(versions), width, "dim", indent=2)]
    return [*page, BLANK]


def calibration_document(finding: Finding) -> Document:
    """The profile whole, and the rates that follow it."""
    return {
        "schema_version": SCHEMA_VERSION,
        "profile": profile_document(finding.profile),
        "measured": [
            {"name": one.name, "figure": one.figure, "unit": QUANTITIES[one.name].unit, "data_sheet": one.sheet,
             "share": one.share, "missing": one.missing}
            for one in measured(finding)
        ],
        "rates": [
            {"name": one.follows.name, "figures": list(one.follows.figures), "factor": one.follows.factor,
             "before": one.before, "now": one.now}
            for one in finding.rates
        ],
        "kept_at": str(finding.path) if finding.path else None,
        "not_kept": finding.unkept,
    }  # fmt: skip


def _verdict(finding: Finding) -> str:
    profile = finding.profile
    count = number_of(len(profile.figures), "figure")
    begin = f"{finding.device.title}: {count} in {format_seconds(profile.seconds)}"
    if finding.unkept is not None:
        return f"{begin}; not kept: {clean(finding.unkept)}."
    return f"{begin}; every plan for this machine uses them from now on."


def _measured(one: Measured) -> Sequence[str | Span]:
    quantity = QUANTITIES[one.name]
    assert one.figure is not None
    share = "" if one.share is None else f"{100 * one.share:.0f} %"
    return [quantity.title, amount(one.figure, quantity.unit), amount(one.sheet, quantity.unit), share]


def _missing(finding: Finding) -> Iterator[tuple[str, str]]:
    """Figures that failed for one reason stand together."""
    reasons: dict[str, list[str]] = {}
    for one in measured(finding):
        if one.missing is not None:
            reasons.setdefault(one.missing, []).append(QUANTITIES[one.name].title)
    for why, names in reasons.items():
        yield "; ".join(names), clean(why)


def _used(name: str, before: float, now: float) -> Sequence[str | Span]:
    words = name.removesuffix("_seconds").removesuffix("_seconds_per_parameter").replace("_", " ")
    in_seconds = "seconds" in name
    before_text, now_text = (amount(value, "s") if in_seconds else f"{value:.3g}" for value in (before, now))
    return [words, before_text, now_text]


def amount(value: float | None, unit: str) -> str:
    """ "612 TFLOP/s", "31.4 µs"."""
    if value is None:
        return ""
    if unit == "s":
        scale, name = next(((s, n) for s, n in ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")) if value >= s), (1e-9, "ns"))
        return f"{value / scale:.3g} {name}"
    scale, name = next(((s, n) for s, n in SCALES if value >= s), (1.0, ""))
    return f"{value / scale:.4g} {name}{unit}"
