"""torch's AdamW: two moments in the parameter's own type, updated tensor list by tensor list or in one fused kernel.

Sources: torch 2.11 optim/adamw.py and adam.py. `_multi_tensor_adam` makes one new list, the square root of the second
moments, so at the step it holds one more copy of the parameters; `_fused_adam` makes none.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from estimators.strategies.axes import Needs, ParameterGroup

FOREACH_PASSES = 18
"""Reads and writes of one list element: lerp 3, mul 2, addcmul 3, sqrt 2, div 2, add 2, addcdiv 4."""
FUSED_PASSES = 7
FOREACH_CHUNK = 320 * 65536
"""Elements that one multi-tensor launch covers (torch/csrc ForeachUtils: 320 blocks of 65536)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdamW:
    """AdamW of torch."""

    name: str
    foreach: bool
    library: str = "torch"
    changes_learning: bool = False
    needs: Needs = Needs()

    def state_bytes(self, groups: Sequence[ParameterGroup], weight_bytes: int) -> int:
        return 2 * weight_bytes * sum(group.parameters for group in groups)

    def managed_bytes(self, groups: Sequence[ParameterGroup], weight_bytes: int) -> int:
        return 0

    def step_temporary_bytes(self, groups: Sequence[ParameterGroup], weight_bytes: int) -> int:
        return weight_bytes * sum(group.parameters for group in groups) if self.foreach else 0

    def traffic_bytes(self, groups: Sequence[ParameterGroup], weight_bytes: int) -> float:
        passes = FOREACH_PASSES if self.foreach else FUSED_PASSES
        return float(passes * weight_bytes * sum(group.parameters for group in groups))

    def launches(self, groups: Sequence[ParameterGroup]) -> float:
        parameters = sum(group.parameters for group in groups)
        return (7 if self.foreach else 1) * (1 + parameters / FOREACH_CHUNK)
