"""Plain SGD, as `optim="sgd"` makes it: no momentum, no state.

Source: torch 2.11 optim/sgd.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from estimators.strategies.axes import Needs, ParameterGroup


@dataclass(frozen=True, slots=True, kw_only=True)
class Sgd:
    """No state."""

    name: str = "sgd"
    library: str = "torch"
    changes_learning: bool = True
    needs: Needs = Needs(parallelisms=("none", "ddp", "fsdp2"))

    def state_bytes(self, groups: Sequence[ParameterGroup], weight_bytes: int) -> int:
        return 0

    def managed_bytes(self, groups: Sequence[ParameterGroup], weight_bytes: int) -> int:
        return 0

    def step_temporary_bytes(self, groups: Sequence[ParameterGroup], weight_bytes: int) -> int:
        return 0

    def traffic_bytes(self, groups: Sequence[ParameterGroup], weight_bytes: int) -> float:
        return float(3 * weight_bytes * sum(group.parameters for group in groups))

    def launches(self, groups: Sequence[ParameterGroup]) -> float:
        return 1.0 + sum(group.parameters for group in groups) / (320 * 65536)
