"""JSON to nouns, strictly: every key known and of its type, so that a damaged row is found out and not believed."""

import dataclasses
import math
import types
from enum import Enum
from functools import cache
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin, get_type_hints

from estimators.document import from_document, to_document
from estimators.errors import BadInput
from estimators.recipe import Recipe

Noun = TypeVar("Noun")
NOT_FINITE = ("nan", "inf", "-inf")
AnyFloat = Annotated[float, "nan and infinity too"]
"""A figure that may be no number, as a loss that went wrong is. JSON has no word for it: it is written as a text."""


def decoded(kind: type[Noun], value: object, where: str) -> Noun:
    """The noun of type `kind` that a JSON value describes.

    Raises:
        BadInput: an unknown, missing or ill-typed key, named with its path.
    """
    noun: Noun = _decode(kind, value, where)
    return noun


def encoded(value: Any) -> Any:
    """A noun as JSON types; a recipe as its own document."""
    if isinstance(value, Recipe):
        return to_document(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: encoded(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, (list, tuple)):
        return [encoded(item) for item in value]
    if isinstance(value, dict):
        return {key: encoded(item) for key, item in value.items()}
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _decode(hint: Any, value: Any, where: str) -> Any:
    if hint is Recipe:
        return from_document(value)
    if isinstance(hint, type) and issubclass(hint, Enum):
        known = [member.value for member in hint]
        return hint(_plain(value in known, value, where, "one of " + ", ".join(map(str, known))))
    if dataclasses.is_dataclass(hint):
        return _noun(hint, value, where)
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return float(value) if value in NOT_FINITE else _decode(parts[0], value, where)
    if origin in (types.UnionType, Union):
        rest = [part for part in parts if part is not type(None)]
        return None if value is None and len(rest) < len(parts) else _decode(rest[0], value, where)
    if origin is tuple:
        items = _plain(isinstance(value, list), value, where, "a list")
        return tuple(_decode(parts[0], item, f"{where}[{number}]") for number, item in enumerate(items))
    if origin is dict:
        table = _plain(isinstance(value, dict), value, where, "an object")
        return {key: _decode(parts[1], item, f"{where}.{key}") for key, item in table.items()}
    return _scalar(hint, value, where)


def _scalar(hint: Any, value: Any, where: str) -> Any:
    if hint is float:
        number = type(value) in (int, float) and math.isfinite(value)
        return float(_plain(number, value, where, "a number"))
    names = {int: "a whole number", str: "a text", bool: "true or false"}
    return _plain(type(value) is hint, value, where, names[hint])


def _noun(kind: Any, value: Any, where: str) -> Any:
    table = _plain(isinstance(value, dict), value, where, "an object")
    hints, required = _fields(kind)
    for name in table:
        if name not in hints:
            raise BadInput(f"{where}: unknown key {name[:60]!a}")
    for name in required:
        if name not in table:
            raise BadInput(f"{where}: missing key {name!r}")
    return kind(**{name: _decode(hints[name], item, f"{where}.{name}") for name, item in table.items()})


@cache
def _fields(kind: Any) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The types of a noun's fields, and the names of those without a default."""
    missing = dataclasses.MISSING
    required = [f.name for f in dataclasses.fields(kind) if f.default is missing and f.default_factory is missing]
    return get_type_hints(kind, include_extras=True), tuple(required)


def _plain(good: bool, value: Any, where: str, wanted: str) -> Any:
    if not good:
        raise BadInput(f"{where}: must be {wanted}, not {ascii(value)[:60]}")
    return value
