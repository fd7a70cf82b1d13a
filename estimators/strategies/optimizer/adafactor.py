"""Adafactor without a first moment: a row and a column of second moments for each matrix.

Source: transformers 5 optimization.Adafactor: float32 copies of the gradient, the parameter and the update, one tensor
at a time.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from estimators.strategies.axes import Needs, ParameterGroup

OPERATIONS = 22
"""Elementwise operations on one tensor in Adafactor.step, counted in the source; each reads or writes it in float32."""
COPIES = 4
"""Float32 copies alive for one tensor: gradient, its square, update, parameter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Adafactor:
    """Factored second moments."""

    name: str = "adafactor"
    library: str = "torch"
    changes_learning: bool = True
    needs: Needs = Needs(parallelisms=("none", "ddp"))

    def state_bytes(self, groups: Sequence[ParameterGroup], weight_bytes: int) -> int:
        return sum(
            4 * group.count * (group.rows + group.columns if group.columns > 1 else group.rows) for group in groups
        )

    def managed_bytes(self, groups: Sequence[ParameterGroup], weight_bytes: int) -> int:
        return 0

    def step_temporary_bytes(self, groups: Sequence[ParameterGroup], weight_bytes: int) -> int:
        return COPIES * 4 * max((group.elements for group in groups), default=0)

    def traffic_bytes(self, groups: Sequence[ParameterGroup], weight_bytes: int) -> float:
        return float(sum(group.parameters for group in groups) * (OPERATIONS * 4 + 3 * weight_bytes))

    def launches(self, groups: Sequence[ParameterGroup]) -> float:
        return float(OPERATIONS * sum(group.count for group in groups))
