"""The plan: the recipe that was chosen, what it was chosen over, and why."""

from dataclasses import dataclass

from estimators.hardware import Cluster
from estimators.model import ModelSpec
from estimators.price import Evidence, Price
from estimators.recipe import Recipe
from estimators.traced import Traced
from planner.goal import Goal


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A recipe with its price, and the rung of the quality ladder that it stands on."""

    recipe: Recipe
    price: Price
    method: str
    """As people say it: "full", "lora", "dora", "qlora", "full + zero3", "lora + zero2 + offload"."""
    rung: int
    """Position on the quality ladder, 0 the best; people are told one more."""
    gpus: int
    traced: Traced | None = None
    """The dry run that the price comes from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Alternative:
    """The best recipe of another method, and why it lost, in numbers."""

    candidate: Candidate
    why: str
    """ "needs 2.3 GiB more", "38 % slower", "lower on the quality ladder, 12 % faster"."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """A method that no recipe can offer here, with the reason."""

    method: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RulePick:
    """What the VRAM rule alone would start from, and how the estimate changed it."""

    method: str
    rule: str
    """The rule in words, such as "16 to 24 GB: LoRA"."""
    confirmed: bool
    comment: str
    """ "confirmed", or why not: "full fits with 8-bit AdamW"."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Everything that a report says."""

    goal: Goal
    model: ModelSpec
    cluster: Cluster
    chosen: Candidate | None
    """None where nothing fits; `alternatives` are then the nearest misses."""
    evidence: Evidence
    confirmed: bool
    """True once a dry run or a measurement stands behind the chosen recipe."""
    verdict: str
    """One sentence."""
    rule: RulePick | None
    alternatives: tuple[Alternative, ...]
    refusals: tuple[Refusal, ...]
    cheapest_change: str | None
    """What would make the next better method fit."""
    assumptions: tuple[str, ...]
    next_command: str
    recipes_priced: int
    doubt: str = "confirm with a short measured run before a long job"
    """What to know of a plan that is not confirmed: why, or what would confirm it."""
    notes: tuple[str, ...] = ()
    """What came of the dry runs: another choice than the formula's, figures that differ."""

    @property
    def exit_code(self) -> int:
        return 0 if self.chosen else 3


@dataclass(frozen=True, slots=True, kw_only=True)
class MatrixRow:
    """One card of the catalogue in the table that answers when there is no GPU: the best recipe of each method."""

    device: str
    total_bytes: int
    methods: dict[str, Candidate | None]
    """By method of the ladder; None where it does not fit."""
    best: Candidate | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Matrix:
    """Which method fits on which card for one model."""

    goal: Goal
    model: ModelSpec
    methods: tuple[str, ...]
    rows: tuple[MatrixRow, ...]
    assumptions: tuple[str, ...]
