"""A page: lines of styled text, laid out in plain Python before anything is printed."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

Span = tuple[str, str]
"""Text, and its style: "", "bold", "dim", "good", "warn", "bad", "title"."""
Line = tuple[Span, ...]
BLANK: Line = ()
INDENT = 2
NARROWEST_FLOW = 24
"""Below so many columns, running text is given a line of its own under its row."""


def plain(line: Line) -> str:
    """The line without its styles."""
    return "".join(text for text, _ in line).rstrip()


def wrap(text: str, width: int) -> list[str]:
    """Words of `text` in lines of at most `width`; a longer word stands alone, uncut, so that it can be copied."""
    lines: list[str] = []
    for word in text.split():
        if lines and len(lines[-1]) + 1 + len(word) <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines or [""]


def paragraph(text: str, width: int, style: str = "", *, indent: int = 0, bullet: str = "") -> list[Line]:
    """Running text; lines after the first hang behind the bullet."""
    margin = indent + len(bullet)
    first, *rest = wrap(text, width - margin)
    return [((" " * indent + bullet + first, style),), *((((" " * margin) + line, style),) for line in rest)]


def title(text: str, note: str = "") -> list[Line]:
    """The head of a section, with the blank line above it."""
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """A column of a table. One that flows takes the width left over and wraps; those not vital go where it is narrow."""

    title: str
    right: bool = False
    flows: bool = False
    vital: bool = True
    style: str = ""


def table(columns: Sequence[Column], rows: Sequence[Sequence[str | Span]], width: int) -> list[Line]:
    """Rows under their titles, two spaces apart; no lines, so nothing breaks where a terminal is narrow."""
    kept = list(range(len(columns)))
    widths = [max(len(column.title), *(len(_text(row[i])) for row in rows), 0) for i, column in enumerate(columns)]
    while (excess := _rigid(columns, widths, kept) - width) > 0 and any(not columns[i].vital for i in kept):
        kept.remove(next(i for i in reversed(kept) if not columns[i].vital))
        del excess
    columns, widths = [columns[i] for i in kept], [widths[i] for i in kept]
    room = width - _rigid(columns, widths, range(len(columns)))
    head = _row(columns, widths, [(column.title, "dim") for column in columns], room)
    body = [_row(columns, widths, [_span(row[i], columns[k]) for k, i in enumerate(kept)], room) for row in rows]
    return [*head, *(line for lines in body for line in lines)]


def _rigid(columns: Sequence[Column], widths: Sequence[int], kept: Iterable[int]) -> int:
    """Width of all that does not flow, the gaps behind included."""
    return INDENT + sum(widths[i] + 2 for i in kept if not columns[i].flows)


def _row(columns: Sequence[Column], widths: Sequence[int], cells: Sequence[Span], room: int) -> list[Line]:
    """One row, in as many lines as its flowing cell (the last one) needs."""
    line: list[Span] = [(" " * INDENT, "")]
    for column, width, (text, style) in zip(columns, widths, cells, strict=True):
        if not column.flows:
            line.append((text.rjust(width) if column.right else text.ljust(width), style))
            line.append(("  ", ""))
    flowing = [cell for column, cell in zip(columns, cells, strict=True) if column.flows]
    if not flowing or not flowing[0][0]:
        return [tuple(line)]
    text, style = flowing[0]
    if room >= min(NARROWEST_FLOW, len(text)):
        margin = sum(len(part) for part, _ in line)
        first, *rest = wrap(text, room)
        return [(*line, (first, style)), *(((" " * margin + more, style),) for more in rest)]
    return [tuple(line), *paragraph(text, INDENT * 2 + len(text), style, indent=INDENT * 2)]


def _text(cell: str | Span) -> str:
    return cell if isinstance(cell, str) else cell[0]


def _span(cell: str | Span, column: Column) -> Span:
    return (cell, column.style) if isinstance(cell, str) else cell
