"""The keys of a tool's configuration, each taken out once and checked; what is left over was not understood."""

import difflib
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from estimators.errors import BadInput
from estimators.hardware import Cluster
from estimators.model import ModelSpec
from estimators.recipe import Parallelism
from planner.emit.rows import row

Value = TypeVar("Value")
NEAR = 0.8
_FLOAT = r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?"
_WORDS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What a configuration is read against."""

    model: ModelSpec
    cluster: Cluster
    place: Parallelism
    """How it is launched, as far as the files beside it say."""
    by_accelerate: bool = False
    """Whether a launch file of accelerate's starts it, not the tool's own launcher."""
    fsdp_checkpoints: bool = False
    """Whether FSDP checkpoints activations itself."""

    @property
    def half(self) -> str:
        """What "auto" means for a 16-bit type."""
        return "bfloat16" if all(gpu.device.supports_bfloat16 for gpu in self.cluster.gpus) else "float16"


@dataclass(slots=True, kw_only=True)
class Fields:
    """A table that is being read; `assumed` says what it left out and what stood in for it."""

    where: str
    left: dict[str, Any]
    assumed: list[str] = field(default_factory=list)
    asked: set[str] = field(default_factory=set)
    """Every key that was looked for."""
    given: frozenset[str] = frozenset()
    """Every key of the file."""

    def __post_init__(self) -> None:
        self.left = {str(name): value for name, value in self.left.items()}  # YAML has keys that are no texts
        self.given = frozenset(self.left)

    def take(self, name: str, default: Any = None) -> Any:
        self.asked.add(name)
        value = self.left.pop(name, None)
        return default if value is None else value

    def whole(self, name: str, default: int, low: int = 0, high: int = 1 << 24) -> int:
        value = self.take(name, default)
        if isinstance(value, str) and re.fullmatch(r"\d{1,9}", value):
            value = int(value)
        if type(value) is not int or not low <= value <= high:
            raise self.wrong(name, f"a whole number from {low} to {high}", value)
        return value

    def length(self, name: str, default: int, tool: str) -> int:
        """Of sequences, on which memory hangs most: a default of the tool's is said."""
        if self.left.get(name) is None:
            self.assumed.append(f"{name} {default:,}, which is {tool}'s default: the file does not say")
        return self.whole(name, default, 1)

    def number(self, name: str, default: float) -> float:
        """YAML 1.1 takes 1e-4 for a text: what is to be a number is read as one."""
        value = self.take(name, default)
        if isinstance(value, str) and re.fullmatch(_FLOAT, value):
            value = float(value)
        if type(value) not in (int, float) or not 0 <= value <= 1e6:
            raise self.wrong(name, "a number", value)
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        value = self.take(name, default)
        if isinstance(value, str):
            value = _WORDS.get(value.lower(), value)
        if type(value) is not bool:
            raise self.wrong(name, "true or false", value)
        return value

    def text(self, name: str, default: str = "") -> str:
        value = self.take(name, default)
        if not isinstance(value, str) or len(value) > 4096:
            raise self.wrong(name, "a text", value)
        return value

    def table(self, name: str) -> dict[str, Any]:
        value = self.take(name, {})
        if not isinstance(value, dict):
            raise self.wrong(name, "a table", value)
        return dict(value)

    def one_of(self, name: str, table: Mapping[str, Value], default: str) -> Value:
        value = self.take(name, default)
        if not isinstance(value, str) or value not in table:
            raise self.wrong(name, f"one of {', '.join(table)}", value)
        return table[value]

    def names(self, name: str) -> tuple[str, ...]:
        """A list of texts, or texts separated by commas."""
        value = self.take(name, [])
        if isinstance(value, str):
            value = [part.strip() for part in value.split(",")]
        if not isinstance(value, list) or not all(isinstance(one, str) and one for one in value) or len(value) > 64:
            raise self.wrong(name, "a list of layer names", value)
        return tuple(value)

    def missing(self, names: Collection[str]) -> BadInput:
        """The error of keys that must be there, with what stands there instead of one."""
        words = [word for name in names for word in name.split(" or ")]
        typed = {near: word for word in words for near in difflib.get_close_matches(word, self.left, n=1, cutoff=NEAR)}
        hint = "".join(f"; {near[:60]!a}: did you mean {name}?" for near, name in typed.items())
        return BadInput(f"{self.where}: {' and '.join(names)} missing{hint}")

    def wrong(self, name: str, wanted: str, value: object) -> BadInput:
        return BadInput(f"{self.where}: {name} must be {wanted}, not {ascii(value)[:60]}")

    def refuse(self, reasons: Mapping[str, str]) -> None:
        """
        Raises:
            BadInput: one of these keys is switched on, and what it does is another job than would be priced.
        """
        for name, reason in reasons.items():
            if is_on(self.take(name)):
                raise BadInput(f"{self.where}: {name} {reason}, which is not priced here")

    def tell(self, notes: Mapping[str, str]) -> None:
        """Says of each of these keys that is switched on what was priced in its place."""
        for name, note in notes.items():
            if is_on(self.take(name)):
                self.assumed.append(f"{name}: {note}")

    def rest(self, harmless: Collection[str]) -> tuple[str, ...]:
        """Keys that nobody here understood and that may change what a job takes; a null says nothing, nor does an
        empty list or table."""
        left = (name for name, value in self.left.items() if name not in harmless and value not in (None, [], {}, ""))
        return tuple(sorted(left))

    def meant(self, name: str, harmless: Collection[str]) -> str | None:
        """The key that was probably meant by one that is not understood, where the file does not have it too."""
        absent = [known for known in (*self.asked, *harmless) if known not in self.given]
        return next(iter(difflib.get_close_matches(name, sorted(absent), n=1, cutoff=NEAR)), None)


def is_on(value: object) -> bool:
    """Whether a switch says anything: a list, a name, true, or more than one of something."""
    if isinstance(value, str):
        return value.lower() not in ("", "no", "none", "off", "false")
    return value not in (None, False, [], {}) and (type(value) is not int or value > 1)


def known(tool: str, axis: str, names: Collection[str], name: str) -> str:
    """
    Raises:
        BadInput: there is no law for it here.
    """
    row(f"plan, which reads this for {tool},", axis, dict.fromkeys(names), name)
    return name
