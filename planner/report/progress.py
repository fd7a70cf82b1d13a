"""Progress on stderr: one line that is replaced in place on a terminal, and plain lines elsewhere."""

import os
import sys
import time

from planner.report.figures import clean
from planner.report.paint import page_width, say

ERASE = "\r\x1b[K"
SECONDS_BETWEEN = 10.0
"""Of what changes quickly, a file gets one line in so long a time."""


class Progress:
    """What is going on, for as long as it does. One that is not wanted says nothing."""

    def __init__(self, wanted: bool = True) -> None:
        self._wanted = wanted and sys.stderr is not None
        self._in_place = self._wanted and sys.stderr.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")
        self._shown, self._said_at = False, time.monotonic()

    def show(self, text: str) -> None:
        """A line for a person: replaced by the next one, where that can be."""
        if self._in_place:
            self.clear()
            print(clean(text)[: page_width(sys.stderr) - 1], end="", file=sys.stderr, flush=True)
            self._shown = True
        elif self._wanted:
            say(text)

    def tick(self, text: str) -> None:
        """As `show`, of what changes many times a second."""
        now = time.monotonic()
        if self._in_place or now - self._said_at >= SECONDS_BETWEEN:
            self._said_at = now
            self.show(text)

    def leave(self, text: str) -> None:
        """A line that stays."""
        self.clear()
        if self._wanted:
            say(text)

    def clear(self) -> None:
        """Leave a clean line to whoever writes next."""
        if self._shown:
            print(ERASE, end="", file=sys.stderr, flush=True)
            self._shown = False
