"""Every error a user can meet, with the exit code that the command line turns it into.

PlanError               1  ours: a bug, please report it
    BadInput            2  a wrong option, file or field; names it
        UnknownName     2  a GPU, model or technique that the product does not know; names its neighbours
    NoUsableGpu         4  a GPU is needed and none can be used; names the cause

What a user should expect (nothing fits, out of memory, an illegal recipe) is data, never an exception.
"""

from collections.abc import Iterable


class PlanError(Exception):
    """Base of every error raised on purpose; `str()` is the one line that the user reads."""

    exit_code = 1


class BadInput(PlanError):  # noqa: N818 (a kind of input, as its name reads)
    """An option, a file or a field is wrong, and the message names it."""

    exit_code = 2


class UnknownName(BadInput):
    """A name is not in the catalogue; the message offers the nearest ones that are."""

    def __init__(self, kind: str, name: str, known: Iterable[str], hint: str = "") -> None:
        import difflib  # a name is mistyped rarely, and every plan imports this module

        nearest = difflib.get_close_matches(name.lower(), list(known), n=4, cutoff=0.4)
        offer = f"; did you mean {', '.join(nearest)}?" if nearest else ""
        super().__init__(f"unknown {kind} {name[:80]!r}{offer}{' ' + hint if hint else ''}")


class NoUsableGpu(PlanError):  # noqa: N818
    """A GPU is needed and none can be used."""

    exit_code = 4
