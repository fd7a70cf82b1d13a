"""Constants at the head of a Python script."""

import pprint
from collections.abc import Mapping


def constants(values: Mapping[str, object]) -> str:
    return "\n".join(f"{name} = {_literal(value)}" for name, value in values.items())


def _literal(value: object) -> str:
    """Python source of a value, in ASCII: what it holds is never more than a literal."""
    text = pprint.pformat(value, width=110, sort_dicts=False)
    return "".join(letter if letter.isascii() else ascii(letter)[1:-1] for letter in text)
