"""bitsandbytes' 4-bit NormalFloat: two weights a byte, a scale for each 64, and those scales again in 8 bits.

Sources: QLoRA (arXiv 2305.14314, section 3) for the format; bitsandbytes 0.50 functional.quantize_4bit (block size 64,
nested block size 256) and autograd/_functions.MatMul4Bit for what runs: it saves no input, for the weight is frozen,
and expands the whole weight to the compute type for each product, forward and backward.
"""

from dataclasses import dataclass

from estimators.allocation import held_bytes
from estimators.model import Linear
from estimators.strategies.axes import Needs, Setting
from estimators.tape import Node, Tape, Value

BLOCK, NESTED_BLOCK = 64, 256
CODE_BYTES, NESTED_CODE_BYTES = 16 * 4, 256 * 4


@dataclass(frozen=True, slots=True, kw_only=True)
class NormalFloat4:
    """4-bit NormalFloat, its scales in float32 or again in 8 bits."""

    name: str
    double: bool
    needs: Needs = Needs(adapters=("lora", "dora"), compute_capability=(7, 0))

    def stored_bytes(self, layer: Linear, weight_bytes: int) -> int:
        elements = layer.inputs * layer.outputs
        scales = -(-elements // BLOCK)
        tensors = [(elements + 1) // 2, CODE_BYTES, layer.outputs * 2 if layer.bias else 0]
        if self.double:
            tensors += [scales, 4 * -(-scales // NESTED_BLOCK), NESTED_CODE_BYTES, 4]
        else:
            tensors.append(4 * scales)
        return layer.copies * sum(map(held_bytes, tensors))

    def product(self, tape: Tape, setting: Setting, source: Value, layer: Linear) -> Value:
        elements = layer.inputs * layer.outputs
        expanded = elements * setting.compute_bytes
        # Nested scales are themselves expanded to float32 first.
        scales = 4 * elements // BLOCK if self.double else 0
        narrow = tape.cast(source, setting.compute_bytes)
        rows = narrow.elements // layer.inputs
        made = Value(rows * layer.outputs, setting.compute_bytes, narrow.grad)
        flops = 2.0 * rows * elements
        moved = float(narrow.size_bytes + made.size_bytes + expanded)
        unpack = Value(0, 1, False)
        tape.call("nf4")
        tape.add(Node("dequantize", (), unpack, traffic=float(expanded + elements // 2), launches=2))
        tape.add(
            Node(
                "matmul",
                (narrow,),
                made,
                temporary=expanded + scales,
                backward_temporary=expanded + scales,
                flops=flops,
                backward_flops=flops * int(narrow.grad),
                traffic=moved,
                backward_traffic=moved + expanded + elements // 2,
                backward_launches=3 * int(narrow.grad),
            )
        )
        if layer.bias:
            tape.add(Node("elementwise", (), Value(0, 1, False)))
        return tape.cast(made, source.itemsize)
