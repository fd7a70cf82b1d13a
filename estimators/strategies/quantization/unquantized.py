"""Weights in the type that the recipe names."""

from dataclasses import dataclass

from estimators.allocation import held_bytes
from estimators.layers import product
from estimators.model import Linear
from estimators.strategies.axes import Needs, Setting
from estimators.tape import Tape, Value


@dataclass(frozen=True, slots=True, kw_only=True)
class Unquantized:
    """No quantisation."""

    name: str = "none"
    needs: Needs = Needs()

    def stored_bytes(self, layer: Linear, weight_bytes: int) -> int:
        bias = held_bytes(layer.outputs * weight_bytes) if layer.bias else 0
        return layer.copies * (held_bytes(layer.inputs * layer.outputs * weight_bytes) + bias)

    def product(self, tape: Tape, setting: Setting, source: Value, layer: Linear) -> Value:
        return product(tape, setting, source, layer, trainable=setting.trains_base, weight_bytes=setting.weight_bytes)
