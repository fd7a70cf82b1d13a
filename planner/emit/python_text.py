"""Python scripts from their templates: constants at the head, and how examples are read."""

import pprint
from collections.abc import Mapping
from importlib.resources import files

EXAMPLES = "examples.py.txt"
"""From examples to rows of tokens, the same in every script: as runners/data.py and runners/chat.py do it."""


def script(template: str, values: Mapping[str, object]) -> str:
    """A template of this package, filled; last with the constants, which hold texts from outside."""
    code, examples = (_read(name) for name in (template, EXAMPLES))
    return code.replace("# EXAMPLES\n", examples).replace("# SETTINGS", constants(values))


def _read(name: str) -> str:
    return files("planner.emit").joinpath(name).read_text(encoding="utf-8")


def constants(values: Mapping[str, object]) -> str:
    return "\n".join(f"{name} = {_literal(value)}" for name, value in values.items())


def _literal(value: object) -> str:
    """Python source of a value, in ASCII: what it holds is never more than a literal."""
    text = pprint.pformat(value, width=110, sort_dicts=False)
    return "".join(letter if letter.isascii() else ascii(letter)[1:-1] for letter in text)
