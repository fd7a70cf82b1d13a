"""How the microbenchmarks take time: the GPU's by its own events, and the host's while it issues."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from runners.losses import DeviceName

ROUNDS = 3
"""The middle one counts."""
WARM_UP_CALLS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Clock:
    """Times calls on one device."""

    device: DeviceName
    round_seconds: float
    """How long a round of calls lasts, about: long enough for a power limit to show."""
    most_calls: int = 1000

    def seconds(self, call: Callable[[], object]) -> float:
        """One call's, as fast as they follow each other."""
        for _ in range(WARM_UP_CALLS):
            call()
        once = self._round(call, 1)
        calls = min(self.most_calls, max(1, round(self.round_seconds / max(once, 1e-6))))
        return statistics.median(self._round(call, calls) for _ in range(ROUNDS)) / calls

    def issuing(self, call: Callable[[], object], times: int) -> float:
        """The host's seconds for one call, which the GPU need not have finished: the middle of so many."""
        taken = []
        for _ in range(times):
            self.wait()
            began = time.perf_counter()
            call()
            taken.append(time.perf_counter() - began)
        return statistics.median(taken)

    def queued(self, ahead: Callable[[], object], call: Callable[[], object], times: int) -> float:
        """The GPU's seconds for one call where it need not wait for the host: `ahead` keeps it busy meanwhile."""
        self.wait()
        ahead()
        stop = self._start()
        for _ in range(times):
            call()
        return stop() / times

    def wait(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()

    def _round(self, call: Callable[[], object], times: int) -> float:
        self.wait()
        stop = self._start()
        for _ in range(times):
            call()
        return stop()

    def _start(self) -> Callable[[], float]:
        """Begins to count; what it returns ends it."""
        if self.device != "cuda":
            began = time.perf_counter()
            return lambda: time.perf_counter() - began
        make: Any = torch.cuda.Event
        events: list[Any] = [make(enable_timing=True) for _ in range(2)]
        events[0].record()

        def stop() -> float:
            events[1].record()
            events[1].synchronize()
            return float(events[0].elapsed_time(events[1])) / 1e3

        return stop
