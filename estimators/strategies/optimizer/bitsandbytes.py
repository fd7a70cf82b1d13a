"""bitsandbytes' optimizers: 8-bit or float32 states, on the GPU or paged to host memory.

Sources: arXiv 2110.02861 (block-wise 8-bit states); bitsandbytes 0.50 optim/optimizer.py: a float32 scale for each 256
elements of an 8-bit state, float32 states for tensors below 4096 elements, managed memory for tensors of at least 1e5;
transformers Trainer.create_optimizer asks for float32 states of embeddings.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from estimators.strategies.axes import Needs, ParameterGroup

BLOCK, SMALLEST_8BIT, SMALLEST_PAGED = 256, 4096, 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class BitsAndBytes:
    """An optimizer of bitsandbytes."""

    name: str
    moments: int
    eight_bit: bool
    paged: bool = False
    library: str = "bitsandbytes"
    changes_learning: bool = False
    needs: Needs = Needs(parallelisms=("none", "ddp"), compute_capability=(6, 0))

    def state_bytes(self, groups: Sequence[ParameterGroup], weight_bytes: int) -> int:
        return sum(self._bytes(group) for group in groups if not self._is_paged(group))

    def managed_bytes(self, groups: Sequence[ParameterGroup], weight_bytes: int) -> int:
        return sum(self._bytes(group) for group in groups if self._is_paged(group))

    def step_temporary_bytes(self, groups: Sequence[ParameterGroup], weight_bytes: int) -> int:
        return 0

    def traffic_bytes(self, groups: Sequence[ParameterGroup], weight_bytes: int) -> float:
        states = sum(self._bytes(group) for group in groups)
        return 2.0 * states + 3.0 * weight_bytes * sum(group.parameters for group in groups)

    def launches(self, groups: Sequence[ParameterGroup]) -> float:
        return float(3 * sum(group.count for group in groups))

    def _is_paged(self, group: ParameterGroup) -> bool:
        return self.paged and group.elements >= SMALLEST_PAGED

    def _bytes(self, group: ParameterGroup) -> int:
        if not self.eight_bit or group.embedding or group.elements < SMALLEST_8BIT:
            return self.moments * 4 * group.parameters
        scales = 4 * -(-group.elements // BLOCK)
        return self.moments * group.count * (group.elements + scales)
