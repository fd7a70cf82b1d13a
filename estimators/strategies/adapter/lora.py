"""LoRA: two matrices of rank r beside a frozen layer, kept in float32 by PEFT.

Sources: arXiv 2106.09685 (W + B·A·alpha/r); peft 0.21 tuners/lora/layer.py (`Linear.forward`) and bnb.py, whose 4-bit
layer clones its base's result, and whose quantised layers do not copy their input to float32 under autocast.
"""

from dataclasses import dataclass

from estimators.layers import drop, product
from estimators.model import Linear
from estimators.strategies.axes import Needs, Setting
from estimators.tape import Node, Tape, Value

ADAPTER_BYTES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Lora:
    """Low-rank matrices beside frozen layers."""

    name: str = "lora"
    needs: Needs = Needs()

    def shapes(self, layer: Linear, rank: int) -> tuple[tuple[int, int], ...]:
        return (rank, layer.inputs), (layer.outputs, rank)

    def beside(self, tape: Tape, setting: Setting, source: Value, base: Value, layer: Linear) -> Value:
        tape.call("adapter")
        base = base_result(tape, setting, base)
        scaled = tape.elementwise(low_rank(tape, setting, adapter_input(tape, setting, source), layer))
        tape.hold(source)  # whoever called the layer has it
        if setting.quantization.name != "none":
            return tape.sum(base, scaled if setting.autocast else tape.cast(scaled, base.itemsize))
        return tape.cast(tape.sum(base, scaled), base.itemsize)


def base_result(tape: Tape, setting: Setting, base: Value) -> Value:
    """The frozen layer's result, cloned where PEFT guards a 4-bit layer's against writes."""
    if not setting.quantization.name.startswith("nf4"):
        return base
    return tape.add(Node("elementwise", (base,), Value(base.elements, base.itemsize, base.grad), aliases=True))


def adapter_input(tape: Tape, setting: Setting, source: Value) -> Value:
    """dropout(x), in the adapter's type; beside a quantised layer autocast is left to choose the type."""
    as_is = setting.quantization.name != "none" and setting.autocast
    return drop(tape, source if as_is else tape.cast(source, setting.adapter_bytes), setting.adapter_dropout)


def low_rank(tape: Tape, setting: Setting, source: Value, layer: Linear) -> Value:
    """B(A(x)), in the compute type."""
    size = setting.adapter_bytes
    down = Linear(name="lora_A", inputs=layer.inputs, outputs=setting.rank)
    up = Linear(name="lora_B", inputs=setting.rank, outputs=layer.outputs)
    narrow = product(tape, setting, source, down, trainable=True, weight_bytes=size)
    return product(tape, setting, narrow, up, trainable=True, weight_bytes=size)
