"""Python scripts from their templates: constants at the head, and how examples are read."""

import ast
import pprint
from collections.abc import Mapping
from importlib.resources import files

EXAMPLES = "examples.py.txt"
"""From examples to rows of tokens, the same in every script: as runners/data.py and runners/chat.py do it."""
TURNS = ("runners", "turns.py")
"""Where the assistant's turns are, by the code that trials run."""


def script(template: str, values: Mapping[str, object]) -> str:
    """A template of this package, filled; last with the constants, which hold texts from outside."""
    code, examples = (_read("planner.emit", name) for name in (template, EXAMPLES))
    examples = examples.replace("# TURNS\n", _behind_imports(_read(*TURNS)))
    return code.replace("# EXAMPLES\n", examples).replace("# SETTINGS", constants(values))


def _read(package: str, name: str) -> str:
    return files(package).joinpath(name).read_text(encoding="utf-8")


def _behind_imports(source: str) -> str:
    """A module's code as it stands, without its docstring and its imports, which the templates have."""
    kept = (node for node in ast.parse(source).body if not isinstance(node, ast.Expr | ast.Import | ast.ImportFrom))
    return "".join(source.splitlines(keepends=True)[next(kept).lineno - 1 :])


def constants(values: Mapping[str, object]) -> str:
    return "\n".join(f"{name} = {_literal(value)}" for name, value in values.items())


def _literal(value: object) -> str:
    """Python source of a value, in ASCII: what it holds is never more than a literal."""
    text = pprint.pformat(value, width=110, sort_dicts=False)
    return "".join(letter if letter.isascii() else ascii(letter)[1:-1] for letter in text)
