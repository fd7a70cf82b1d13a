"""bitsandbytes' LLM.int8(): a byte a weight, a float32 scale a row.

Sources: arXiv 2208.07339; bitsandbytes 0.50 autograd/_functions.MatMul8bitLt, which keeps its input on the context
object rather than through save_for_backward: activation checkpointing does not drop it.
"""

from dataclasses import dataclass

from estimators.allocation import held_bytes
from estimators.model import Linear
from estimators.strategies.axes import Needs, Setting
from estimators.tape import Node, Tape, Value


@dataclass(frozen=True, slots=True, kw_only=True)
class Int8:
    """8-bit rows."""

    name: str = "int8"
    needs: Needs = Needs(adapters=("lora", "dora"), compute_capability=(7, 5))

    def stored_bytes(self, layer: Linear, weight_bytes: int) -> int:
        tensors = (layer.inputs * layer.outputs, 4 * layer.outputs, layer.outputs * 2 if layer.bias else 0)
        return layer.copies * sum(map(held_bytes, tensors))

    def product(self, tape: Tape, setting: Setting, source: Value, layer: Linear) -> Value:
        elements = layer.inputs * layer.outputs
        rows = source.elements // layer.inputs
        made = Value(rows * layer.outputs, source.itemsize, source.grad)
        flops = 2.0 * rows * elements
        half = source.elements * 2
        # Quantise the input (half, then int8), multiply in int8, dequantise the int32 product.
        temporary = half + source.elements + made.elements * 4
        expanded = elements * source.itemsize  # and scaled in place
        tape.call("int8")
        if source.grad:
            tape.pinned.append(source)
        return tape.add(
            Node(
                "matmul",
                (source,),
                made,
                (source,),
                temporary=temporary,
                backward_temporary=expanded,
                flops=flops,
                backward_flops=flops * int(source.grad),
                traffic=float(elements + temporary * 2 + made.size_bytes),
                backward_traffic=float(elements + 2 * expanded + made.size_bytes * 2),
                launches=8,
                backward_launches=5 * int(source.grad),
            )
        )
