"""A page: lines of styled text, laid out in plain Python before anything is printed."""

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

Span = tuple[str, str]
"""Text, and its style: "", "bold", "dim", "good", "warn", "bad", "title"."""
Line = tuple[Span, ...]
BLANK: Line = ()
INDENT = 2
_BEFORE_UNIT = r"(?<=\d) (?=%|[KMGT]?i?B\b|ms\b|s\b|min\b|h\b|days\b|×)|(?<=[±×]) (?=\w)|(?<=%) (?=[+])"
_GLUE = "\0"
"""A figure and its unit stay on one line."""
NARROWEST_FLOW = 18
"""Below so many columns, running text is given a line of its own under its row."""


def plain(line: Line) -> str:
    """The line without its styles."""
    return "".join(text for text, _ in line).rstrip()


def wrap(text: str, width: int) -> list[str]:
    """Words of `text` in lines of at most `width`; a longer word stands alone, uncut, so that it can be copied."""
    lines: list[str] = []
    bound = re.sub(_BEFORE_UNIT, _GLUE, " ".join(text.split()))
    for word in bound.split(" "):
        if lines and len(lines[-1]) + 1 + len(word) <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return [line.replace(_GLUE, " ") for line in lines] or [""]


def paragraph(text: str, width: int, style: str = "", *, indent: int = 0, bullet: str = "") -> list[Line]:
    """Running text; lines after the first hang behind the bullet."""
    margin = indent + len(bullet)
    first, *rest = wrap(text, width - margin)
    return [((" " * indent + bullet + first, style),), *((((" " * margin) + line, style),) for line in rest)]


def title(text: str, note: str = "", width: int = 1000) -> list[Line]:
    """The head of a section, with the blank line above it, and the note beside or below it."""
    if len(text) + 2 + len(note) > width:
        return [BLANK, ((text, "title"),), *paragraph(note, width, "dim", indent=INDENT)]
    return [BLANK, ((text, "title"), (f"  {note}" if note else "", "dim"))]


def labelled(rows: Iterable[tuple[str, str]], width: int, label_style: str = "dim") -> list[Line]:
    """Label and text, the texts aligned."""
    rows = list(rows)
    column = max((len(label) for label, _ in rows), default=0) + 2
    page: list[Line] = []
    for label, text in rows:
        first, *rest = wrap(text, width - INDENT - column)
        page.append(((" " * INDENT + label.ljust(column), label_style), (first, "")))
        page += [((" " * (INDENT + column) + line, ""),) for line in rest]
    return page


class Column(NamedTuple):
    """A column of a table. One that flows takes the width left over; those not vital go where it is narrow."""

    title: str
    right: bool = False
    flows: bool = False
    vital: bool = True
    style: str = ""


def table(columns: Sequence[Column], rows: Sequence[Sequence[str | Span]], width: int) -> list[Line]:
    """Rows under their titles, two spaces apart; no rules, so nothing breaks where a terminal is narrow."""
    widths = _widths(columns, rows)
    kept = _that_fit(columns, widths, width)
    layout = [(columns[i], widths[i]) for i in kept]
    room = width - _rigid(layout) - 2
    stacked = any(columns[i].flows and room < min(NARROWEST_FLOW, widths[i]) for i in kept)
    page = _row(layout, [(columns[i].title, "dim") for i in kept], width, stacked=False)
    for row in rows:
        page += _row(layout, [_span(row[i], columns[i]) for i in kept], width, stacked=stacked)
    return page


def shown(columns: Sequence[Column], rows: Sequence[Sequence[str | Span]], width: int) -> list[str]:
    """The titles of the columns for which a table of that width has room."""
    return [columns[i].title for i in _that_fit(columns, _widths(columns, rows), width)]


def _widths(columns: Sequence[Column], rows: Sequence[Sequence[str | Span]]) -> list[int]:
    return [max(len(column.title), *(len(_text(row[i])) for row in rows), 0) for i, column in enumerate(columns)]


def _that_fit(columns: Sequence[Column], widths: Sequence[int], width: int) -> list[int]:
    """The columns that are shown: the last that are not vital go first."""
    kept = list(range(len(columns)))
    for i in reversed(range(len(columns))):
        if _rigid([(columns[k], widths[k]) for k in kept]) > width and not columns[i].vital:
            kept.remove(i)
    return kept


def _rigid(layout: Sequence[tuple[Column, int]]) -> int:
    """The width of all that does not flow."""
    return INDENT - 2 + sum(width + 2 for column, width in layout if not column.flows)


def _row(layout: Sequence[tuple[Column, int]], cells: Sequence[Span], width: int, *, stacked: bool) -> list[Line]:
    """One row, in as many lines as its flowing cell needs: at the end, or below where the others leave no room."""
    line: list[Span] = [(" " * INDENT, "")]
    flowing: Span = ("", "")
    for (column, columns_wide), (text, style) in zip(layout, cells, strict=True):
        if column.flows:
            flowing = (text, style)
        else:
            padded = text.rjust(columns_wide) if column.right else text.ljust(columns_wide)
            line += [(padded, style), ("  ", "")]
    text, style = flowing
    margin = _rigid(layout) + 2
    if not text:
        return [tuple(line)]
    if stacked:
        return [tuple(line), *paragraph(text, width, style, indent=2 * INDENT)]
    first, *rest = wrap(text, width - margin)
    return [(*line, (first, style)), *(((" " * margin + more, style),) for more in rest)]


def _text(cell: str | Span) -> str:
    return cell if isinstance(cell, str) else cell[0]


def _span(cell: str | Span, column: Column) -> Span:
    return (cell, column.style) if isinstance(cell, str) else cell
