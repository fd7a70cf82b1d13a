"""Parses the JSON of a config.json from anyone: what is ambiguous, endless or not JSON is refused in one line."""

import json
import math
from collections import Counter
from typing import NoReturn

from estimators.errors import BadInput
from estimators.families.fields import show

LARGEST_CONFIG_BYTES = 1_000_000
DEEPEST_NESTING = 20
LONGEST_NUMBER = 20
"""Digits of a whole number; larger sizes are refused anyway, and parsing digits is quadratic."""


def parse_config(text: bytes, source: str) -> dict[str, object]:
    """The one JSON object in `text`. `source` is what a refusal calls it.

    Raises:
        BadInput: over 1 MB, not JSON, a key twice, NaN or Infinity, nested too deep, or not an object.
    """
    if len(text) > LARGEST_CONFIG_BYTES:
        raise BadInput(f"{source}: larger than {LARGEST_CONFIG_BYTES:,} bytes, which no config.json is")
    try:
        document = _Parser(source).parse(text)
    except RecursionError:
        raise BadInput(f"{source}: nested deeper than {DEEPEST_NESTING} levels") from None
    except ValueError as error:
        raise BadInput(f"{source}: not JSON: {ascii(str(error))[1:81]}") from None
    if not isinstance(document, dict):
        raise BadInput(f"{source}: must hold one JSON object, not {show(document)}")
    if _deeper_than(document, DEEPEST_NESTING):
        raise BadInput(f"{source}: nested deeper than {DEEPEST_NESTING} levels")
    return document


class _Parser:
    """The standard library's, with a refusal in each place where it is generous."""

    def __init__(self, source: str) -> None:
        self._source = source

    def parse(self, text: bytes) -> object:
        return json.loads(
            text.decode("utf-8"),
            object_pairs_hook=self._unique,
            parse_int=self._whole,
            parse_float=self._real,
            parse_constant=self._refuse_constant,
        )

    def _unique(self, pairs: list[tuple[str, object]]) -> dict[str, object]:
        values = dict(pairs)
        if len(values) != len(pairs):
            key, times = Counter(key for key, _ in pairs).most_common(1)[0]
            raise BadInput(f"{self._source}: {show(key)} occurs {times} times")
        return values

    def _whole(self, digits: str) -> int:
        if len(digits) > LONGEST_NUMBER:
            raise BadInput(f"{self._source}: {digits[:8]}... is a number of {len(digits)} digits")
        return int(digits)

    def _real(self, digits: str) -> float:
        value = float(digits)
        if not math.isfinite(value):
            raise BadInput(f"{self._source}: {digits[:20]} is out of range")
        return value

    def _refuse_constant(self, word: str) -> NoReturn:
        raise BadInput(f"{self._source}: {word} is not JSON")


def _deeper_than(value: object, levels: int) -> bool:
    """Whether containers are nested in more than `levels` levels; recursion ends there too."""
    inner = list(value.values()) if isinstance(value, dict) else value
    if not isinstance(inner, list):
        return False
    return levels == 0 or any(_deeper_than(entry, levels - 1) for entry in inner)
