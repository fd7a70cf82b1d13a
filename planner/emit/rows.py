"""How the tables of the tools are read: what has no row is refused by name, for nothing is approximated."""

from collections.abc import Mapping
from typing import TypeVar

from estimators.errors import BadInput

Row = TypeVar("Row")


def row(tool: str, axis: str, table: Mapping[str, Row], name: str) -> Row:
    """
    Raises:
        BadInput: the tool has no way to say it.
    """
    if name not in table:
        raise BadInput(f"{tool} cannot express {axis} {name!r} (it has {', '.join(table) or 'none'})")
    return table[name]


def refuse(tool: str, what: str) -> BadInput:
    """The error that says so of a combination."""
    return BadInput(f"{tool} cannot express {what}")
