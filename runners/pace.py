"""How far a running job is, what it holds and how fast it goes, as far as that is seen from outside of it."""

from dataclasses import dataclass

from estimators.outcome import STEADY

LEAST_STEPS, LEAST_SECONDS = 3, 1.0
"""Before a speed is told: signs of life are looked for many times a second, and one step says little of the next."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """A job at one moment."""

    phase: str
    step: int
    loss: float | None = None
    """Of the last step, where the job says."""
    vram_bytes: int | None = None
    """What it holds of its fullest GPU, as the driver showed it at the last look; None: there is none, or the driver
    does not tell."""
    tokens_per_second: float | None = None
    """Of its steps after warm-up until now, evaluations left out, over all ranks; padding included, as in a result."""


class Pace:
    """The speed of the steps of one rank, of which each sign of life tells how many tokens it has trained on."""

    def __init__(self, ranks: int) -> None:
        self._ranks = ranks
        self._last: tuple[int, int, float] | None = None
        """Step, tokens and time of the last sign, where that was of a step after warm-up."""
        self._steps, self._tokens, self._seconds = 0, 0, 0.0

    def hear(self, phase: str, step: int, tokens: int | None, now: float) -> None:
        if phase != STEADY or tokens is None:
            self._last = None
            return
        if self._last is not None:
            before, counted, then = self._last
            self._steps += step - before
            self._tokens += tokens - counted
            self._seconds += now - then
        self._last = step, tokens, now

    @property
    def tokens_per_second(self) -> float | None:
        if self._steps < LEAST_STEPS or self._seconds < LEAST_SECONDS:
            return None
        return self._ranks * self._tokens / self._seconds
