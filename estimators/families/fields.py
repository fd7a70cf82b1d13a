"""Strict reading of a config.json's fields: what is missing, of another type or absurd is refused by name."""

from collections.abc import Collection, Mapping, Sequence
from typing import NoReturn

from estimators.errors import BadInput

LARGEST_HIDDEN, LARGEST_LAYERS, LARGEST_VOCABULARY = 10**6, 10**4, 10**8
LARGEST_POSITIONS = 10**9
LARGEST_WIDTH = 10**8
"""Of a feed-forward layer or a projection."""
LARGEST_HEADS, LARGEST_HEAD_SIZE, LARGEST_EXPERTS = 10**5, 10**5, 10**5


class Fields:
    """The fields of one config.json. `source` says in messages which file or name they come from."""

    __slots__ = ("source", "values")

    def __init__(self, values: Mapping[str, object], source: str) -> None:
        self.values = values
        self.source = source

    def refuse(self, field: str, reason: str) -> NoReturn:
        raise BadInput(f"{self.source}: {field} {reason}")

    def given(self, field: str) -> bool:
        """The field is present and not null."""
        return self.values.get(field) is not None

    def count(self, field: str, largest: int, *, default: int | None = None, smallest: int = 1) -> int:
        """A whole number; absent or null it is `default`, and refused where there is none."""
        value = self.values.get(field)
        if value is None:
            if default is None:
                self.refuse(field, "is missing" if field not in self.values else "is null")
            return default
        if type(value) is not int:
            self.refuse(field, f"must be a whole number, not {show(value)}")
        if not smallest <= value <= largest:
            self.refuse(field, f"must be between {smallest:,} and {largest:,}, not {show(value)}")
        return value

    def flag(self, field: str, default: bool) -> bool:
        value = self.values.get(field)
        if value is None:
            return default
        if type(value) is not bool:
            self.refuse(field, f"must be true or false, not {show(value)}")
        return value

    def fraction(self, field: str, default: float) -> float:
        """A number from 0 to 1, such as a dropout."""
        return self._fraction(field, self.values.get(field), default)

    def _fraction(self, field: str, value: object, default: float) -> float:
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
            self.refuse(field, f"must be a number from 0 to 1, not {show(value)}")
        return float(value)

    def rotary_fraction(self, field: str, default: float) -> float:
        """Part of a head that rotates; transformers 5 moved the field into rope_parameters."""
        nested = self.values.get("rope_parameters")
        if isinstance(nested, Mapping) and nested.get("partial_rotary_factor") is not None:
            value: object = nested["partial_rotary_factor"]
            return self._fraction("rope_parameters.partial_rotary_factor", value, default)
        return self.fraction(field, default)

    def choice(self, field: str, known: Collection[str], *, default: str | None = None) -> str:
        """One of the `known` texts."""
        value = self.values.get(field)
        if value is None and default is not None:
            return default
        if not isinstance(value, str):
            self.refuse(field, f"must be a text, not {show(value)}" if field in self.values else "is missing")
        if value not in known:
            self.refuse(field, f"must be one of {', '.join(sorted(known))}, not {show(value)}")
        return value

    def items(self, field: str) -> Sequence[object] | None:
        """The list in a field, or None where it is absent."""
        value = self.values.get(field)
        if value is not None and not isinstance(value, list):
            self.refuse(field, f"must be a list, not {show(value)}")
        return value

    def indices(self, field: str, count: int) -> frozenset[int]:
        """A list of layer numbers below `count`; absent it is empty."""
        entries = self.items(field) or ()
        for entry in entries:
            if type(entry) is not int or not 0 <= entry < count:
                self.refuse(field, f"must list layers below {count}, not {show(entry)}")
        return frozenset(entry for entry in entries if isinstance(entry, int))

    def must_be(self, field: str, expected: bool, why: str) -> None:
        """A flag whose other value builds another model than the one described here."""
        if self.flag(field, expected) is not expected:
            self.refuse(field, f"must be {str(expected).lower()}: {why}")


def show(value: object, longest: int = 40) -> str:
    """A value of a hostile file in one short line."""
    if isinstance(value, (list, Mapping)):
        return f"a {'list' if isinstance(value, list) else 'mapping'} of {len(value)}"
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, int) and abs(value) > 10**30:
        return "a huge number"  # Python refuses to print more than 4300 digits
    text = ascii(value)
    return text if len(text) <= longest else text[: longest - 3] + "..."
