"""What a sweep varies, and what all of its trials have in common: every configuration of it, and the recipe of one."""

import hashlib
import itertools
import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace

from planner.usual import ADAPTER_LEARNING_RATE, FULL, usual_learning_rate

RANKS = (4, 8, 16, 32, 64, 128)
ALPHA_RATIO = 4
DIGEST_DIGITS = 12
KINDS = ("method", "targets", "micro_batch", "gradient_checkpointing", "loss")
NOT_GIVEN = "by default"
RSLORA = "rsLoRA stays off: it scales an adapter by alpha over the root of the rank, and {ratio} × rank would mean more"


def word_of(value: object) -> str:
    """A value of an axis without an order, as people read it."""
    if value is None:
        return NOT_GIVEN
    return ",".join(value) if isinstance(value, tuple) else str(value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Configuration:
    """One point of the space. What is None is mechanics that the estimator chooses, and that change no result."""

    method: str = "lora"
    """As people say it: "lora", "qlora", "full", or another of profiles/rules."""
    rank: int = 0
    """0: there is no adapter."""
    alpha: int = 0
    """Derived, never chosen."""
    learning_rate: float = ADAPTER_LEARNING_RATE
    targets: tuple[str, ...] | None = None
    """Layer names, or "all-linear" alone; None: queries and values."""
    dropout: float = 0.0
    micro_batch: int | None = None
    gradient_checkpointing: bool | None = None
    loss: str | None = None

    @property
    def digest(self) -> str:
        """Of everything that it fixes: the same configuration has the same one in every process."""
        text = json.dumps(asdict(self), sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=DIGEST_DIGITS // 2, person=b"plan-sweep").hexdigest()

    @property
    def is_free(self) -> bool:
        """Whether there may be a smaller way to run it."""
        return self.micro_batch is None or self.gradient_checkpointing is None

    @property
    def name(self) -> str:
        """In a table: "lora r16", with what else tells it from its neighbours."""
        parts = [self.method, *([f"r{self.rank}"] if self.rank else []), f"lr {self.learning_rate:.3g}"]
        if self.targets is not None:
            parts.append(",".join(self.targets))
        parts += [f"dropout {self.dropout:g}"] if self.dropout else []
        parts += [f"batch {self.micro_batch}"] if self.micro_batch else []
        if self.gradient_checkpointing is not None:
            parts.append("checkpointing" if self.gradient_checkpointing else "no checkpointing")
        return ", ".join([" ".join(parts[:2]) if self.rank else parts[0], *parts[2 if self.rank else 1 :]])


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """Learning rates between two, drawn on a logarithmic scale."""

    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    """The axes of a sweep. alpha is none: it is so many times the rank, that ranks compare at one scale."""

    methods: tuple[str, ...] = ("lora",)
    ranks: tuple[int, ...] = RANKS
    alpha_ratio: int = ALPHA_RATIO
    learning_rates: tuple[float, ...] | Span | None = None
    """None: the method's own."""
    targets: tuple[tuple[str, ...] | None, ...] = (None,)
    dropouts: tuple[float, ...] = (0.0,)
    micro_batches: tuple[int | None, ...] = (None,)
    """None: the largest that fits by estimate."""
    checkpointing: tuple[bool | None, ...] = (None,)
    losses: tuple[str | None, ...] = (None,)

    @property
    def axes(self) -> dict[str, tuple[object, ...] | Span]:
        """The values on each axis that has more than one, in order where there is an order."""
        found: dict[str, tuple[object, ...] | Span] = {
            "method": self.methods, "rank": tuple(sorted(self.ranks)), "targets": self.targets,
            "dropout": tuple(sorted(self.dropouts)), "micro_batch": self.micro_batches,
            "gradient_checkpointing": self.checkpointing, "loss": self.losses,
        }  # fmt: skip
        if self.learning_rates is not None:
            rates = self.learning_rates
            found["learning_rate"] = rates if isinstance(rates, Span) else tuple(sorted(rates))
        return {name: values for name, values in found.items() if isinstance(values, Span) or len(values) > 1}

    @property
    def kinds(self) -> dict[str, tuple[str, ...]]:
        """The axes without an order that have more than one value, each value as a word."""
        found = {name: values for name, values in self.axes.items() if name in KINDS and not isinstance(values, Span)}
        words = {name: tuple(map(word_of, values)) for name, values in found.items()}
        return {name: (*more, NOT_GIVEN) if NOT_GIVEN not in more else more for name, more in words.items()}

    @property
    def cells(self) -> int | None:
        """How many configurations there are; None where a learning rate is drawn."""
        return None if isinstance(self.learning_rates, Span) else sum(1 for _ in self.grid())

    def grid(self) -> Iterator[Configuration]:
        """Every configuration, smallest rank first, each once; of a drawn learning rate its middle."""
        rates: tuple[float | None, ...] = (None,)
        if isinstance(self.learning_rates, Span):
            rates = (math.sqrt(self.learning_rates.low * self.learning_rates.high),)
        elif self.learning_rates is not None:
            rates = self.learning_rates
        points = itertools.product(
            self.methods, sorted(self.ranks), rates, self.targets, self.dropouts, self.micro_batches,
            self.checkpointing, self.losses,
        )  # fmt: skip
        names = ("method", "rank", "learning_rate", "targets", "dropout", "micro_batch", "gradient_checkpointing",
                 "loss")  # fmt: skip
        yield from dict.fromkeys(self.at(**dict(zip(names, point, strict=True))) for point in points)

    def holds(self, configuration: Configuration) -> bool:
        """Whether it is one of those that a sweep of this space may try."""
        rates = self.learning_rates
        if not isinstance(rates, Span):
            return configuration in self.grid()
        others = replace(configuration, learning_rate=math.sqrt(rates.low * rates.high))
        return rates.low <= configuration.learning_rate <= rates.high and others in self.grid()

    def at(self, **chosen: object) -> Configuration:
        """The configuration at a point: what is not chosen has its only value, alpha is derived, and a method without
        an adapter has none of an adapter's settings."""
        first = {"method": self.methods[0], "rank": min(self.ranks), "targets": self.targets[0],
                 "dropout": self.dropouts[0], "micro_batch": self.micro_batches[0],
                 "gradient_checkpointing": self.checkpointing[0], "loss": self.losses[0]}  # fmt: skip
        values: dict[str, object] = {**first, "learning_rate": None, **chosen}
        method = str(values["method"])
        if values["learning_rate"] is None:
            values["learning_rate"] = self._learning_rate(method)
        if method == FULL:
            values |= {"rank": 0, "targets": None, "dropout": 0.0}
        return Configuration(**values, alpha=self.alpha_ratio * int(str(values["rank"])))  # type: ignore[arg-type]

    def _learning_rate(self, method: str) -> float:
        if isinstance(self.learning_rates, tuple):
            return self.learning_rates[0]
        return usual_learning_rate(method)


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What all trials of a sweep have in common, so that they compare: the work, the data, the machine's share."""

    model: str
    steps: int
    global_batch: int
    sequence_length: int
    weights: str
    data: str | None
    """Hash of the examples: the file may move."""
    held_out: str | None
    """Of those held out, where they are a file of their own."""
    seed: int
    devices: int = 1
    """GPUs of one trial."""

    @property
    def tokens(self) -> int:
        """Trained on by each trial, padding included."""
        return self.steps * self.global_batch * self.sequence_length

    @property
    def digest(self) -> str:
        text = json.dumps(asdict(self), sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=DIGEST_DIGITS // 2, person=b"plan-sweep").hexdigest()
