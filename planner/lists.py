"""Lists, spans of time and ranges as people type them after an option of a sweep; a wrong one is refused by name."""

import re
from collections.abc import Callable

from estimators.errors import BadInput
from planner.options import read_targets, shown, whole
from planner.sweep.space import Span

MOST_VALUES = 64
_RATE = r"[0-9]*\.?[0-9]+(?:[eE]-?[0-9]{1,3})?"
_DURATION = r"(?:([0-9]+(?:\.[0-9]+)?)\s*d)?\s*(?:([0-9]+(?:\.[0-9]+)?)\s*h)?\s*(?:([0-9]+(?:\.[0-9]+)?)\s*m(?:in)?)?\s*(?:([0-9]+(?:\.[0-9]+)?)\s*s)?"  # noqa: E501
_SECONDS = (86_400, 3_600, 60, 1)


def wholes(low: int, high: int) -> Callable[[str, str], tuple[int, ...]]:
    """A reader of whole numbers separated by commas, each once, in order."""
    read = whole(low, high)
    return lambda text, option: tuple(sorted({read(part, option) for part in _parts(text, option)}))


def read_rates(text: str, option: str) -> tuple[float, ...] | Span:
    """Learning rates: "1e-4,2e-4", or a range to draw from: "1e-5..1e-3"."""
    low, dots, high = text.partition("..")
    if dots:
        span = Span(low=_rate(low, option), high=_rate(high, option))
        if span.low >= span.high:
            raise BadInput(f"{option} must go from a lower rate to a higher one, not {shown(text)}")
        return span
    return tuple(sorted({_rate(part, option) for part in _parts(text, option)}))


def read_rate(text: str, option: str) -> float:
    """One learning rate: "2e-4"."""
    return _rate(text, option, "a rate such as 2e-4")


def _rate(text: str, option: str, wanted: str = "rates such as 1e-4,2e-4 or a range such as 1e-5..1e-3") -> float:
    value = float(text) if re.fullmatch(_RATE, text.strip()) else 0.0
    if not 1e-12 <= value <= 10.0:
        raise BadInput(f"{option} must be {wanted}, not {shown(text)}")
    return value


def read_shares(text: str, option: str) -> tuple[float, ...]:
    """Dropouts: "0,0.05"."""
    parts = _parts(text, option)
    if not all(re.fullmatch(r"0|0?\.\d{1,9}", part, re.ASCII) and float(part) <= 0.99 for part in parts):
        raise BadInput(f"{option} must be numbers from 0 to 0.99 such as 0,0.05, not {shown(text)}")
    return tuple(sorted({float(part) for part in parts}))


def read_duration(text: str, option: str) -> float:
    """A span of time in seconds: "2h", "90m", "1h30m", "45s"."""
    match = re.fullmatch(_DURATION, text.strip(), re.IGNORECASE)
    seconds = (
        sum(float(part) * each for part, each in zip(match.groups(), _SECONDS, strict=True) if part) if match else 0
    )
    if not 0 < seconds <= 400 * 86_400:
        raise BadInput(f"{option} must be a span of time such as 2h, 90m or 1h30m, not {shown(text)}")
    return float(seconds)


def read_target_list(text: str, option: str) -> tuple[str, ...]:
    """As read_targets, always as a list."""
    found = read_targets(text, option)
    return (found,) if isinstance(found, str) else found


def _parts(text: str, option: str) -> list[str]:
    parts = [part.strip() for part in text.split(",")]
    if not all(parts) or len(parts) > MOST_VALUES:
        raise BadInput(f"{option} must be a list separated by commas, not {shown(text)}")
    return parts
