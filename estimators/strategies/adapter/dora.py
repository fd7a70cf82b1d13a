"""DoRA: LoRA whose columns are rescaled to a learned magnitude.

Sources: arXiv 2402.09353 section 4; peft 0.21 tuners/lora/dora.py, which forms the whole merged weight at every forward
pass to take its norm, and variants.py.
"""

from dataclasses import dataclass

from estimators.layers import FLOAT32
from estimators.model import Linear
from estimators.strategies.adapter.lora import ADAPTER_BYTES, adapter_input, base_result, low_rank
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
        result = base_result(tape, setting, base)
        wide = adapter_input(tape, setting, source)
        merged, weight = _merge(tape, setting, wide, layer)
        delta = low_rank(tape, setting, wide, layer)
        if setting.adapter_dropout:
            frozen = _again(tape, setting, wide, layer, weight)
        else:
            frozen = tape.elementwise(result) if layer.bias else result  # less the bias
        scaled = tape.elementwise(_rescale(tape, delta, layer))
        change = tape.sum(_rescale(tape, frozen, layer), scaled)
        tape.hold(merged, weight, source)
        changed = tape.sum(result, change)
        if setting.quantization.name != "none" and setting.autocast:
            return changed  # in float32, as the magnitude is
        return tape.cast(changed, base.itemsize)


def _merge(tape: Tape, setting: Setting, wide: Value, layer: Linear) -> tuple[Value, Value]:
    """The norm of the merged weight. Returns what stays alive beside it: B·A by way of an identity matrix, which its
    graph saves; and the base's weight where it is expanded or cast. The sum, and one summand scaled, are freed."""
    elements, size = layer.inputs * layer.outputs, wide.itemsize
    copied = setting.quantization.name != "none" or setting.weight_bytes != size
    inner = setting.compute_bytes if setting.autocast else setting.adapter_bytes
    identity, product_bytes = layer.inputs * layer.inputs * inner, elements * size
    merged, weight = Value(identity + product_bytes, 1, False), Value(elements * int(copied), size, False)
    # LLM.int8() expands to float32, twice. Autocast makes a copy of the identity.
    expanding = 2 * elements * FLOAT32 - product_bytes if setting.quantization.name == "int8" else 0
    wider = layer.inputs * layer.inputs * setting.adapter_bytes if inner != setting.adapter_bytes else 0
    starting = identity + wider + elements * inner - merged.size_bytes - weight.size_bytes
    tape.add(Node("dequantize", (), weight, launches=int(copied), backward_launches=0))
    tape.add(
        Node(
            "matmul",
            (),
            merged,
            temporary=max(2 * product_bytes, expanding, starting),
            flops=2.0 * setting.rank * layer.inputs * (layer.inputs + layer.outputs),
            traffic=2.0 * (merged.size_bytes + weight.size_bytes + 2 * product_bytes),
            launches=14,
            backward_launches=4,
        )
    )
    return merged, weight


def _again(tape: Tape, setting: Setting, wide: Value, layer: Linear, weight: Value) -> Value:
    """The frozen product once more, of the input after dropout: autograd saves the weight that it used."""
    elements = layer.inputs * layer.outputs
    narrow = tape.cast(wide, setting.compute_bytes) if setting.autocast else wide
    saved: tuple[Value, ...] = ()
    if wide.grad and wide.itemsize != narrow.itemsize:
        saved = (Value(elements, narrow.itemsize, False),)
    elif wide.grad:
        saved = (weight,)
    rows = narrow.elements // layer.inputs
    made = Value(rows * layer.outputs, narrow.itemsize, narrow.grad)
    flops = 2.0 * rows * elements
    return tape.add(Node("matmul", (narrow,), made, saved, flops=flops, backward_flops=flops))


def _rescale(tape: Tape, source: Value, layer: Linear) -> Value:
    """The product with a float32 factor a column, which has a gradient: made whole, then summed over the rows."""
    factor = Value(layer.outputs, ADAPTER_BYTES, True)
    product_bytes = source.elements * FLOAT32
    output = Value(source.elements, FLOAT32, True)
    cast_bytes = product_bytes if source.grad and source.itemsize != FLOAT32 else 0
    node = Node("elementwise", (source, factor), output, (source,), backward_temporary=product_bytes + cast_bytes)
    return tape.add(node)
