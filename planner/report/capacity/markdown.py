"""A capacity report as Markdown: the verdict first, then tables that read well as plain text too."""

import re
from collections.abc import Iterator, Sequence

from planner.capacity.decision import Decision
from planner.capacity.report import Report
from planner.capacity.words import length_words, ranges, verdict
from planner.report.capacity import sections
from planner.report.capacity.cells import best_first, headings, row
from planner.report.capacity.sections import Table
from planner.report.figures import clean, duration

MOST_ROWS = 60
"""Of the set-ups: the rest is in the CSV."""
_SPECIAL = re.compile(r"([\\`*_\[\]<>#|~$])")


def markdown_text(report: Report) -> str:
    """The whole report."""
    return "\n".join(_lines(report)) + "\n"


def plain(text: str) -> str:
    """A text of somebody else's, so that it stays text: no markup, no HTML, no new line."""
    return _SPECIAL.sub(r"\\\1", clean(text)).replace("&", "&amp;")


def _lines(report: Report) -> Iterator[str]:
    question = report.question
    yield from ("# Capacity plan", "")
    by = f", to be done within {duration(question.deadline_seconds)}" if question.deadline_seconds else ""
    yield from (plain(f"{length_words(question)}{by}. Made on {report.today.isoformat()}."), "")
    for decision in report.decisions:
        yield from _decision(report, decision)
    yield from _warnings(report)
    yield from _memory(report)
    yield from _data(report)
    yield from _setups(report)
    yield from _beside(report)
    yield from _behind(report)


def _decision(report: Report, decision: Decision) -> Iterator[str]:
    question = report.question
    yield from (f"**{plain(verdict(question, decision))}**", "", plain(ranges(question, decision)), "")
    figures = sections.figures_of(question, decision)
    if figures:
        yield from ("| | | |", "|-|-:|-|")
        yield from (f"| {plain(name)} | {plain(value)} | {plain(more)} |" for name, value, more in figures)
        yield ""
    yield from ("The best set-up of each method:", "")
    yield from _table(sections.options_table(question, decision))


def _warnings(report: Report) -> Iterator[str]:
    if report.warnings:
        yield from ("## To know first", "", *(f"- {plain(text)}" for text in report.warnings), "")


def _memory(report: Report) -> Iterator[str]:
    yield from ("## Memory of one GPU by term, in GiB", "")
    for decision in report.decisions:
        setup = decision.chosen or next(iter(decision.options), None)
        if setup is not None:
            if len(report.decisions) > 1:
                yield from (f"### {plain(decision.work.model.name)}", "")
            yield from _table(sections.memory_table(sections.memory_setups(decision, report.setups, setup.method)))


def _data(report: Report) -> Iterator[str]:
    for decision in report.decisions:
        lengths = decision.work.lengths
        if lengths is not None:
            yield from (f"## Data for {plain(decision.work.model.name)}", "")
            yield from (plain(f"{lengths.examples:,} examples, counted by {lengths.counted_by}."
                              f" Suggested: --seq-len {lengths.suggested()}."), "")  # fmt: skip
            yield from _table(sections.lengths_table(lengths))
            if padding := sections.padding_table(report, decision):
                yield from _table(padding)


def _setups(report: Report) -> Iterator[str]:
    yield from ("## What if", "")
    several = len(report.decisions) > 1
    shown = best_first(report.setups, report.question)[:MOST_ROWS]
    rows = [row(report.question, one, several_models=several) for one in shown]
    yield from _table(Table(headings(report.question, several_models=several), rows))
    if len(report.setups) > len(shown):
        yield from (f"{len(report.setups) - len(shown):,} more set-ups are in the CSV and the JSON document.", "")


def _beside(report: Report) -> Iterator[str]:
    if report.swept is not None:
        yield from ("## The sweep", "", plain(sections.sweep_words(report, report.swept)), "")
        yield from _table(sections.sweep_table(report.swept))
    if report.history is not None and report.history.runs:
        yield from ("## Measured against predicted", "", plain(sections.history_words(report.history)), "")
        yield from _table(sections.history_table(report.history))
    if report.question.sheets or report.question.ownership:
        yield from ("## Prices", "", *(f"- {plain(text)}" for text in sections.sources(report)), "")
        yield from _table(sections.prices_table(report))


def _behind(report: Report) -> Iterator[str]:
    yield from ("## What the figures rest on", "", *(f"- {plain(text)}" for text in report.assumptions))
    yield from (
        f"- {plain(f'{one.model}: {one.refusal.method} on {one.device}: {one.refusal.reason}')}"
        for one in report.refused
    )
    yield from ("", "Again:", "", *(f"    {line}" for line in [clean(report.command)]))


def _table(table: Table) -> Iterator[str]:
    if table.rows:
        yield f"| {' | '.join(plain(one.title) for one in table.headings)} |"
        yield "|" + "|".join("-:" if one.right else "-" for one in table.headings) + "|"
        yield from (_row([cell.text for cell in cells]) for cells in table.rows)
        yield ""


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(plain(text) for text in cells)} |"
