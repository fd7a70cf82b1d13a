"""The recipe on disk: JSON to Recipe, strictly, and back."""

import dataclasses
import json
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

from estimators.errors import BadInput
from estimators.recipe import ALL_LINEAR, Adapter, Buckets, Parallelism, Recipe
from estimators.techniques import ADAPTERS, ATTENTIONS, LOSSES, OPTIMIZERS, PARALLELISMS, QUANTIZATIONS

SCHEMA_VERSION = 1
LONGEST_NAME = 4096
Check = Callable[[Any, str], Any]
Noun = TypeVar("Noun", Adapter, Parallelism, Buckets, Recipe)


def to_document(recipe: Recipe) -> dict[str, Any]:
    """The recipe document: JSON types only, `schema_version` first."""
    table = dataclasses.asdict(recipe)
    table["adapter"]["targets"] = _listed(recipe.adapter.targets)
    table["parallelism"]["offload"] = list(recipe.parallelism.offload)
    return {"schema_version": SCHEMA_VERSION, **table}


def from_document(document: object) -> Recipe:
    """The recipe that a JSON document describes.

    Raises:
        BadInput: an unknown, missing, ill-typed or absurd key, named with its path.
        UnknownName: a technique that the product does not know.
    """
    table = _table(document, "recipe")
    version = table.pop("schema_version", SCHEMA_VERSION)
    if version != SCHEMA_VERSION or type(version) is not int:
        raise BadInput(f"recipe: schema_version must be {SCHEMA_VERSION}, not {_shown(version)}")
    recipe = _build(Recipe, table, RECIPE, "recipe")
    if recipe.adapter.trains_everything:
        return dataclasses.replace(recipe, adapter=Adapter(method="full"))
    if not recipe.adapter.rank or not recipe.adapter.targets:
        raise BadInput(f"recipe.adapter: {recipe.adapter.method} needs a rank and targets")
    if not recipe.adapter.alpha:
        raise BadInput("recipe.adapter: missing key 'alpha'")
    return recipe


def parse_recipes(text: str, where: str) -> list[object]:
    """The documents in a file: one JSON object, a JSON list of them, or one object a line.

    Raises:
        BadInput: the text is not JSON.
    """
    try:
        whole = _load(text)
    except (ValueError, RecursionError):
        return [_line(line, f"{where}:{number}") for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    return whole if isinstance(whole, list) else [whole]


def _line(line: str, where: str) -> object:
    try:
        return _load(line)
    except (ValueError, RecursionError):
        raise BadInput(f"{where}: not a recipe document: {line.strip()[:60]!r} is not JSON") from None


def _load(text: str) -> object:
    """The JSON in `text`; of a plan's own document, the recipe that it chose."""
    loaded = json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_without_repetition)
    chosen = loaded.get("chosen") if isinstance(loaded, dict) else None
    return chosen["recipe"] if isinstance(chosen, dict) and "recipe" in chosen else loaded


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        raise BadInput(f"recipe: the key {_shown(repeated)} occurs twice")
    return table


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number")


def _build(kind: type[Noun], table: dict[str, Any], checks: dict[str, Check], where: str) -> Noun:
    required = [
        field.name
        for field in dataclasses.fields(kind)
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]
    for name in required:
        if name not in table:
            raise BadInput(f"{where}: missing key {name!r}")
    for name in table:
        if name not in checks:
            raise BadInput(f"{where}: unknown key {_shown(name)}; it may have {', '.join(checks)}")
    return kind(**{name: checks[name](value, f"{where}.{name}") for name, value in table.items()})


def _table(value: object, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise BadInput(f"{where}: must be a JSON object, not {_shown(value)}")
    return dict(value)


def _whole(low: int, high: int, optional: bool = False) -> Check:
    def check(value: Any, where: str) -> int | None:
        if value is None and optional:
            return None
        if type(value) is not int or not low <= value <= high:
            raise BadInput(f"{where}: must be a whole number from {low} to {high}, not {_shown(value)}")
        return value

    return check


def _number(low: float, high: float) -> Check:
    def check(value: Any, where: str) -> float:
        if type(value) not in (int, float) or not low <= value <= high:
            raise BadInput(f"{where}: must be a number from {low:g} to {high:g}, not {_shown(value)}")
        return float(value)

    return check


def _choice(*names: str) -> Check:
    def check(value: Any, where: str) -> str:
        if not isinstance(value, str) or value not in names:
            raise BadInput(f"{where}: must be one of {', '.join(names)}, not {_shown(value)}")
        return value

    return check


def _flag(value: Any, where: str) -> bool:
    if type(value) is not bool:
        raise BadInput(f"{where}: must be true or false, not {_shown(value)}")
    return value


def _optional_flag(value: Any, where: str) -> bool | None:
    return None if value is None else _flag(value, where)


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= LONGEST_NAME:
        raise BadInput(f"{where}: must be a name or a path, not {_shown(value)}")
    return value


def _targets(value: Any, where: str) -> tuple[str, ...] | str:
    if value == ALL_LINEAR:
        return ALL_LINEAR
    if not isinstance(value, list) or len(value) > 64:
        raise BadInput(f'{where}: must be a list of layer names or "{ALL_LINEAR}", not {_shown(value)}')
    return tuple(_text(item, where) for item in value)


def _offload(value: Any, where: str) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise BadInput(f"{where}: must be a list, not {_shown(value)}")
    return tuple(sorted({_choice("optimizer", "parameters")(item, where) for item in value}))


def _noun(kind: type[Noun], checks: dict[str, Check]) -> Check:
    return lambda value, where: _build(kind, _table(value, where), checks, where)


def _listed(targets: tuple[str, ...] | str) -> list[str] | str:
    return targets if isinstance(targets, str) else list(targets)


def _shown(value: object) -> str:
    return repr(value) if len(repr(value)) <= 60 else repr(value)[:57] + "..."


MAY_BE_ZERO = ("prefetch_elements", "persistence_elements")
BUCKETS: dict[str, Check] = {"ddp_mib": _whole(1, 1 << 20)} | {
    field.name: _whole(0 if field.name in MAY_BE_ZERO else 1, 1 << 40)
    for field in dataclasses.fields(Buckets)
    if field.name.endswith("_elements")
}
ADAPTER: dict[str, Check] = {
    "method": _choice(*ADAPTERS),
    "rank": _whole(0, 65_536),
    "alpha": _whole(0, 1 << 20),
    "dropout": _number(0.0, 0.99),
    "targets": _targets,
}
PARALLELISM: dict[str, Check] = {
    "kind": _choice(*PARALLELISMS),
    "devices": _whole(1, 65_536),
    "offload": _offload,
    "offload_to": _choice("cpu", "nvme"),
}
RECIPE: dict[str, Check] = {
    "model": _text,
    "adapter": _noun(Adapter, ADAPTER),
    "trainer": _choice("transformers", "trl"),
    "quantization": _choice(*QUANTIZATIONS),
    "weights": _choice("float32", "bfloat16", "float16"),
    "compute": _choice("float32", "bfloat16", "float16"),
    "optimizer": _choice(*OPTIMIZERS),
    "gradient_checkpointing": _flag,
    "attention": _choice(*ATTENTIONS),
    "loss": _choice(*LOSSES),
    "micro_batch": _whole(1, 65_536),
    "gradient_accumulation": _whole(1, 1 << 20),
    "sequence_length": _whole(1, 1 << 24),
    "padded": _flag,
    "parallelism": _noun(Parallelism, PARALLELISM),
    "kbit_upcast": _optional_flag,
    "buckets": _noun(Buckets, BUCKETS),
    "expandable_segments": _flag,
    "evaluation_batch": _whole(1, 65_536, optional=True),
    "packing": _flag,
    "learning_rate": _number(0.0, 100.0),
    "seed": _whole(0, (1 << 63) - 1),
}
