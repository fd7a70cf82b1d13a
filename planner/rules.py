"""The rules that a user can replace: defaults, the quality ladder, the VRAM rules."""

import tomllib
from collections.abc import Collection
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import profiles
from estimators.errors import BadInput, UnknownName
from estimators.hardware import Device
from estimators.techniques import ADAPTERS, OPTIMIZERS, QUANTIZATIONS
from estimators.units import GIB

LARGEST_FILE_BYTES = 1_000_000
Table = TypeVar("Table")


@dataclass(frozen=True, slots=True, kw_only=True)
class Defaults:
    """What is taken where the user says nothing."""

    sequence_length: int
    global_batch: int
    rank: int
    alpha_per_rank: int
    dropout: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Rung:
    """A method: what is trained, on what base, with which acceptable optimizers."""

    method: str
    adapter: str
    quantization: str
    weights: str
    """ "float32" (mixed precision) or "compute" (stored in the compute type)."""
    optimizers: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class VramRule:
    """A starting pick by the card alone."""

    method: str
    up_to_gb: int | None = None
    from_gb: int | None = None
    data_centre: bool | None = None

    def matches(self, device: Device) -> bool:
        size_gb = -(-device.total_bytes // GIB)
        return (
            (self.up_to_gb is None or size_gb <= self.up_to_gb)
            and (self.from_gb is None or size_gb >= self.from_gb)
            and (self.data_centre is None or self.data_centre == device.data_centre)
        )

    @property
    def words(self) -> str:
        parts = []
        if self.up_to_gb is not None:
            parts.append(f"up to {self.up_to_gb} GB")
        if self.from_gb is not None:
            parts.append(f"{self.from_gb} GB and more")
        if self.data_centre is not None:
            parts.append("data-centre card" if self.data_centre else "not a data-centre card")
        return f"{', '.join(parts) or 'any other card'}: {self.method}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """Everything in a rules file."""

    defaults: Defaults
    ladder: tuple[Rung, ...]
    named: tuple[Rung, ...]
    vram_rules: tuple[VramRule, ...]

    def rungs(self, methods: tuple[str, ...] | None) -> tuple[Rung, ...]:
        """The rungs to consider, best first: the ladder, or those that are named.

        Raises:
            UnknownName: a method has no rung.
        """
        if methods is None:
            return self.ladder
        known = {rung.method: rung for rung in (*self.ladder, *self.named)}
        for method in methods:
            if method not in known:
                raise UnknownName("method", method, known, hint=f"(known: {', '.join(known)})")
        return tuple(rung for name, rung in known.items() if name in methods)


@cache
def load_rules(path: str | None = None) -> Rules:
    """The rules in a file, or the product's own.

    Raises:
        BadInput: the file cannot be read, is not TOML, or a table in it is not of the documented shape.
    """
    where = path or "profiles/rules/default.toml"
    try:
        table = tomllib.loads(_text(path))
    except OSError as error:
        raise BadInput(f"cannot read the rules in {where}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise BadInput(f"{where}: not UTF-8 text") from None
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise BadInput(f"{where}: not TOML: {error}") from None
    unknown = table.keys() - {"defaults", "ladder", "named", "vram_rules"}
    if unknown:
        raise BadInput(f"{where}: unknown table {sorted(unknown)[0]!r}")
    rules = Rules(
        defaults=_filled(Defaults, table.get("defaults"), f"{where}: defaults"),
        ladder=_list(Rung, table, "ladder", where),
        named=_list(Rung, table, "named", where),
        vram_rules=_list(VramRule, table, "vram_rules", where),
    )
    if not rules.ladder:
        raise BadInput(f"{where}: the ladder has no rung")
    _check_names(rules, where)
    return rules


def _text(path: str | None) -> str:
    if path is None:
        return profiles.read("rules", "default.toml")
    with Path(path).open("rb") as file:
        return file.read(LARGEST_FILE_BYTES).decode()


def _list(kind: type[Table], table: dict[str, Any], name: str, where: str) -> tuple[Table, ...]:
    rows = table.get(name, [])
    if not isinstance(rows, list):
        raise BadInput(f"{where}: {name} must be a list of tables, [[{name}]]")
    return tuple(_filled(kind, row, f"{where}: {name} {number}") for number, row in enumerate(rows, 1))


def _filled(kind: type[Table], row: object, where: str) -> Table:
    if not isinstance(row, dict):
        raise BadInput(f"{where}: missing or not a table")
    known = {field.name: field for field in fields(kind)}  # type: ignore[arg-type]
    for name, value in row.items():
        if name not in known:
            raise BadInput(f"{where}: unknown key {name!r}; it may have {', '.join(known)}")
        _check_type(f"{where}: {name}", str(known[name].type), value)
    try:
        return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in row.items()})
    except TypeError:
        missing = [name for name in known if name not in row]
        raise BadInput(f"{where}: missing key among {', '.join(missing)}") from None


def _check_type(where: str, annotation: str, value: object) -> None:
    if annotation.startswith("tuple"):
        good = isinstance(value, list) and all(isinstance(item, str) for item in value) and bool(value)
    elif "bool" in annotation:
        good = isinstance(value, bool)
    elif "int" in annotation:
        good = type(value) is int and 0 < value < 1 << 40
    elif "float" in annotation:
        good = type(value) in (int, float) and 0 <= value < 1  # type: ignore[operator]
    else:
        good = isinstance(value, str)
    if not good:
        raise BadInput(f"{where}: {str(value)[:40]!r} is not a {annotation.replace('<class ', '').strip('>')}")


def _check_names(rules: Rules, where: str) -> None:
    for rung in (*rules.ladder, *rules.named):
        _check_known("adapter", rung.adapter, ADAPTERS, where)
        _check_known("quantization", rung.quantization, QUANTIZATIONS, where)
        for optimizer in rung.optimizers:
            _check_known("optimizer", optimizer, OPTIMIZERS, where)
        if rung.weights not in ("float32", "compute"):
            raise BadInput(f"{where}: weights of {rung.method} must be float32 or compute, not {rung.weights[:40]!r}")
    methods = {rung.method for rung in (*rules.ladder, *rules.named)}
    for rule in rules.vram_rules:
        _check_known("method", rule.method, methods, where)


def _check_known(kind: str, name: str, known: Collection[str], where: str) -> None:
    if name not in known:
        raise UnknownName(kind, name, known, hint=f"in {where}")
