"""DoRA: LoRA whose columns are rescaled to a learned magnitude.

Sources: arXiv 2402.09353 section 4; peft 0.21 tuners/lora/dora.py, which forms the whole merged weight at every forward
pass to take its norm, and variants.py.
"""

from dataclasses import dataclass

from estimators.model import Linear
from estimators.strategies.adapter.lora import ADAPTER_BYTES, base_result, low_rank
from estimators.strategies.axes import Needs, Setting
from estimators.tape import Node, Tape, Value


@dataclass(frozen=True, slots=True, kw_only=True)
class Dora:
    """Low-rank matrices and a magnitude a column."""

    name: str = "dora"
    needs: Needs = Needs()

    def shapes(self, layer: Linear, rank: int) -> tuple[tuple[int, int], ...]:
        return (rank, layer.inputs), (layer.outputs, rank), (layer.outputs, 1)

    def beside(self, tape: Tape, setting: Setting, source: Value, base: Value, layer: Linear) -> Value:
        tape.call("adapter", 2)
        base = base_result(tape, setting, base)
        elements = layer.inputs * layer.outputs
        # The low-rank product against an identity, the dequantised weight and their sum, in the input's type.
        merged_bytes = elements * (2 + 3 * ADAPTER_BYTES) + layer.inputs * layer.inputs * ADAPTER_BYTES
        norm = Value(layer.outputs, ADAPTER_BYTES, True)
        merge_flops = 2.0 * setting.rank * layer.inputs * (layer.inputs + layer.outputs)
        tape.add(Node("matmul", (), norm, temporary=merged_bytes, flops=merge_flops, traffic=2.0 * merged_bytes,
                      launches=14, backward_launches=4))  # fmt: skip
        delta = low_rank(tape, setting, source, layer)
        scaled_base = tape.elementwise(base, saved=(base,), itemsize=ADAPTER_BYTES)
        scaled_delta = tape.elementwise(delta, saved=(delta,), itemsize=ADAPTER_BYTES)
        change = tape.sum(scaled_base, tape.elementwise(scaled_delta))
        return tape.cast(tape.sum(base, change), base.itemsize)
