"""The arithmetic of money: an hour of a machine, rented or owned, and what a run on it comes to."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from estimators.price import Interval
from planner.capacity.prices import Offer

Kind = Literal["on demand", "spot", "owned"]
HOURS_A_YEAR = 8766.0
"""365.25 days."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ownership:
    """GPUs of one's own: what they draw and what they were bought for, in the currency of the prices."""

    power_price_per_kwh: float
    pue: float = 1.0
    """Power of the whole site over that of the machines: cooling and losses. 1: none counted."""
    purchase_price_per_gpu: float = 0.0
    years: float = 3.0
    """Over which the purchase is spread, used around the clock."""

    def per_hour(self, watts: float, gpus: int) -> float:
        """An hour of so many GPUs at full power, with their share of the purchase."""
        power = watts / 1000 * self.pue * self.power_price_per_kwh
        return gpus * (power + self.purchase_price_per_gpu / (self.years * HOURS_A_YEAR))

    def break_even_hours(self, watts: float, rented_per_gpu_hour: float) -> float | None:
        """After how many hours of use buying a GPU is cheaper than renting it; None where it never is, or is no
        question."""
        saved = rented_per_gpu_hour - watts / 1000 * self.pue * self.power_price_per_kwh
        return self.purchase_price_per_gpu / saved if self.purchase_price_per_gpu and saved > 0 else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Bill:
    """What a run costs in one way of paying."""

    kind: Kind
    per_hour: float
    """Of the whole machine."""
    offer: Offer | None
    """What is rented; None of what is owned."""
    per_million_tokens: Interval
    per_run: Interval | None
    """None where the length of the job is not known."""


def bill(
    kind: Kind, per_hour: float, offer: Offer | None, seconds_per_token: Interval, seconds: Interval | None, work: float
) -> Bill:
    """`work` is the share of tokens that are processed over those that are wanted: padding is paid for too."""
    rate = per_hour / 3600
    return Bill(
        kind=kind,
        per_hour=per_hour,
        offer=offer,
        per_million_tokens=seconds_per_token.scaled(rate * 1e6 * work),
        per_run=seconds.scaled(rate) if seconds else None,
    )


def cheapest(offers: Sequence[Offer], device: str, gpus: int, host_bytes: float, kind: Kind) -> Offer | None:
    """The cheapest single machine with at least so many of these GPUs and enough host RAM, as far as that is known.

    A job over several GPUs needs them in one machine, so a larger one is rented whole.
    """
    good = [
        offer
        for offer in offers
        if offer.device == device
        and offer.gpus >= gpus
        and rate_of(offer, kind) is not None
        and (offer.memory_bytes is None or offer.memory_bytes >= host_bytes)
    ]
    return min(good, key=lambda offer: (rate_of(offer, kind), offer.gpus, offer.name), default=None)


def rate_of(offer: Offer, kind: Kind) -> float | None:
    return offer.spot_per_hour if kind == "spot" else offer.per_hour
