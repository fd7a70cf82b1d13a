"""Adafactor without a first moment: a row and a column of second moments for each matrix.

Source: transformers 5 optimization.Adafactor: float32 copies of the gradient, the parameter and the update, one tensor
at a time.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from estimators.strategies.axes import Needs, ParameterGroup

FLOAT32 = 4
OPERATIONS = 22
"""Elementwise operations on one tensor in Adafactor.step, counted in the source; each reads or writes it in float32."""
COPIES = 2
"""Float32 copies alive for one tensor: its squared gradient and that plus epsilon, later its update and less that."""
CASTS = 2
"""Copies in float32 of a 16-bit gradient and parameter."""


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
        copies = COPIES + (CASTS if weight_bytes < FLOAT32 else 0)
        matrices = sorted((group for group in groups if group.columns > 1), key=lambda group: not group.embedding)
        # The update of the tensor before lives on. The head comes last; torch steps embeddings first.
        before = [0, *(group.elements for group in matrices)]
        sizes = [copies * group.elements + last for group, last in zip(matrices, before, strict=False)]
        return FLOAT32 * max(sizes, default=0)

    def traffic_bytes(self, groups: Sequence[ParameterGroup], weight_bytes: int) -> float:
        return float(sum(group.parameters for group in groups) * (OPERATIONS * 4 + 3 * weight_bytes))

    def launches(self, groups: Sequence[ParameterGroup]) -> float:
        return float(OPERATIONS * sum(group.count for group in groups))
