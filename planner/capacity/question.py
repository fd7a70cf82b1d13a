"""What a capacity report is asked: which models on which machines, how long the job is, by when, and how it is paid."""

from dataclasses import dataclass, field
from typing import Literal

from estimators.hardware import Device, Host
from estimators.model import ModelSpec
from planner.capacity.cost import Kind, Ownership
from planner.capacity.lengths import Lengths
from planner.capacity.prices import Offer, Sheet
from planner.goal import Goal

Objective = Literal["cost", "quality", "time"]
COUNTS = (1, 2, 4, 8)
MOST_COUNTED, MOST_LENGTHENED = 32, 12
"""Up to so many pairs of a model and a card, several GPU counts and sequence lengths are looked at unasked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """A model, and what is to be learned of it; the sequence length is the question's."""

    model: ModelSpec
    goal: Goal
    lengths: Lengths | None = None
    """Of the data, by the model's own tokenizer where it can be had."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """One kind of GPU, and how many of them may be used together."""

    device: Device
    counts: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """Everything that the figures follow from."""

    works: tuple[Work, ...]
    machines: tuple[Machine, ...]
    sequence_lengths: tuple[int, ...]
    """The first is what is recommended for; the others answer "what if". Empty: each model's own default."""
    tokens: int | None = None
    epochs: int = 1
    deadline_seconds: float | None = None
    host: Host = field(default_factory=Host)
    sheets: tuple[Sheet, ...] = ()
    currency: str = "USD"
    ownership: Ownership | None = None
    objective: Objective = "cost"

    @property
    def offers(self) -> tuple[Offer, ...]:
        return tuple(offer for sheet in self.sheets for offer in sheet.offers)

    @property
    def basis(self) -> Kind | None:
        """The way of paying that decides; None: there is no price, and GPU-hours decide."""
        if any(offer.per_hour for offer in self.offers):
            return "on demand"
        if self.ownership is not None:
            return "owned"
        return "spot" if self.offers else None
