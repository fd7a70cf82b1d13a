"""Full fine-tuning: no adapter, every weight is trained."""

from dataclasses import dataclass

from estimators.model import Linear
from estimators.strategies.axes import Needs, Setting
from estimators.tape import Tape, Value


@dataclass(frozen=True, slots=True, kw_only=True)
class Full:
    """Everything is trained."""

    name: str = "full"
    needs: Needs = Needs(quantizations=("none",))

    def shapes(self, layer: Linear, rank: int) -> tuple[tuple[int, int], ...]:
        return ()

    def beside(self, tape: Tape, setting: Setting, source: Value, base: Value, layer: Linear) -> Value:
        return base
