"""Puts pages on the screen: plain text into pipes and files, colours through rich where a terminal shows them."""

import os
import sys
from collections.abc import Iterable
from typing import TextIO

from planner.report.figures import clean
from planner.report.page import Line, plain

PLAIN_WIDTH = 100
NARROWEST, WIDEST = 40, 120
STYLES = {
    "bar": "blue",
    "bold": "bold",
    "title": "bold cyan",
    "dim": "dim",
    "good": "bold green",
    "warn": "yellow",
    "bad": "bold red",
}
_IN_ASCII = str.maketrans(
    {
        "±": "+/-",
        "×": "x",
        "−": "-",
        "–": "-",
        "…": "...",
        "█": "#",
        "▌": "#",
        "·": "-",
        "°": "deg ",
        "≤": "<=",
        "≥": ">=",
    }
)
"""For an output encoding that lacks a character of ours."""


def page_width(stream: TextIO | None = None) -> int:
    """The terminal's width within reason; 100 where the output is no terminal."""
    if not _is_terminal(stream or sys.stdout):
        return PLAIN_WIDTH
    import shutil

    return max(NARROWEST, min(WIDEST, shutil.get_terminal_size((PLAIN_WIDTH, 24)).columns))


def show(page: Iterable[Line]) -> None:
    """The result, on stdout."""
    if sys.stdout is None:  # closed by whoever started us
        return
    if _is_colourful(sys.stdout):
        _show_in_colour(page)
        return
    for line in page:
        write(plain(line))


def write(text: str) -> None:
    """One line of the result, on stdout."""
    print(encodable(text, sys.stdout))


def say(text: str) -> None:
    """One line beside the result, on stderr."""
    if sys.stderr is not None:
        print(encodable(clean(text), sys.stderr), file=sys.stderr)


def _show_in_colour(page: Iterable[Line]) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, markup=False, emoji=False)
    for line in page:
        spans = [(text, STYLES.get(style, "")) for text, style in line]
        console.print(Text.assemble(*spans), soft_wrap=True)


def _is_terminal(stream: TextIO | None) -> bool:
    return stream is not None and stream.isatty()


def _is_colourful(stream: TextIO) -> bool:
    """A terminal that takes colours, to a person who did not ask for none (no-color.org)."""
    plain_terminal = os.environ.get("TERM", "").lower() in ("dumb", "unknown")
    return stream.isatty() and not os.environ.get("NO_COLOR") and not plain_terminal and speaks_unicode(stream)


def speaks_unicode(stream: TextIO) -> bool:
    return (stream.encoding or "").lower().replace("-", "") in ("utf8", "utf16", "utf16le", "cp65001")


def encodable(text: str, stream: TextIO | None) -> str:
    encoding = getattr(stream, "encoding", None) or "utf-8"
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        text = text.translate(_IN_ASCII)
        return text.encode(encoding, "replace").decode(encoding)
    except LookupError:
        return text.translate(_IN_ASCII)
    return text
